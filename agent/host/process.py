"""Reading what the kernel says of one process. The only place where files of a VM's process are opened.

The process' folder under /proc is held open: once the process has ended, whatever is opened under it is not found, even when another
process has got its pid. Only files are read here that the kernel writes without waiting for the process or for storage.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from agent.host.types import File, Text

MAX_BYTES = 64 << 10
"""The most that is read of one file. /proc/PID/net/dev has some 130 bytes for each interface."""

SHORT_BYTES = 2048
"""An answer shorter than this is the whole: the kernel fills its page as far as the next line fits (fs/seq_file.c, Linux 2.6 to 6.18)."""

ROOT = Path("/")

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Process:
    """A process, as long as it lives. `close` it.

    Attributes:
        pid: its id on this host.
    """

    def __init__(self, pid: int, root: Path = ROOT) -> None:
        """Hold on to a process.

        Raises:
            OSError: there is none of that id, or it may not be looked at.
        """
        self.pid = pid
        self.root = os.fspath(root).rstrip("/")
        self._folder: int | None = os.open(f"{self.root}/proc/{pid}", _FOLDER)

    def close(self) -> None:
        """Let go of it."""
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None

    def read_files(self, files: Iterable[File]) -> list[Text]:
        """Return what these files say, in order."""
        return [Text(file, self._entries(file.path) if file.entries else self.read(file.path)) for file in files]

    def read(self, path: str) -> str | None:
        """Return the text of a file, cut at MAX_BYTES; None where it cannot be read.

        Args:
            path: in the process' folder; with a / in front, on the host.
        """
        try:
            descriptor = self._open(path, os.O_RDONLY)
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

    def names(self, path: str) -> list[str]:
        """Return the names in a folder of the process; none where it may not be looked into."""
        try:
            descriptor = self._open(path, _FOLDER)
        except OSError:
            return []
        try:
            return os.listdir(descriptor)  # noqa: PTH208 - pathlib knows no descriptors
        except OSError:
            return []
        finally:
            os.close(descriptor)

    def link(self, path: str) -> str | None:
        """Return where a link points, of a path as in `read`; None where that may not be known."""
        with contextlib.suppress(OSError):
            if path.startswith("/"):
                return str(Path(self.root + path).readlink())
            if self._folder is not None:
                return os.readlink(path, dir_fd=self._folder)
        return None

    def _entries(self, path: str) -> str | None:
        with contextlib.suppress(OSError):
            descriptor = self._open(path, _FOLDER)
            try:
                # Linux 6.2 says how many descriptors a process has as the size of its `fd`.
                return str(os.fstat(descriptor).st_size or len(os.listdir(descriptor)))  # noqa: PTH208 - as above
            finally:
                os.close(descriptor)
        return None

    def _open(self, path: str, flags: int) -> int:
        if path.startswith("/"):
            return os.open(self.root + path, flags | os.O_CLOEXEC)
        if self._folder is None:
            raise FileNotFoundError(path)
        return os.open(path, flags | os.O_CLOEXEC, dir_fd=self._folder)
