"""The process of the event issuer, and a small file system for the journal, which a test can fill."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final, Self

ROOT: Final = Path(__file__).parents[2]
POLL_SECONDS: Final = 0.2
_ANSWER_SECONDS: Final = 120.0


async def eventually(predicate: Callable[[], Awaitable[object]], seconds: float, what: str) -> None:
    """Wait until a predicate is true. It is called a few times per second.

    Args:
        predicate: what to wait for.
        seconds: the deadline.
        what: a description of the predicate, for the error.

    Raises:
        AssertionError: the predicate is not true in time.
    """
    deadline = time.monotonic() + seconds
    while not await predicate():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        await asyncio.sleep(POLL_SECONDS)


class Issuer:
    """The process of `issuer.py`. It runs inside `async with`.

    Attributes:
        monitors: glob pattern of the monitors' sockets.
        log: path of the log of issued events.
    """

    def __init__(self, folder: Path, vms: int, seed: int) -> None:
        self.vms = vms
        self.log = folder / "issued.log"
        self._folder = folder / "vms"
        self._folder.mkdir()
        self.monitors = f"{self._folder}/*.qmp"
        self._seed = seed
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def set_rate(self, rate: float) -> None:
        """Set how many events per second all VMs together issue."""
        await self._send(f"rate {rate}")

    async def count(self) -> tuple[int, int]:
        """Return how many events were issued and how many monitors are ready; flush the log."""
        async with self._lock:
            await self._send("count")
            assert self._process is not None
            assert self._process.stdout is not None
            async with asyncio.timeout(_ANSWER_SECONDS):
                answer = json.loads(await self._process.stdout.readline())
        return answer["issued"], answer["ready"]

    async def _send(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        await self._process.stdin.drain()

    async def __aenter__(self) -> Self:
        arguments = ("--folder", self._folder, "--log", self.log, "--vms", self.vms, "--seed", self._seed)
        self._process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.chaos.issuer", *map(str, arguments)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        await self.count()  # it listens now
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


class Disk:
    """A small file system for the journal.

    Attributes:
        folder: the mount point; a plain directory if mounting failed.
        mount_error: why mounting failed, so that the disk cannot be filled; None if it is mounted. Mounting needs root.
    """

    def __init__(self, folder: Path, mount_error: str | None) -> None:
        self.folder = folder
        self.mount_error = mount_error
        self._ballast = folder / "ballast"

    @classmethod
    @contextlib.contextmanager
    def mounted(cls, folder: Path, size: int) -> Iterator[Self]:
        """Mount ext4 in a file, where an fsync has its real cost. If that fails, mount a tmpfs; if that fails too, mount nothing."""
        folder.mkdir(parents=True)
        image = folder.with_suffix(".ext4")
        mount_error = None
        if (error := _mount_ext4(image, folder, size)) and _run(
            "mount", "-t", "tmpfs", "-o", f"size={size}", "t", folder
        ):
            mount_error = error
        try:
            yield cls(folder, mount_error)
        finally:
            if mount_error is None and _run("umount", folder):
                _run("umount", "--lazy", folder)  # a killed process may hold it for a moment

    def fill(self) -> None:
        """Fill the file system."""
        with self._ballast.open("wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(self.folder).free - (64 << 10)))
        with self._ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Delete the file that fills the file system."""
        self._ballast.unlink(missing_ok=True)


def _mount_ext4(image: Path, folder: Path, size: int) -> str:
    with image.open("wb") as file:
        file.truncate(size)
    return _run("mkfs.ext4", "-q", "-m", "0", image) or _run("mount", "-o", "loop", image, folder)


def _run(*command: str | Path) -> str:
    """Run a command. Return its error; empty if it succeeds."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.strip() or str(done.returncode) if done.returncode else ""
