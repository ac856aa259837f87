"""Write thresholds on a real QEMU with a guest that writes continuously."""

import contextlib
from pathlib import Path
from typing import Any, Final

import pytest

from tests.lab.thin_guests import MIB, AlertWatcher, LoopDevice, ThinGuest, make_qcow2, network_device, thin_guest
from tests.lab.waiting import until

SIZE: Final = 14 * MIB
LEVELS: Final = [f"used {SIZE * percent // 100 // 1024}KiB" for percent in (5, 20, 35, 50, 65, 80, 95)]
"""Levels of used bytes: those of a share of the size do not apply to a file with room in its file system."""
MIRROR_LEVELS: Final = ["used 2MiB", "used 12MiB", "used 14MiB", "used 22MiB"]
SINGLE: Final = 4
"""The number of levels that the guests reach one by one: they write on when the agent has set the next threshold."""
PAUSED: Final[dict[str, Any]] = {"extra": ["-S"]}
"""The guest writes nothing before the test continues it."""


async def wait_until_armed(agent: AlertWatcher, guest: ThinGuest, node: str = "disk0-storage") -> int:
    """Wait until the agent has set a threshold in QEMU's slot, and return it."""
    value = 0

    async def is_set() -> bool:
        nonlocal value
        nodes = await guest.nodes()
        value = nodes[node]["write_threshold"] if node in nodes else 0
        return value != 0 and agent.space(guest.name).get("armed_threshold_bytes") == value

    await until(is_set, 180)
    return value


async def write_to_single_levels(agent: AlertWatcher, guest: ThinGuest) -> None:
    """Let a guest write to one level after the other, and pause it. It waits at each level until the agent has set the next threshold."""
    for number in range(SINGLE):
        await guest.stop_writes_at(await wait_until_armed(agent, guest) + MIB // 4)
        if number == 0:
            await guest.command("cont")
        await agent.until(LEVELS[number], vm=guest.name)
    await guest.command("stop")


async def test_each_level_is_reported_once_under_continuous_writes(folder: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        guests = [await stack.enter_async_context(thin_guest(folder, "file", disk_mib=SIZE // MIB, **PAUSED))]
        nbd = await stack.enter_async_context(network_device(folder / "nbd", SIZE))
        await make_qcow2(f"nbd+unix:///?socket={folder}/nbd", 2 * SIZE)
        guests.append(
            await stack.enter_async_context(thin_guest(folder, "network", disk_mib=28, storage=nbd, **PAUSED))
        )
        if LoopDevice.is_available():
            loop = await stack.enter_async_context(LoopDevice(folder / "lv.raw", SIZE))
            await make_qcow2(loop.path, 2 * SIZE)
            device = {"driver": "host_device", "filename": loop.path}
            guests.append(
                await stack.enter_async_context(thin_guest(folder, "loop", disk_mib=28, storage=device, **PAUSED))
            )
        agent = await stack.enter_async_context(AlertWatcher(folder, levels=LEVELS, poll=60))
        for guest in guests:
            assert 0 < await wait_until_armed(agent, guest) <= SIZE
            assert await guest.slot("disk0-format") == 0, "the storage fills, not the format"
            await write_to_single_levels(agent, guest)
        assert {alert["detected_by"] for alert in agent.alerts} == {"event"}
        for guest in guests:
            await guest.stop_writes_at(SIZE * 96 // 100)  # past the last level, and before the device is full
            await guest.command("cont")
        for guest in guests:
            await agent.until(LEVELS[-1], vm=guest.name)
            await guest.command("stop")  # else it writes until the next poll
            assert agent.levels(vm=guest.name) == LEVELS
            await until(lambda name=guest.name: "armed_threshold_bytes" not in agent.space(name), 180)  # type: ignore[misc]
            assert await guest.slot() == 0
        assert agent.levels("resolved") == []
        for alert in agent.alerts:
            assert (alert["owner"], alert["node"]) == ("agent", "disk0-storage"), alert
            # A fast guest may reach the next level before the agent has set its threshold.
            assert alert["detected_by"] in ("event", "level"), alert
            exceeded = alert["used_bytes"] - alert["level_bytes"]
            assert 0 < exceeded <= 2 * MIB or (alert["detected_by"] == "level" and exceeded >= 0)
            assert alert["severitytext"] == ("FATAL" if alert["level"] == LEVELS[-1] else "WARN")


async def test_observe_mode_detects_levels_by_polls_and_sets_nothing(folder: Path) -> None:
    async with (
        thin_guest(folder, disk_mib=16) as guest,
        AlertWatcher(folder, mode="observe", levels=LEVELS, poll=0.2) as agent,
    ):

        async def has_level() -> bool:
            assert await guest.slot() == 0
            return LEVELS[2] in agent.levels()

        await until(has_level, 180)
        assert agent.levels() == LEVELS[: len(agent.levels())]
        assert {alert["detected_by"] for alert in agent.alerts} == {"level"}


async def test_another_clients_threshold_stays_and_is_reported_as_foreign(folder: Path) -> None:
    foreign = 6 * MIB + 512
    async with thin_guest(folder, disk_mib=24, **PAUSED) as guest:
        await guest.command("block-set-write-threshold", node_name="disk0-storage", write_threshold=foreign)
        async with AlertWatcher(folder, levels=LEVELS, poll=0.2) as agent:
            await agent.until_attached()
            await guest.command("cont")

            async def has_fired() -> bool:
                return await guest.slot() != foreign

            await until(has_fired, 180)
            (event,) = [await guest.wait_for_event("BLOCK_WRITE_THRESHOLD")]
            assert event["data"]["write-threshold"] == foreign, "the threshold was overwritten"
            await agent.until(
                f"threshold {foreign}", owner="other", detected_by="event", layer="storage", subject="disk0"
            )
            await until(lambda: agent.space(guest.name).get("threshold_foreign") is True, 180)
            await agent.until(LEVELS[2], owner="agent", detected_by="level")
            assert await guest.slot() == 0, "the slot belongs to the other client for good"
            assert agent.alternates()


async def test_a_client_that_overwrites_the_threshold_keeps_the_slot(folder: Path) -> None:
    async with (
        thin_guest(folder, disk_mib=24, **PAUSED) as guest,
        AlertWatcher(folder, levels=LEVELS[3:5], poll=0.2) as agent,
    ):
        await wait_until_armed(agent, guest)
        await guest.command("block-set-write-threshold", node_name="disk0-storage", write_threshold=1 << 40)
        await guest.command("cont")
        await agent.until(LEVELS[4])
        assert {alert["detected_by"] for alert in agent.alerts} <= {"level", "missed"}
        assert await guest.slot() == 1 << 40
        assert agent.alternates()


async def test_after_a_snapshot_the_new_storage_is_armed(folder: Path) -> None:
    async with (
        thin_guest(folder, disk_mib=14, **PAUSED) as guest,
        AlertWatcher(folder, levels=LEVELS, poll=0.2) as agent,
    ):
        await wait_until_armed(agent, guest)
        await guest.command("cont")
        await agent.until(LEVELS[1])
        names = set(await guest.nodes())
        # Else the guest may fill the new storage to the level before the agent sees it empty.
        await guest.command("stop")
        await guest.command(
            "blockdev-snapshot-sync",
            node_name="disk0-format",
            snapshot_file=f"{folder}/overlay.qcow2",
            snapshot_node_name="overlay",
            format="qcow2",
        )
        (storage,) = set(await guest.nodes()) - names - {"overlay"}
        assert 0 < await wait_until_armed(agent, guest, storage) < 14 * MIB
        await agent.until(LEVELS[1], "resolved")
        await guest.command("cont")
        await agent.until(LEVELS[5], node=storage)
        assert agent.levels(node=storage, detected_by="event")
        assert agent.levels(owner="other") == []
        assert agent.alternates()


async def test_after_a_mirror_pivot_the_target_is_armed(folder: Path) -> None:
    async with (
        thin_guest(folder, disk_mib=24, **PAUSED) as guest,
        AlertWatcher(folder, levels=MIRROR_LEVELS, poll=60) as agent,
    ):
        await wait_until_armed(agent, guest)
        await guest.stop_writes_at(6 * MIB)
        await guest.command("cont")
        await agent.until(MIRROR_LEVELS[0])
        await make_qcow2(f"{folder}/target.qcow2", 24 * MIB)
        target = {"driver": "file", "filename": f"{folder}/target.qcow2", "node-name": "target-storage"}
        await guest.command("blockdev-add", **{"driver": "qcow2", "node-name": "target-format", "file": target})
        await guest.command("blockdev-mirror", job_id="m", device="disk0-format", target="target-format", sync="full")
        await guest.wait_for_event("BLOCK_JOB_READY", 300)
        await guest.command("job-complete", id="m")
        await guest.wait_for_event("BLOCK_JOB_COMPLETED", 300)
        for level, end in ((1, 13), (2, 16)):
            await wait_until_armed(agent, guest, "target-storage")
            await guest.stop_writes_at(end * MIB)
            await agent.until(MIRROR_LEVELS[level], node="target-storage", detected_by="event")
        assert agent.levels() == MIRROR_LEVELS[:3]
        assert agent.levels("resolved") == []


async def test_a_resized_disk_has_another_limit_after_the_resync(folder: Path) -> None:
    async with (
        thin_guest(folder, disk_mib=16) as guest,
        AlertWatcher(folder, levels=["50%"], poll=60, resync=1) as agent,
    ):
        await until(lambda: agent.space(guest.name).get("limit_bytes") == 16 * MIB, 180)
        await guest.command("block_resize", node_name="disk0-format", size=32 * MIB)
        await until(lambda: agent.space(guest.name).get("limit_bytes") == 32 * MIB, 180)
        assert agent.space(guest.name)["limited_by"] == "virtual_size"
        assert agent.alerts == []


@pytest.mark.skipif(not LoopDevice.is_available(), reason="only root can make loop devices")
async def test_an_extended_device_has_its_levels_moved_by_a_poll(folder: Path) -> None:
    async with LoopDevice(folder / "lv.raw", 4 * MIB) as loop:
        await make_qcow2(loop.path, 64 * MIB)
        device = {"driver": "host_device", "filename": loop.path}
        async with (
            thin_guest(folder, disk_mib=64, span_mib=16, storage=device, disk_options="werror=stop") as guest,
            AlertWatcher(folder, levels=["50%", "90%"], poll=0.2) as agent,
        ):
            await agent.until("90%")
            await until(lambda: [alert for alert in agent.alerts if alert["alert"] == "disk_full"], 180)
            await until(lambda: agent.space(guest.name).get("free_bytes", 1) <= 0, 180)
            await loop.extend(24 * MIB)
            await agent.until("90%", "resolved")
            await agent.until("50%", "resolved")
            assert await wait_until_armed(agent, guest) == 12 * MIB
            await guest.command("cont")
            await agent.until("50%", detected_by="event", level_bytes=12 * MIB, timeout=90)
            assert [alert["state"] for alert in agent.alerts if alert["alert"] == "disk_full"] == ["firing", "resolved"]
            assert agent.alternates()
