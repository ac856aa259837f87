"""Sink that writes JSON lines to standard output, or to a file that is rotated by size. The default without a `kafka` section."""

import asyncio
import contextlib
import os
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import orjson
from pydantic import Field, field_validator

from agent.common.config_types import Bytes
from agent.delivery.sinks.base import SinkError
from agent.delivery.sinks.base_config import SinkConfig
from agent.model.record import EncodedRecord

CLOSE_SECONDS = 1.0
"""Maximum time in seconds to wait for a write to end before the file is closed."""
READ_BYTES = 64 * 1024
"""Bytes per read in the search for the last line."""
MAX_LAST_LINE_BYTES = 64 << 20
"""Maximum bytes that are read in the search for the start of the last line."""


class JsonLinesSink:
    """Writes one record per line to a file, or to standard output if the path is None.

    Rotated files are `<name>.1`, `<name>.2` and so on; `<name>.1` is the newest.

    Lines are always complete. If a write to a file fails in the middle of a line, the sink removes the start of the line. If a write to a
    pipe fails in the middle of a line, the next write completes the line. A record whose line was written is not written again.
    """

    def __init__(self, path: Path | None, rotate_bytes: int = 100 << 20, max_files: int = 5) -> None:
        self.name = "standard output" if path is None else str(path)
        self._path = path
        self._rotate_bytes = rotate_bytes
        self._max_files = max_files
        self._fd = -1
        # The lock is held during each write, because several queues write concurrently, and each queue may rotate the file.
        self._lock = threading.Lock()
        self._written_ids: set[str] = set()  # ids of records whose batch failed after their lines were written
        self._rest_of_line = b""  # the unwritten rest of a line whose start was written to a pipe
        self._rest_of_line_id = ""  # the id of the record in this line

    async def open(self) -> None:
        """Open the file. Repair an incomplete last line, which remains after an agent was killed during a write.

        Raises:
            SinkError: the file cannot be opened.
        """
        await self._call_in_thread(self._open_between_writes)

    async def send(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
        """Append a batch. No record is ever rejected.

        Raises:
            SinkError: the disk is full, or the reader of standard output has closed the pipe.
        """
        await self._call_in_thread(self._write, batch)
        return ()

    async def close(self) -> None:
        """Wait until another queue's write has ended, at most `CLOSE_SECONDS`. Then close the file."""
        await self._call_in_thread(self._close_between_writes)

    async def _call_in_thread(self, call: Callable[..., None], *args: object) -> None:
        try:
            await asyncio.to_thread(call, *args)
        except OSError as error:
            raise SinkError(f"{self.name}: {error.strerror}") from error

    def _open_between_writes(self) -> None:
        with self._lock:  # without the lock, another queue's unfinished write would continue in the newly opened file
            self._open()

    def _close_between_writes(self) -> None:
        locked = self._lock.acquire(timeout=CLOSE_SECONDS)
        try:
            self._close()
        finally:
            if locked:
                self._lock.release()

    def _open(self) -> None:
        if self._path is None:
            self._fd = sys.stdout.fileno()
            return
        self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if self._rest_of_line:  # write the whole line again, for a new reader of the pipe
            self._written_ids.discard(self._rest_of_line_id)
            self._rest_of_line = b""
        try:
            if self._is_file():
                repair_last_line(self._fd)
        except OSError:
            self._close()
            raise

    def _is_file(self) -> bool:
        return stat.S_ISREG(os.fstat(self._fd).st_mode)

    def _close(self) -> None:
        descriptor, self._fd = self._fd, -1
        if self._path is not None and descriptor >= 0:
            with contextlib.suppress(OSError):  # the descriptor is closed even if `os.close` fails
                os.close(descriptor)

    def _write(self, batch: Sequence[EncodedRecord]) -> None:
        with self._lock:
            # Rotate before the write, so that a failed rotation does not repeat lines.
            if self._path is not None and os.fstat(self._fd).st_size >= self._rotate_bytes:
                self._rotate(self._path)
            records = [record for record in batch if record.id not in self._written_ids]
            lines = self._rest_of_line + b"".join(record.body + b"\n" for record in records)
            view = memoryview(lines)
            try:
                while view:
                    view = view[os.write(self._fd, view) :]
            except OSError:
                self._remove_or_keep_partial_line(lines, len(lines) - len(view), records)
                raise
            self._rest_of_line = b""
            self._written_ids.difference_update(record.id for record in batch)

    def _remove_or_keep_partial_line(self, lines: bytes, written: int, records: Sequence[EncodedRecord]) -> None:
        """Remove an incomplete last line from a file. For a pipe, store the end of the line for the next write instead.

        Args:
            lines: the bytes of the failed write: `_rest_of_line` and the lines of `records`.
            written: how many bytes of `lines` were written.
            records: the records whose lines are in `lines`.
        """
        whole = lines.rfind(b"\n", 0, written) + 1
        partial = written - whole
        if partial and self._is_file():
            with contextlib.suppress(OSError):  # after a failure, the next `open` repairs the line
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - partial)
                os.lseek(self._fd, 0, os.SEEK_END)  # standard output may not be open for appending
            self._rest_of_line = b""
        elif partial:
            self._rest_of_line = lines[written : lines.index(b"\n", written) + 1]
            whole = written + len(self._rest_of_line)
        elif written:
            self._rest_of_line = b""
        end = len(lines) - sum(len(record.body) + 1 for record in records)
        for record in records:
            end += len(record.body) + 1
            if end > whole:
                break
            self._written_ids.add(record.id)
            self._rest_of_line_id = record.id

    def _rotate(self, path: Path) -> None:
        if not self._max_files:
            path.unlink()
        names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, self._max_files + 1))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            if newer.exists():
                newer.replace(older)
        self._close()
        self._open()


def repair_last_line(descriptor: int) -> None:
    """Repair a last line without a line end. Remove an incomplete record. Append a line end to any other line.

    Args:
        descriptor: a regular file that is open for reading and appending.

    Raises:
        OSError: the file cannot be read, or the disk is full.
    """
    size = os.fstat(descriptor).st_size
    line = _read_last_line(descriptor, size)
    if not line:
        return
    if line.startswith(b"{") and not _is_json(line):
        with contextlib.suppress(OSError):  # a file may be append-only
            os.ftruncate(descriptor, size - len(line))
            return
    os.write(descriptor, b"\n")  # a complete record without a line end, or a line of another program


def _read_last_line(descriptor: int, size: int) -> bytes:
    """Return the bytes after the last line end of a file of `size` bytes, at most `MAX_LAST_LINE_BYTES`."""
    chunks: list[bytes] = []
    start = size
    while start > max(0, size - MAX_LAST_LINE_BYTES):
        begin = max(0, start - READ_BYTES)
        chunk = os.pread(descriptor, start - begin, begin)
        start = begin
        chunks.insert(0, chunk[chunk.rfind(b"\n") + 1 :])
        if b"\n" in chunk:
            break
    return b"".join(chunks)


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except ValueError:
        return False
    return True


class JsonLinesConfig(SinkConfig):
    """Records as JSON lines, used without a `kafka` section."""

    path: Path | None = None
    """Path of the file; without it, standard output."""
    max_size: Annotated[Bytes, Field(ge=4096)] = 100 << 20
    """Size at which the file is rotated."""
    max_files: Annotated[int, Field(ge=0, le=1000)] = 5
    """Number of rotated files to keep."""

    journaled = False

    @field_validator("path")
    @classmethod
    def _check_path(cls, path: Path | None) -> Path | None:
        if path == Path("-"):
            raise ValueError("should be a file (without `path`, records go to standard output)")
        return path
