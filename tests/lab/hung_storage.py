"""Storage that hangs while a test stops its server: a FUSE export, and a block device on it."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from tests.lab.thin_guests import LoopDevice, run
from tests.lab.waiting import until

FUSE: Final = Path("/dev/fuse")
LONGEST_REPLY_SECONDS: Final = 120.0
"""Maximum time of a reply of QEMU while its storage hangs, on a busy machine. A command that accesses the storage gets no reply until
the hang ends."""


@contextlib.asynccontextmanager
async def fuse(folder: Path) -> AsyncIterator[tuple[Path, asyncio.subprocess.Process]]:
    """Serve a file of 16 MiB by FUSE. Yield its path and the FUSE process. While a test stops this process, the storage hangs."""
    if not FUSE.exists():
        pytest.skip("/dev/fuse is missing")
    backing, served = folder / "backing", folder / "served"
    with backing.open("wb") as file:
        file.truncate(16 << 20)
    served.touch()
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", "qemu-storage-daemon"),
        *("--blockdev", f"file,node-name=served,filename={backing}"),
        *("--export", f"fuse,id=served,node-name=served,mountpoint={served},writable=on"),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await until(lambda: served.stat().st_size > 0 or process.returncode is not None)
        if process.returncode is not None:
            assert process.stderr is not None
            pytest.skip(f"FUSE does not work here: {(await process.stderr.read()).decode()}")
        yield served, process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.terminate()
        await process.wait()


class WriterToDevice(Guest):
    """A guest whose `disk0` is in the extra arguments."""

    async def _disk0_arguments(self) -> list[str]:
        return []


def on_fuse(folder: Path, served: Path, extra: Sequence[str] = ()) -> Guest:
    """Return a guest with an idle disk on the FUSE export; `extra` are further arguments of QEMU."""
    disk = ("-blockdev", f"file,node-name=hung,filename={served}", "-device", "virtio-blk-pci,drive=hung,id=hung")
    return Guest(folder, "vm1", GuestOptions(kind=GuestKind.WRITER, extra=(*disk, *extra)))


async def longest_reply(guest: Guest, seconds: float) -> float:
    """Return the longest time that `query-status` took within some seconds.

    Raises:
        TimeoutError: QEMU does not reply within `LONGEST_REPLY_SECONDS`.
    """
    longest, end = 0.0, time.monotonic() + seconds
    while (started := time.monotonic()) < end:
        async with asyncio.timeout(LONGEST_REPLY_SECONDS):
            await guest.command("query-status")
        longest = max(longest, time.monotonic() - started)
        await asyncio.sleep(0.01)
    return longest


@contextlib.asynccontextmanager
async def device_on(served: Path) -> AsyncIterator[str]:
    """Make a loop device of the FUSE export; yield its path. The device hangs while the storage hangs."""
    if not LoopDevice.is_available():
        pytest.skip("loop devices need root")
    path = await run("losetup", "--find", "--show", str(served))
    try:
        yield path
    finally:
        await run("losetup", "--detach", path)
