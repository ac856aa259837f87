"""Alerts of VMs that migrate, whose disks are unplugged, or that are paused by a disk without space."""

from pathlib import Path
from typing import Any, Final

from tests.integration.qemu.test_write_thresholds import wait_until_armed
from tests.lab.thin_guests import MIB, AlertWatcher, make_qcow2, run, thin_guest
from tests.lab.waiting import until

NO_SPACE: Final = {"event": "write_aio", "iotype": "write", "errno": 28, "once": True}


async def test_a_migration_destination_is_armed_and_repeats_no_level(folder: Path) -> None:
    await make_qcow2(f"{folder}/shared.qcow2", 32 * MIB)
    shared: dict[str, Any] = {"driver": "file", "filename": f"{folder}/shared.qcow2"}
    uri = f"unix:{folder}/migration"
    options: dict[str, Any] = {"disk_mib": 32, "storage": shared}
    async with (
        AlertWatcher(
            folder, levels=["used 1638KiB", "used 6553KiB", "used 11468KiB", "used 16384KiB", "used 21299KiB"], poll=1
        ) as agent,
        thin_guest(folder, "source", extra=["-S"], **options) as source,
        thin_guest(folder, "destination", identity=source.uuid, extra=["-incoming", "defer"], **options) as destination,
    ):
        await until(lambda: len(agent.app.snapshot.monitors) == 2, 180)
        await wait_until_armed(agent, source)
        for guest in (source, destination):
            await guest.stop_writes_at(8 * MIB)
        await source.command("cont")
        await agent.until("used 6553KiB", vm="source")
        assert await destination.slot() == 0, "the destination writes nothing yet"
        await source.command("migrate-set-parameters", max_bandwidth=1 << 30)
        await destination.command("migrate-incoming", uri=uri)
        await source.command("migrate", uri=uri)
        await destination.wait_for_event("RESUME", 300)
        await until(lambda: "armed_threshold_bytes" in agent.space("destination"), 180)
        assert await wait_until_armed(agent, destination) > 6 * MIB
        await destination.stop_writes_at(None)
        await source.stop()
        await agent.until("used 21299KiB", vm="destination")
        assert agent.levels() == ["used 1638KiB", "used 6553KiB", "used 11468KiB", "used 16384KiB", "used 21299KiB"]
        assert agent.levels(vm="destination", detected_by="event")
        assert agent.levels("resolved") == []


async def test_the_source_of_a_failed_migration_is_still_monitored(folder: Path) -> None:
    await make_qcow2(f"{folder}/shared.qcow2", 32 * MIB)
    shared: dict[str, Any] = {"driver": "file", "filename": f"{folder}/shared.qcow2"}
    async with (
        AlertWatcher(folder, levels=["used 6553KiB", "used 11468KiB", "used 16384KiB"], poll=1) as agent,
        thin_guest(folder, "source", disk_mib=32, storage=shared, extra=["-S"]) as source,
    ):
        await wait_until_armed(agent, source)
        incoming = {"storage": shared, "extra": ["-incoming", "defer"]}
        async with thin_guest(folder, "destination", identity=source.uuid, disk_mib=32, **incoming) as destination:
            await until(lambda: len(agent.app.snapshot.monitors) == 2, 180)
            await source.command("cont")
            await agent.until("used 6553KiB", vm="source")
            assert await destination.slot() == 0, "the destination writes nothing yet"
        await agent.until("used 16384KiB", vm="source")
        assert agent.levels() == ["used 6553KiB", "used 11468KiB", "used 16384KiB"]
        assert agent.levels("resolved") == []


async def test_unplugging_a_disk_resolves_its_alerts(folder: Path) -> None:
    await make_qcow2(f"{folder}/disk1.qcow2", 16 * MIB)
    await run("qemu-io", "-f", "qcow2", "-c", "write 0 14M", f"{folder}/disk1.qcow2")
    node = f"driver=qcow2,node-name=disk1-format,file.driver=file,file.node-name=disk1-storage,file.filename={folder}/disk1.qcow2"
    device = ["-device", "virtio-scsi-pci", "-device", "scsi-hd,id=disk1,drive=disk1-format"]
    async with (
        thin_guest(folder, span_mib=1, pause_seconds=1, extra=["-blockdev", node, *device]) as guest,
        AlertWatcher(folder, levels=["used 12MiB"], poll=60) as agent,
    ):
        await agent.until("used 12MiB", subject="disk1", detected_by="level")
        await guest.command("device_del", id="disk1")
        await guest.wait_for_event("DEVICE_DELETED")
        await agent.until("used 12MiB", "resolved", subject="disk1", resolved_by="unplugged")
        await until(lambda: not agent.space(guest.name, "disk1") and agent.space(guest.name, "disk0"), 180)


async def test_disk_full_is_critical_until_the_guest_resumes(folder: Path) -> None:
    options: dict[str, Any] = {"faults": [NO_SPACE], "disk_options": "werror=stop", "span_mib": 8, "extra": ["-S"]}
    async with AlertWatcher(folder, levels=["used 12MiB"], poll=60) as agent, thin_guest(folder, **options) as guest:
        await until(lambda: agent.space(guest.name), 180)
        await guest.command("cont")
        await until(lambda: agent.alerts, 180)
        (alert,) = agent.alerts
        assert (alert["alert"], alert["state"], alert["severitytext"]) == ("disk_full", "firing", "FATAL")
        assert (alert["subject"], alert["detected_by"], alert["measure"]) == ("disk0", "enospc", "allocated")
        await guest.command("cont")
        await until(lambda: len(agent.alerts) > 1, 180)
        assert (agent.alerts[1]["state"], agent.alerts[1]["resolved_by"]) == ("resolved", "RESUME")
        assert agent.alerts[1]["fingerprint"] == alert["fingerprint"]


async def test_a_guest_paused_before_the_agent_attached_is_reported(folder: Path) -> None:
    options: dict[str, Any] = {"faults": [NO_SPACE], "disk_options": "werror=stop", "span_mib": 8}
    async with thin_guest(folder, **options) as guest:
        await guest.wait_for_event("STOP", 300)
        async with AlertWatcher(folder, levels=["used 12MiB"], poll=60) as agent:
            await until(lambda: agent.alerts, 180)
            (alert,) = agent.alerts
            assert (alert["alert"], alert["detected_by"], alert["severitytext"]) == ("disk_full", "missed", "FATAL")
            assert (alert["subject"], alert["path"]) == ("disk0", f"{folder}/{guest.name}-disk0.qcow2")
            await guest.command("cont")
            await until(lambda: len(agent.alerts) > 1, 180)
            assert (agent.alerts[1]["state"], agent.alerts[1]["resolved_by"]) == ("resolved", "RESUME")
