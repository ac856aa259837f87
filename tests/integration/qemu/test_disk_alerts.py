"""Alerts of full disks name the guest's device, the image's path and its usage, also under a mirror, with -drive and after restarts."""

import asyncio
from pathlib import Path
from typing import Any, Final

import pytest

from tests.integration.qemu.test_write_thresholds import wait_until_armed
from tests.lab.qemus import Qemu
from tests.lab.thin_guests import MIB, AlertWatcher, LoopDevice, ThinGuest, ThinOptions, make_qcow2, run, thin_guest
from tests.lab.waiting import until

SIZE: Final = 4 * MIB
VIRTUAL_MIB: Final = 64

needs_loop = pytest.mark.skipif(not LoopDevice.is_available(), reason="only root can make loop devices")


class LegacyDriveGuest(ThinGuest):
    """A guest whose disk is configured by `-drive`: QEMU names the backend `drive0` in events."""

    async def _disk0_arguments(self) -> list[str]:
        assert self.options.storage is not None
        drive = f"if=none,id=drive0,format=qcow2,werror=stop,file={self.options.storage['filename']}"
        return ["-drive", drive, "-device", "virtio-blk-pci,id=disk0,drive=drive0"]


async def start_mirror(guest: ThinGuest) -> None:
    """Start a mirror that does not end: its filter becomes the top node of the disk."""
    target = {"driver": "null-co", "node-name": "target", "size": VIRTUAL_MIB * MIB}
    await guest.command("blockdev-add", **target)
    job = {"job_id": "m", "device": "disk0-format", "target": "target", "sync": "full", "speed": 1}
    await guest.command("blockdev-mirror", **job)


async def wait_for_full_disk_alert(agent: AlertWatcher, path: str) -> dict[str, Any]:
    """Wait for the alert of a full disk, check what it names, and return it."""
    await until(lambda: [alert for alert in agent.alerts if alert["alert"] == "disk_full"], 180)
    alert = next(alert for alert in agent.alerts if alert["alert"] == "disk_full")
    assert (alert["subject"], alert["path"], alert["state"]) == ("disk0", path, "firing")
    assert alert["limit_bytes"] == SIZE
    assert "used_bytes" in alert  # of the last poll: a fast guest fills the whole device after it
    await until(lambda: agent.space("vm1").get("used_bytes", 0) >= SIZE // 2, 180)
    return alert


@needs_loop
@pytest.mark.parametrize("is_mirrored", [False, True])
@pytest.mark.parametrize("is_attached", [True, False])
async def test_a_full_disk_is_named_under_a_mirror_and_at_attach(
    folder: Path,
    qemu: Qemu,
    is_mirrored: bool,  # noqa: FBT001 - a table
    is_attached: bool,  # noqa: FBT001 - a table
) -> None:
    async with LoopDevice(folder / "lv.raw", SIZE) as loop:
        await make_qcow2(loop.path, VIRTUAL_MIB * MIB)
        storage = {"driver": "host_device", "filename": loop.path}
        options: dict[str, Any] = {"disk_mib": VIRTUAL_MIB, "storage": storage, "disk_options": "werror=stop"}
        options |= {"binary": qemu.binary, "extra": ["-S"]}
        agent = AlertWatcher(folder, mode="observe", levels=["99%"], poll=0.5)
        async with thin_guest(folder, **options) as guest:
            if is_mirrored:
                await start_mirror(guest)
            if not is_attached:
                await guest.command("cont")
                await guest.wait_for_event("STOP", 180)
            async with agent:
                if is_attached:
                    await agent.until_attached()
                    await guest.command("cont")
                alert = await wait_for_full_disk_alert(agent, loop.path)
                assert alert["detected_by"] == ("enospc" if is_attached else "missed")
                await loop.extend(2 * SIZE)
                await guest.command("cont")
                await until(lambda: len([a for a in agent.alerts if a["alert"] == "disk_full"]) > 1, 180)


@needs_loop
async def test_a_full_legacy_drive_is_named_by_its_device(folder: Path, qemu: Qemu) -> None:
    async with LoopDevice(folder / "lv.raw", SIZE) as loop:
        await make_qcow2(loop.path, VIRTUAL_MIB * MIB)
        options = ThinOptions(disk_mib=VIRTUAL_MIB, storage={"filename": loop.path}, binary=qemu.binary, extra=["-S"])
        async with (
            LegacyDriveGuest(folder, "vm1", options) as guest,
            AlertWatcher(folder, mode="observe", poll=0.2) as agent,
        ):
            await agent.until_attached()
            await guest.command("cont")
            await wait_for_full_disk_alert(agent, loop.path)


@needs_loop
async def test_a_nearly_full_disk_fires_its_alerts_again_after_a_power_cycle(folder: Path) -> None:
    async with LoopDevice(folder / "lv.raw", SIZE) as loop:
        await make_qcow2(loop.path, VIRTUAL_MIB * MIB)
        storage = {"driver": "host_device", "filename": loop.path}
        options: dict[str, Any] = {"disk_mib": VIRTUAL_MIB, "storage": storage, "disk_options": "werror=stop"}
        async with AlertWatcher(folder, mode="observe", levels=["50%", "90%"], poll=0.2) as agent:
            async with thin_guest(folder, **options) as guest:
                await agent.until("90%")
                used = agent.space(guest.name)["used_bytes"]
            await agent.until("90%", "resolved", resolved_by="vm_gone")
            async with thin_guest(folder, identity=guest.uuid, extra=["-S"], **options) as guest:
                await until(lambda: agent.levels() == ["50%", "90%"] * 2, 180)
                disks = {disk["qdev"]: disk for disk in await guest.command("query-blockstats")}
                (disk,) = [disk for name, disk in disks.items() if "disk0" in name]
                assert disk["parent"]["stats"]["wr_highest_offset"] == 0, "QEMU counts from 0 again"
                await until(lambda: agent.space(guest.name).get("used_bytes", 0) >= used, 180)
        assert agent.alternates()


async def test_a_commit_that_exceeds_the_agents_threshold_of_a_backing_image_alerts(folder: Path) -> None:
    async with (
        thin_guest(folder, disk_mib=24, extra=["-S"]) as guest,
        AlertWatcher(folder, levels=["used 5MiB"], poll=0.2) as agent,
    ):
        threshold = await wait_until_armed(agent, guest)
        base = (await guest.nodes())["disk0-storage"]["file"]
        await guest.command(
            "blockdev-snapshot-sync",
            node_name="disk0-format",
            snapshot_file=f"{folder}/overlay.qcow2",
            snapshot_node_name="overlay",
            format="qcow2",
        )
        await guest.command("cont")
        await until(lambda: agent.space(guest.name).get("used_bytes", 0) > 10 * MIB, 180)
        await guest.command("block-commit", job_id="c", device="overlay", speed=0)
        await until(lambda: [a for a in agent.alerts if a.get("level") == f"threshold {threshold}"], 180)
        alert = next(alert for alert in agent.alerts if alert.get("level") == f"threshold {threshold}")
        assert (alert["owner"], alert["layer"], alert["subject"], alert["path"]) == ("agent", "backing", "disk0", base)


@needs_loop
async def test_a_commit_that_runs_out_of_space_fires_the_alert_of_a_failed_job(folder: Path) -> None:
    async with LoopDevice(folder / "lv.raw", SIZE) as loop:
        await make_qcow2(loop.path, VIRTUAL_MIB * MIB)
        await run("qemu-img", "create", "-q", "-f", "qcow2", "-b", loop.path, "-F", "qcow2", f"{folder}/top.qcow2")
        await run("qemu-io", "-f", "qcow2", "-c", "write 0 16M", f"{folder}/top.qcow2")
        storage = {"driver": "file", "filename": f"{folder}/top.qcow2"}
        async with (
            thin_guest(folder, storage=storage, disk_mib=VIRTUAL_MIB, extra=["-S"]) as guest,
            AlertWatcher(folder, mode="observe", poll=0.5) as agent,
        ):
            await until(lambda: agent.space(guest.name), 180)
            await guest.command("block-commit", job_id="c", device="disk0-format", on_error="report")
            await until(lambda: [alert for alert in agent.alerts if alert["alert"] == "job_failed"], 180)
            (alert,) = [alert for alert in agent.alerts if alert["alert"] == "job_failed"]
            assert (alert["subject"], alert["error"]) == ("c", "No space left on device")


async def test_a_reset_does_not_resolve_the_alert_of_a_full_disk(folder: Path) -> None:
    no_space = {"event": "write_aio", "iotype": "write", "errno": 28, "once": True}
    options: dict[str, Any] = {"faults": [no_space], "disk_options": "werror=stop", "span_mib": 8}
    async with AlertWatcher(folder, mode="observe", poll=0.2) as agent, thin_guest(folder, **options) as guest:
        await until(lambda: agent.alerts, 180)
        await guest.command("system_reset")
        await guest.wait_for_event("RESET")
        assert (await guest.command("query-status"))["status"] == "prelaunch"
        await asyncio.sleep(1.5)  # several polls
        assert [alert["state"] for alert in agent.alerts] == ["firing"]
        await guest.command("cont")
        await until(lambda: len(agent.alerts) > 1, 180)
        assert [alert["state"] for alert in agent.alerts] == ["firing", "resolved"]
