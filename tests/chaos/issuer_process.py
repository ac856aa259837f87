"""The parts of a run that are neither Kafka nor the agent: the issuer's process, and a disk for the journal that can be full."""

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
ASK_SECONDS: Final = 0.2
_ANSWER_SECONDS: Final = 20.0


async def eventually(predicate: Callable[[], Awaitable[object]], seconds: float, what: str) -> None:
    """Wait until something holds, asking a few times a second.

    Raises:
        AssertionError: it does not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not await predicate():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        await asyncio.sleep(ASK_SECONDS)


class Issuer:
    """The process of `issuer.py`; as an async context manager it runs from entering to leaving.

    Attributes:
        monitors: the pattern of its monitors' sockets.
        log: the file that says what it issued.
    """

    def __init__(self, folder: Path, vms: int, seed: int) -> None:
        self.vms = vms
        self.log = folder / "issued.log"
        self._folder = folder / "vms"
        self._folder.mkdir()
        self.monitors = f"{self._folder}/*.qmp"
        self._seed = seed
        self._process: asyncio.subprocess.Process | None = None
        self._asking = asyncio.Lock()

    async def rate(self, rate: float) -> None:
        """Issue so many events a second from now on."""
        await self._say(f"rate {rate}")

    async def count(self) -> tuple[int, int]:
        """Return how many events were issued, and how many monitors are ready to issue; bring the log up to date."""
        async with self._asking:
            await self._say("count")
            assert self._process is not None
            assert self._process.stdout is not None
            async with asyncio.timeout(_ANSWER_SECONDS):
                answer = json.loads(await self._process.stdout.readline())
        return answer["issued"], answer["ready"]

    async def _say(self, line: str) -> None:
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
        await self.count()  # it listens
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
    """A small disk of its own for the journal.

    Attributes:
        folder: where it is mounted, or a plain folder.
        cannot: why it cannot be made full, or None. Mounting takes root.
    """

    def __init__(self, folder: Path, cannot: str | None) -> None:
        self.folder = folder
        self.cannot = cannot
        self._ballast = folder / "ballast"

    @classmethod
    @contextlib.contextmanager
    def mounted(cls, folder: Path, size: int) -> Iterator[Self]:
        """Mount one: a file with ext4 in it, on which an fsync costs what it costs; else memory; else none."""
        folder.mkdir(parents=True)
        image = folder.with_suffix(".ext4")
        cannot = None
        if (error := _on_file(image, folder, size)) and _said(
            "mount", "-t", "tmpfs", "-o", f"size={size}", "t", folder
        ):
            cannot = f"no disk of its own can be mounted: {error}"
        try:
            yield cls(folder, cannot)
        finally:
            if cannot is None and _said("umount", folder):
                _said("umount", "--lazy", folder)  # a process that was killed may hold it for a moment

    def fill(self) -> None:
        """Leave no room."""
        with self._ballast.open("wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(self.folder).free - (64 << 10)))
        with self._ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Give the room back."""
        self._ballast.unlink(missing_ok=True)


def _on_file(image: Path, folder: Path, size: int) -> str:
    with image.open("wb") as file:
        file.truncate(size)
    return _said("mkfs.ext4", "-q", "-m", "0", image) or _said("mount", "-o", "loop", image, folder)


def _said(*command: str | Path) -> str:
    """Run a command; return what it said if it failed, empty if not."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.strip() or str(done.returncode) if done.returncode else ""
