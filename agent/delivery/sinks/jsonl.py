"""JSON lines sink: standard output, or a file that is rotated by size. The default when no Kafka is configured."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from agent.common.units import Bytes
from agent.delivery.sinks.base import SinkError
from agent.delivery.sinks.config import SinkConfig
from agent.model.record import EncodedRecord


class JsonLinesSink:
    """Writes one record a line to a file; rotated files are `<name>.1` and up, the oldest last. No path means standard output."""

    def __init__(self, path: Path | None, rotate_bytes: int = 100 << 20, max_files: int = 5) -> None:
        self.name = "standard output" if path is None else str(path)
        self._path = path
        self._rotate_bytes = rotate_bytes
        self._max_files = max_files
        self._fd = -1
        self._lock = threading.Lock()  # queues send concurrently, and one of them may rotate

    async def open(self) -> None:
        """Open the file, and terminate its last line if the agent was killed in the middle of it.

        Raises:
            SinkError: the file cannot be opened.
        """
        await self._in_thread(self._open)

    async def send(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
        """Append the batch.

        Raises:
            SinkError: the disk is full, or the reader of standard output has closed it.
        """
        lines = b"".join(record.body + b"\n" for record in batch)
        await self._in_thread(self._write, lines)
        return ()

    async def close(self) -> None:
        """Close the file."""
        self._close()

    async def _in_thread(self, call: Callable[..., None], *args: object) -> None:
        try:
            await asyncio.to_thread(call, *args)
        except OSError as error:
            raise SinkError(f"{self.name}: {error.strerror}") from error

    def _open(self) -> None:
        if self._path is None:
            self._fd = sys.stdout.fileno()
            return
        self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            size = os.fstat(self._fd).st_size
            if size and os.pread(self._fd, 1, size - 1) != b"\n":
                os.write(self._fd, b"\n")
        except OSError:
            self._close()
            raise

    def _close(self) -> None:
        descriptor, self._fd = self._fd, -1
        if self._path is not None and descriptor >= 0:
            os.close(descriptor)

    def _write(self, lines: bytes) -> None:
        with self._lock:
            # Before the lines, so that a failed rotation writes nothing twice.
            if self._path is not None and os.fstat(self._fd).st_size >= self._rotate_bytes:
                self._rotate(self._path)
            view = memoryview(lines)
            while view:
                view = view[os.write(self._fd, view) :]

    def _rotate(self, path: Path) -> None:
        if not self._max_files:
            path.unlink()
        names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, self._max_files + 1))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            if newer.exists():
                newer.replace(older)
        self._close()
        self._open()


class JsonLinesConfig(SinkConfig):
    """Records as JSON lines, where there is no Kafka."""

    path: Path | None = None
    """The file; without one, standard output."""
    max_size: Annotated[Bytes, Field(ge=4096)] = 100 << 20
    """Size at which the file is rotated."""
    max_files: Annotated[int, Field(ge=0, le=1000)] = 5
    """Number of rotated files to keep."""

    journaled = False
