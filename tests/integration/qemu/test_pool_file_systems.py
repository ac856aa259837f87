"""Pools on real file systems: their figures equal those of the system's tools, and alerts and forecasts come before the guest pauses."""

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from agent.cli.demo.guest import until
from tests.lab.file_systems import FILE_SYSTEMS, UNPRIVILEGED, file_system, unprivileged_qemu
from tests.lab.thin_guests import MIB, AlertWatcher, Data, ThinGuest, run, thin_guest

_log = logging.getLogger(__name__)

LEVELS: Final = ("free 24MiB", "free 16MiB")
RESERVE: Final = 2 * MIB
"""What XFS and Btrfs keep for their own metadata, although statvfs counts it as free."""
SPEED: Final = MIB // 2
"""Bytes that a guest writes in a second."""
ROOM: Final = 32 * MIB
"""Free space when a guest starts to write."""


def watcher(folder: Path, *levels: str) -> AlertWatcher:
    return AlertWatcher(folder, mode="observe", poll=0.5, resync=2, storage=1, pool_levels=levels)


async def image(directory: Path, name: str = "vm1", *, form: str = "qcow2", mib: int = 1024) -> dict[str, Any]:
    """Create an image that an unprivileged QEMU may write; return the options of its storage node."""
    path = directory / f"{name}.{form}"
    await run("qemu-img", "create", "-q", "-f", form, str(path), f"{mib}M")
    os.chown(path, UNPRIVILEGED, UNPRIVILEGED)
    return {"driver": "file", "filename": str(path)}


async def limit_writes(guest: ThinGuest) -> None:
    """Have the guest write at a steady speed, whatever the load of the machine is."""
    line = f"block_set_io_throttle /machine/peripheral/disk0/virtio-backend 0 0 {SPEED} 0 0 0"
    assert await guest.command("human-monitor-command", command_line=line) == ""


def fill(directory: Path, room: int) -> None:
    """Write a file that leaves this many bytes free."""
    status = os.statvfs(directory)
    with (directory / "other").open("wb") as file:
        for _ in range((status.f_bavail * status.f_frsize - room) // MIB):
            file.write(os.urandom(MIB))


def storage_of(agent: AlertWatcher, vm: str = "vm1", layer: str = "storage") -> Data:
    return dict(agent.values(vm, "block_storage").get(("disk0", layer), {}))


def pool_of(agent: AlertWatcher, vm: str = "vm1", layer: str = "storage") -> Data:
    """Return the last figures of the pool of an image; empty if there are none."""
    storage = storage_of(agent, vm, layer)
    return dict(agent.app.snapshot.host.get("pool", {}).get((storage.get("pool", ""), storage.get("kind", "")), {}))


async def fresh(values: Callable[[], Data]) -> Data:
    """Wait until figures change, and return them: they are of this moment then."""
    before = values()
    await until(lambda: values() != before, 30)
    return values()


def allocated(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.iterdir() if path.is_file())


async def check_figures(agent: AlertWatcher, guest: ThinGuest, images: Path) -> None:
    """Stop the guest and compare the pool's figures with those of df, and the image's with those of qemu-img."""
    await guest.command("stop")
    await guest.wait_for_event("STOP")
    await run("sync", "--file-system", str(images))
    status = os.statvfs(images)

    def is_equal() -> bool:
        pool = pool_of(agent)
        return (pool["size_bytes"], pool["free_bytes"]) == (
            status.f_blocks * status.f_frsize,
            status.f_bavail * status.f_frsize,
        )

    await until(is_equal, 30)
    df = (await run("df", "--block-size=1", "--output=size,avail", str(images))).split()
    pool = pool_of(agent)
    assert [str(pool["size_bytes"]), str(pool["free_bytes"])] == df[2:]
    info = json.loads(await run("qemu-img", "info", "-U", "--output=json", str(images / "vm1.qcow2")))
    await until(lambda: agent.space("vm1")["used_bytes"] == info["actual-size"], 30)


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
async def test_a_filling_pool_is_reported_before_the_guest_pauses(folder: Path, kind: str) -> None:
    async with file_system(kind, folder) as images:
        await asyncio.to_thread(fill, images, ROOM)
        options: dict[str, Any] = {
            "disk_mib": 1024,
            "storage": await image(images),
            "disk_options": "werror=stop",
            "pause_seconds": 0.001,
        }
        program = unprivileged_qemu(folder)
        async with (
            thin_guest(folder, write_kib=63, binary=program, **options) as guest,
            watcher(folder, *LEVELS) as agent,
        ):
            await limit_writes(guest)
            await until(lambda: LEVELS[0] in agent.levels(alert="pool_filling"), 240)
            await check_figures(agent, guest, images)
            await guest.command("cont")
            await until(lambda: LEVELS[1] in agent.levels(alert="pool_filling"), 240)
            pool = await fresh(lambda: pool_of(agent))
            at, before = time.time(), allocated(images)
            space = await fresh(lambda: agent.space("vm1"))
            later = allocated(images)

            async def is_full() -> bool:
                return bool((await guest.command("query-status"))["status"] == "io-error")

            await until(is_full, 240)  # the check of the figures stopped the guest, too
            seconds, end = time.time() - at, allocated(images)
            await until(lambda: agent.event_times("STOP")[-1] > at, 20)
        stopped = agent.event_times("STOP")[-1]
        fired = [alert for alert in agent.alerts if alert["alert"] == "pool_filling"]
        predicted = pool["time_to_full_seconds"]
        figures = (
            kind,
            pool["free_bytes"],
            end - before,
            space["free_bytes"],
            end - later,
            predicted,
            round(seconds, 1),
        )
        _log.info("%s: free %d, then written %d; disk free %d, then written %d; predicted %s s, then %s s", *figures)
        assert [alert["level"] for alert in fired] == list(LEVELS)
        assert all(alert["since_timestamp_seconds"] < stopped for alert in fired)
        assert space["limited_by"] == "pool"
        assert pool["free_bytes"] == pytest.approx(end - before, rel=0.1, abs=RESERVE)
        assert space["free_bytes"] == pytest.approx(end - later, rel=0.1, abs=RESERVE)
        assert predicted == pytest.approx(seconds, rel=0.5)  # 0.1 on a quiet machine
