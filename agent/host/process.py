"""Reads one process's files under /proc, and files of the host such as a cgroup's.

The process's directory under /proc stays open. After the process has ended, no file under it can be opened, even if a new process has
the same pid. Callers request only files that the kernel produces without waiting for the process or for storage.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from agent.host.types import FileReply, FileRequest

MAX_BYTES = 64 << 10
"""Maximum size of one file. /proc/PID/net/dev has about 130 bytes for each interface."""

SHORT_BYTES = 2048
"""A read that returns fewer bytes than this has reached the end of the file, because the kernel fills a page with whole lines
(fs/seq_file.c, Linux 2.6 to 6.18)."""

ROOT = Path("/")

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Process:
    """One process; close it after use.

    Attributes:
        pid: its pid on this host.
        root: the directory that holds /proc and /sys, without a trailing slash.
    """

    def __init__(self, pid: int, root: Path = ROOT) -> None:
        """Open a process's directory.

        Raises:
            OSError: there is no such process, or permission is denied.
        """
        self.pid = pid
        self.root = os.fspath(root).rstrip("/")
        self._directory: int | None = os.open(f"{self.root}/proc/{pid}", _OPEN_DIRECTORY)

    def close(self) -> None:
        """Close the process's directory. Reads of its files then return None."""
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None

    def read_files(self, files: Iterable[FileRequest]) -> list[FileReply]:
        """Return the contents of these files, in order."""
        return [
            FileReply(file, self._count_entries(file.path) if file.count_entries else self.read(file.path))
            for file in files
        ]

    def read(self, path: str) -> str | None:
        """Return the text of a file, truncated at MAX_BYTES; None if it cannot be read.

        Args:
            path: relative to the process's directory; with a leading slash, absolute on the host.
        """
        try:
            descriptor = self._open_descriptor(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            data = part = os.read(descriptor, MAX_BYTES)
            while len(part) >= SHORT_BYTES and len(data) < MAX_BYTES:
                part = os.read(descriptor, MAX_BYTES - len(data))
                data += part
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return data.decode("utf-8", "replace")

    def list_directory(self, path: str) -> list[str]:
        """Return the names in a directory; none if the directory cannot be read. `path` is as in `read`."""
        try:
            descriptor = self._open_descriptor(path, _OPEN_DIRECTORY)
        except OSError:
            return []
        try:
            return os.listdir(descriptor)  # noqa: PTH208 - pathlib does not accept descriptors
        except OSError:
            return []
        finally:
            os.close(descriptor)

    def read_link(self, path: str) -> str | None:
        """Return the target of a symbolic link; None if the link cannot be read. `path` is as in `read`."""
        with contextlib.suppress(OSError):
            if path.startswith("/"):
                return str(Path(self.root + path).readlink())
            if self._directory is not None:
                return os.readlink(path, dir_fd=self._directory)
        return None

    def _count_entries(self, path: str) -> str | None:
        """Return the number of entries of a directory as text; None if the directory cannot be read."""
        with contextlib.suppress(OSError):
            descriptor = self._open_descriptor(path, _OPEN_DIRECTORY)
            try:
                # From Linux 6.2 on, the size of `fd` is the number of descriptors.
                return str(os.fstat(descriptor).st_size or len(os.listdir(descriptor)))  # noqa: PTH208 - as above
            finally:
                os.close(descriptor)
        return None

    def _open_descriptor(self, path: str, flags: int) -> int:
        if path.startswith("/"):
            return os.open(self.root + path, flags | os.O_CLOEXEC)
        if self._directory is None:
            raise FileNotFoundError(path)
        return os.open(path, flags | os.O_CLOEXEC, dir_fd=self._directory)
