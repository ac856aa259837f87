"""Writes to a guest's disk at a steady rate, whatever the load of the host: QEMU executes the writes, and a clock decides when."""

import asyncio
import time
from bisect import bisect_left
from pathlib import Path
from typing import Final, Self

from tests.lab.thin_guests import MIB, ThinGuest

BLOCK_BYTES: Final = 128 << 10

CATCH_UP_SECONDS: Final = 1.0
"""A writer that is further behind its clock skips the rest."""


class SteadyWriter:
    """Writes to the node `disk0-format` of a running guest over an NBD export of its QEMU. A late write does not delay the next one.

    Use it as an async context manager. The device of the disk needs the property `share-rw=on`.

    Attributes:
        full_at: when a write failed because the storage was full, in seconds since the epoch; None before.
        times: the times of the completed writes, in seconds since the epoch.
    """

    def __init__(self, guest: ThinGuest, folder: Path, bytes_per_second: float, *, start: int = 512 * MIB) -> None:
        """Create a writer.

        Args:
            guest: the guest.
            folder: the directory of the socket of the export.
            bytes_per_second: the rate.
            start: where the first write begins. The guest itself writes from the start of the disk.
        """
        self.full_at: float | None = None
        self.times: list[float] = []
        self._guest = guest
        self._socket = folder / f"{guest.name}.nbd"
        self._period = BLOCK_BYTES / bytes_per_second
        self._start = start
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        address = {"type": "unix", "data": {"path": str(self._socket)}}
        await self._guest.command("nbd-server-start", addr=address)
        export = {"type": "nbd", "id": "paced", "node_name": "disk0-format", "writable": True}
        await self._guest.command("block-export-add", **export)
        url = f"nbd+unix:///disk0-format?socket={self._socket}"
        self._process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "qemu-io", "-f", "raw", url),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._task = asyncio.create_task(self._write(self._process))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None and self._process is not None:
            self._task.cancel()
            self._process.kill()
            await self._process.wait()

    async def wait_until_full(self) -> float:
        """Wait until a write fails because the storage is full, and return when it failed."""
        assert self._task is not None
        await self._task
        assert self.full_at is not None
        return self.full_at

    async def _write(self, process: asyncio.subprocess.Process) -> None:
        due = time.monotonic()
        while not (failure := await self._write_block(process, self._start + len(self.times) * BLOCK_BYTES)):
            self.times.append(time.time())
            due = max(due + self._period, time.monotonic() - CATCH_UP_SECONDS)
            await asyncio.sleep(due - time.monotonic())
        assert "No space left" in failure, failure
        self.full_at = time.time()

    async def _write_block(self, process: asyncio.subprocess.Process, position: int) -> str:
        """Write a block; return the error, or an empty text."""
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"write -P 1 {position} {BLOCK_BYTES}\n".encode())
        while line := (await process.stdout.readline()).decode():
            if "failed" in line or "wrote" in line:
                return line if "failed" in line else ""
        return "qemu-io ended"

    def speeds(self, start: float, seconds: float) -> tuple[float, float]:
        """Return the lowest and the highest speed over periods of this length since a time, in bytes per second.

        They are nearly equal, unless the host stopped the writer or its QEMU for a while.
        """
        speeds = [
            (bisect_left(self.times, at + seconds) - index) * BLOCK_BYTES / seconds
            for index, at in enumerate(self.times)
            if at >= start and at + seconds <= self.times[-1]
        ]
        return min(speeds), max(speeds)
