"""Pools under real guests: the figures of a small file system, the alert before the guest is paused, and one alert for many guests."""

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from agent.alerts.pool_usage import PoolUsage
from tests.integration.qemu.test_pool_file_systems import SLICE_SECONDS, WINDOW_SECONDS
from tests.integration.qemu.test_write_thresholds import wait_until_armed
from tests.lab.steady_writer import SteadyWriter
from tests.lab.thin_guests import MIB, AlertWatcher, make_qcow2, run, thin_guest
from tests.lab.waiting import until

SIZE: Final = 60 * MIB
FILLED: Final = 34 * MIB
"""Bytes of the file system that another file takes."""
BYTES_PER_SECOND: Final = MIB

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount file systems")


@contextlib.asynccontextmanager
async def small_file_system(folder: Path, size: int = SIZE) -> AsyncIterator[Path]:
    """Mount a tmpfs of this size; yield its mount point."""
    point = folder / "pool"
    point.mkdir()
    await run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(point))
    try:
        yield point
    finally:
        await run("umount", "--lazy", str(point))


def pool_alerts(agent: AlertWatcher, name: str = "pool_filling") -> list[dict[str, Any]]:
    return [alert for alert in agent.alerts if alert["alert"] == name]


def pool_of(agent: AlertWatcher, point: Path) -> PoolUsage:
    return next(usage for usage in agent.app.storage.registry if usage.name == str(point))


async def image(point: Path, name: str, mib: int = 1024) -> dict[str, Any]:
    """Create a qcow2 image; return the options of its storage node."""
    path = f"{point}/{name}.qcow2"
    await make_qcow2(path, mib * MIB)
    return {"driver": "file", "filename": path}


@needs_root
async def test_a_guest_on_a_small_file_system_is_announced_before_it_is_paused(folder: Path) -> None:
    async with small_file_system(folder) as point:
        storage = await image(point, "a")
        await run("fallocate", "-l", str(FILLED), f"{point}/other")
        options: dict[str, Any] = {"disk_mib": 1024, "disk_options": "werror=stop,share-rw=on", "storage": storage}
        async with (
            AlertWatcher(folder, mode="observe", levels=["80%", "90%"], poll=1) as agent,
            thin_guest(folder, write_kib=32, pause_seconds=2, **options) as guest,
        ):
            forecasts: dict[float, tuple[int, float]] = {}

            async def is_paused() -> bool:
                for usage in agent.app.storage.registry:
                    if usage.name == str(point) and usage.time_to_full is not None and usage.free is not None:
                        forecasts[usage.read_at] = usage.free, usage.time_to_full
                return bool((await guest.command("query-status"))["status"] == "io-error")

            await agent.until_attached()
            await until(lambda: pools(agent, point) and pool_of(agent, point).reading, 180)
            space, reading = agent.space(guest.name), pool_of(agent, point).reading
            assert reading is not None
            assert (reading.size_bytes, space["limited_by"], space["pool"]) == (SIZE, "pool", str(point))
            # The guest's own rate depends on the load of the host. If the host stops this process, it stops the writer, too.
            async with SteadyWriter(guest, folder, BYTES_PER_SECOND) as writer:
                await until(is_paused, 400)
                full_at = await writer.wait_until_full()
            await until(lambda: [alert for alert in agent.alerts if alert["alert"] == "disk_full"], 180)
            (full,) = [alert for alert in agent.alerts if alert["alert"] == "disk_full"]
            levels = [alert["level"] for alert in pool_alerts(agent) if alert["state"] == "firing"]
            assert levels[-2:] == ["85%", "95%"]
            assert full["limited_by"] == "pool"
            assert full["free_bytes"] < SIZE * 0.04
            assert not [alert for alert in agent.alerts if alert["alert"] == "write_threshold"]
            for alert in pool_alerts(agent):
                if alert.get("level") in ("85%", "95%"):
                    at = int(alert["level"][:2]) / 100
                    assert at < alert["used_bytes"] / SIZE < at + 0.04, "the alert came late"
            late = {at: forecast for at, forecast in forecasts.items() if 5 < full_at - at < 12}
            assert late, forecasts
            for at, (free, seconds) in late.items():
                slowest, fastest = writer.speeds(at - WINDOW_SECONDS, SLICE_SECONDS)
                assert 0.9 * free / fastest <= seconds <= 1.1 * free / slowest, forecasts


@needs_root
async def test_a_write_threshold_announces_the_level_of_a_pool_at_once(folder: Path) -> None:
    async with small_file_system(folder) as point:
        options: dict[str, Any] = {"disk_mib": 1024, "disk_options": "werror=stop", "pause_seconds": 0.01}
        async with (
            AlertWatcher(folder, mode="arm", poll=60) as agent,
            thin_guest(folder, storage=await image(point, "a"), extra=["-S"], **options) as guest,
        ):
            threshold = await wait_until_armed(agent, guest)
            assert abs(threshold - SIZE * 0.85) < SIZE * 0.05, "the offset at which the pool is at its first level"
            await guest.command("cont")
            await guest.wait_for_event("BLOCK_WRITE_THRESHOLD", 300)
            await until(lambda: any(alert["level"] == "85%" for alert in pool_alerts(agent)), 180)
            assert not [alert for alert in agent.alerts if alert["alert"] == "write_threshold"]


@needs_root
async def test_six_guests_on_one_pool_have_one_alert_that_names_them(folder: Path) -> None:
    async with small_file_system(folder) as point, contextlib.AsyncExitStack() as guests:
        agent = await guests.enter_async_context(AlertWatcher(folder, mode="observe", levels=["50%"], poll=1))
        for number in range(6):
            storage = await image(point, str(number))
            await guests.enter_async_context(
                thin_guest(folder, f"vm{number}", storage=storage, disk_mib=1024, memory_mib=16, extra=["-S"])
            )
        await until(lambda: len(pool_of(agent, point).vm_names) == 6 if pools(agent, point) else False, 300)
        await run("fallocate", "-l", str(int(SIZE * 0.9)), f"{point}/other")
        await until(lambda: any(alert["level"] == "85%" for alert in pool_alerts(agent)), 180)
        (alert,) = [alert for alert in pool_alerts(agent) if alert["level"] == "85%"]
        assert alert["vm_names"] == [f"vm{number}" for number in range(6)]
        assert (alert["subject"], alert["vm"], alert["vms"]) == (str(point), "", 6)
        assert not [alert for alert in agent.alerts if alert["alert"] == "write_threshold"]
        (point / "other").unlink()
        await until(
            lambda: any(alert["state"] == "resolved" for alert in pool_alerts(agent) if alert["level"] == "85%"), 60
        )


def pools(agent: AlertWatcher, point: Path) -> list[PoolUsage]:
    return [usage for usage in agent.app.storage.registry if usage.name == str(point)]


@needs_root
async def test_a_nearly_full_disk_with_room_in_its_pool_fires_nothing(folder: Path) -> None:
    async with small_file_system(folder, 1024 * MIB) as point:
        storage = await image(point, "a", 100)
        await run("qemu-io", "-f", "qcow2", "-c", "write 0 97M", storage["filename"])
        async with (
            AlertWatcher(folder, mode="observe", levels=["80%", "90%", "95%"], poll=0.2, resync=1) as agent,
            thin_guest(folder, storage=storage, disk_mib=100, extra=["-S"]) as guest,
        ):
            await until(lambda: agent.space(guest.name).get("limited_by") == "virtual_size", 180)
            runs = agent.app.metrics.collector_runs
            await until(lambda: runs["nodes", "ok"] > 3, 180)
            assert agent.space(guest.name)["free_bytes"] <= 3 * MIB
            assert agent.alerts == []


@needs_root
async def test_a_file_past_its_virtual_size_is_limited_by_its_pool(folder: Path) -> None:
    async with small_file_system(folder, 1024 * MIB) as point:
        storage = await image(point, "a", 64)
        for number in range(2):
            await run("qemu-io", "-f", "qcow2", "-c", f"write -P {number + 1} 0 60M", storage["filename"])
            await run("qemu-img", "snapshot", "-c", f"s{number}", storage["filename"])
        async with (
            AlertWatcher(folder, mode="observe", levels=["80%", "90%", "95%"], poll=0.2, resync=1) as agent,
            thin_guest(folder, storage=storage, disk_mib=64, extra=["-S"]) as guest,
        ):
            await until(lambda: agent.space(guest.name).get("limited_by") == "pool", 180)
            space = agent.space(guest.name)
            assert space["used_bytes"] > 120 * MIB
            assert space["limit_bytes"] > 900 * MIB
            assert agent.alerts == []
