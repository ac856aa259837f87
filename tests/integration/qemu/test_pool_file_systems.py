"""Pools on real file systems: their figures equal those of the system's tools, and alerts and forecasts come before the guest pauses.

All file systems fill up at the same time, each by a guest of its own, and one agent watches them.
"""

import asyncio
import json
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from agent.alerts.pool_usage import PoolUsage
from agent.host.pools.filesystem_reader import FileSystemReader
from tests.lab.file_systems import FILE_SYSTEMS, UNPRIVILEGED, file_system, unprivileged_qemu
from tests.lab.steady_writer import SteadyWriter
from tests.lab.thin_guests import MIB, AlertWatcher, Data, ThinGuest, run, thin_guest
from tests.lab.waiting import until

_log = logging.getLogger(__name__)

pytestmark = pytest.mark.asyncio(loop_scope="module")

LEVELS: Final = ("free 50MiB", "free 28MiB")
ROOM: Final = 56 * MIB
"""Free space when a guest starts to write."""
BYTES_PER_SECOND: Final = MIB

WINDOW_SECONDS: Final = 20.0
"""How far the forecasts of the test look back at most."""
SLICE_SECONDS: Final = 5.0
"""Half of the shortest window of a forecast. A burst in the middle of a window counts more than one at an end."""

PAUSE_SECONDS: Final = 0.055
"""Time between two writes of 63 KiB: one tick of the guest's timer, through which its CPU sleeps."""


def watcher(folder: Path, *levels: str) -> AlertWatcher:
    return AlertWatcher(folder, mode="observe", poll=0.5, resync=2, storage=1, pool_levels=levels)


async def image(directory: Path, name: str = "vm1", *, form: str = "qcow2", mib: int = 1024) -> dict[str, Any]:
    """Create an image that an unprivileged QEMU may write; return the options of its storage node."""
    path = directory / f"{name}.{form}"
    await run("qemu-img", "create", "-q", "-f", form, str(path), f"{mib}M")
    os.chown(path, UNPRIVILEGED, UNPRIVILEGED)
    return {"driver": "file", "filename": str(path)}


async def fill(directory: Path, room: int) -> None:
    """Allocate a file that leaves this many bytes free."""
    await run("sync", "--file-system", str(directory))
    status = os.statvfs(directory)
    size = status.f_bavail * status.f_frsize - room
    if size > 0:
        await run("fallocate", "--length", str(size), str(directory / "other"))
    await run("sync", "--file-system", str(directory))


def storage_of(agent: AlertWatcher, vm: str = "vm1", layer: str = "storage") -> Data:
    return dict(agent.values(vm, "block_storage").get(("disk0", layer), {}))


def pool_of(agent: AlertWatcher, vm: str = "vm1", layer: str = "storage") -> Data:
    """Return the last figures of the pool of an image; empty if there are none."""
    storage = storage_of(agent, vm, layer)
    return dict(
        agent.app.snapshot.host_samples.get("pool", {}).get((storage.get("pool", ""), storage.get("kind", "")), {})
    )


async def fresh(values: Callable[[], Data]) -> Data:
    """Wait until figures change, and return them: they are of this moment then."""
    before = values()
    await until(lambda: values() != before, 180)
    return values()


def allocated(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.iterdir() if path.is_file())


async def check_figures(agent: AlertWatcher, guest: ThinGuest, images: Path) -> None:
    """Stop the guest and compare the pool's figures with those of df, and the image's with those of qemu-img."""
    await guest.command("stop")
    await guest.wait_for_event("STOP")
    await run("sync", "--file-system", str(images))

    async def is_equal() -> bool:
        """Read both again, because a file system may write metadata later."""
        df = (await run("df", "--block-size=1", "--output=size,avail", str(images))).split()
        info = json.loads(await run("qemu-img", "info", "-U", "--output=json", str(images / f"{guest.name}.qcow2")))
        pool, space = pool_of(agent, guest.name), agent.space(guest.name)
        return [str(pool.get("size_bytes")), str(pool.get("free_bytes"))] == df[2:] and space.get("used_bytes") == info[
            "actual-size"
        ]

    await until(is_equal, 180)
    await guest.command("cont")


@dataclass(frozen=True, slots=True)
class Run:
    """The forecast for a pool that was nearly full, and the events that followed.

    Attributes:
        levels: the levels that fired before the guest paused, in order.
        limited_by: what limits the disk.
        pool_free: free bytes of the pool.
        disk_free: bytes until the disk is full.
        written: bytes that the image then grew, counted from the reading of the pool and from the one of the disk.
        forecast: forecast seconds until the pool is full.
        seconds: seconds until a write failed because the pool was full.
        speeds: the lowest and the highest speed of the writer from the start of the forecast's window.
    """

    levels: list[str]
    limited_by: str
    pool_free: int
    disk_free: int
    written: tuple[int, int]
    forecast: float
    seconds: float
    speeds: tuple[float, float]


def usage_of(agent: AlertWatcher, images: Path) -> PoolUsage:
    return next(usage for usage in agent.app.storage.registry if usage.name == str(images))


async def fill_pool(agent: AlertWatcher, guest: ThinGuest, images: Path) -> Run:
    """Fill the file system of a guest steadily through its QEMU. The guest writes little, and pauses at its first write without room."""
    vm, name = guest.name, str(images)

    def levels() -> list[str]:
        return agent.levels(alert="pool_filling", pool=name)

    await until(lambda: agent.space(vm) and pool_of(agent, vm), 400)
    await guest.wait_until_booted(240)
    await check_figures(agent, guest, images)
    async with SteadyWriter(guest, guest.folder, BYTES_PER_SECOND) as writer:
        await until(lambda: LEVELS[-1] in levels(), 400)
        usage = usage_of(agent, images)
        await run("sync", "--file-system", str(images))  # on a busy host, Btrfs commits later than after its second
        read_at = usage.read_at
        await until(lambda: usage.read_at > read_at, 300)
        before = allocated(images)
        at, free, forecast = usage.read_at, usage.free, usage.time_to_full
        await run("sync", "--file-system", str(images))
        space = await fresh(lambda: agent.space(vm))
        later = allocated(images)
        await guest.wait_for_event("BLOCK_IO_ERROR", 400)
        full_at, end = await writer.wait_until_full(), allocated(images)
    assert free is not None
    assert forecast is not None
    return Run(
        levels(),
        space["limited_by"],
        free,
        space["free_bytes"],
        (end - before, end - later),
        forecast,
        full_at - at,
        writer.speeds(at - WINDOW_SECONDS, SLICE_SECONDS),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runs() -> AsyncIterator[dict[str, Run | str]]:
    """Fill all file systems; yield what happened, or why a file system cannot be made here."""
    skipped: dict[str, Run | str] = {}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qmp-")))
        program, guests = unprivileged_qemu(folder), {}
        for kind in FILE_SYSTEMS:
            (folder / kind).mkdir()
            try:
                images = await stack.enter_async_context(file_system(kind, folder / kind))
            except pytest.skip.Exception as reason:
                skipped[kind] = str(reason)
                continue
            options: dict[str, Any] = {"storage": await image(images, kind), "disk_options": "werror=stop,share-rw=on"}
            await fill(images, ROOM)
            options |= {"disk_mib": 1024, "pause_seconds": 2, "binary": program}
            guests[kind] = await stack.enter_async_context(thin_guest(folder, kind, **options)), images
        agent = await stack.enter_async_context(watcher(folder, *LEVELS))
        done = await asyncio.gather(*(fill_pool(agent, guest, images) for guest, images in guests.values()))
        yield skipped | dict(zip(guests, done, strict=True))


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
async def test_a_filling_pool_is_reported_before_the_guest_pauses(runs: dict[str, Run | str], kind: str) -> None:
    run = runs[kind]
    if isinstance(run, str):
        pytest.skip(run)
    _log.info("%s: %s", kind, run)
    assert run.levels == list(LEVELS)
    assert run.limited_by == "pool"
    assert run.pool_free == pytest.approx(run.written[0], rel=0.1)
    assert run.disk_free == pytest.approx(run.written[1], rel=0.1)
    # Both bounds are the seconds until the pool was full within 10 %, unless the host stopped the writer for a while.
    slowest, fastest = run.speeds
    assert 0.9 * run.written[0] / fastest <= run.forecast <= 1.1 * run.pool_free / slowest


async def test_a_file_system_that_becomes_read_only_under_a_guest_is_reported(folder: Path) -> None:
    async with file_system("ext4", folder) as images:
        device = (await run("findmnt", "--noheadings", "--output=SOURCE", str(images))).removeprefix("/dev/")
        await run("mount", "-o", "remount,errors=remount-ro", str(images))
        options: dict[str, Any] = {"storage": await image(images), "disk_mib": 64, "pause_seconds": PAUSE_SECONDS}
        async with thin_guest(folder, **options) as guest, watcher(folder) as agent:
            await guest.wait_until_booted(240)
            await until(lambda: pool_of(agent).get("free_bytes"), 300)
            assert "problem" not in pool_of(agent)
            await run("sh", "-c", f"echo test > /sys/fs/ext4/{device}/trigger_fs_error")
            await until(lambda: pool_of(agent).get("problem") == "read_only", 300)
            await guest.wait_for_event("BLOCK_IO_ERROR", 300)


async def test_data_that_btrfs_has_not_written_back_counts_as_used(folder: Path) -> None:
    async with file_system("btrfs", folder) as images:
        await run("mount", "-o", "remount,commit=300", str(images))
        reader = FileSystemReader(slow_seconds=20, deadline_seconds=20)
        try:
            for number in range(10):
                before = await reader.statvfs(str(images), "0:1")
                (images / f"file{number}").write_bytes(b"x" * (16 * MIB))
                after, status = await reader.statvfs(str(images), "0:1"), os.statvfs(images)
                if status.f_bavail * status.f_frsize == before.available_bytes:
                    break
                # The kernel has written the data back already, because this process had to wait.
                await run("sync", "--file-system", str(images))
            else:
                pytest.fail("the data was written back each time")
            assert before.available_bytes - after.available_bytes == 16 * MIB
            assert before.free_bytes - after.free_bytes == 16 * MIB
            await run("sync", "--file-system", str(images))
            status, after = os.statvfs(images), await reader.statvfs(str(images), "0:1")
            assert after.available_bytes == status.f_bavail * status.f_frsize
        finally:
            await reader.close()
