"""Reads one process's files under /proc, and files of the host such as a cgroup's.

The process's directory under /proc stays open. No file in this directory can be opened after the process has ended, even if a new process
has the same pid. Callers may read only files whose reads never wait for the process or for storage.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from agent.host.open_file_cache import OpenFileBudget, OpenFileCache, read_from_start
from agent.host.types import KernelFileContents, KernelFilesToRead

ROOT = Path("/")

_BUDGET = OpenFileBudget.of_process()
"""The budget that all `Process` objects share, because the kernel limits the descriptors of the agent as a whole."""

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Process:
    """One process, and its files under /proc. Call `close` after use.

    Attributes:
        pid: its pid on this host.
        root: the directory that holds /proc and /sys, without a trailing slash.
    """

    def __init__(self, pid: int, root: Path = ROOT, budget: OpenFileBudget = _BUDGET) -> None:
        """Open the directory /proc/PID of a process.

        Args:
            pid: the pid.
            root: the directory that holds /proc and /sys.
            budget: the limit of the number of open files, for all processes together.

        Raises:
            OSError: no process has this pid, or permission is denied.
        """
        self.pid = pid
        self.root = os.fspath(root).rstrip("/")
        self._directory: int | None = os.open(f"{self.root}/proc/{pid}", _OPEN_DIRECTORY)
        self._open_files = OpenFileCache(self._open_descriptor, budget)

    def close(self) -> None:
        """Close the process's directory and its files. Reads of its files then return None."""
        self._open_files.close()
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None

    def read_files(self, requests: Iterable[KernelFilesToRead]) -> list[KernelFileContents]:
        """Return the contents of the requested files, in order. The files stay open for the next read, within the budget."""
        read = self._open_files.read
        return [KernelFileContents(request, read(request.directory, request.names)) for request in requests]

    def read_text_file(self, path: str) -> str | None:
        """Return the text of a file, truncated at MAX_TEXT_BYTES; None if the file cannot be read.

        Args:
            path: relative to the process's directory; with a leading slash, absolute on the host.
        """
        try:
            descriptor = self._open_descriptor(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            data = read_from_start(descriptor)
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

    def _open_descriptor(self, path: str, flags: int) -> int:
        if path.startswith("/"):
            return os.open(self.root + path, flags | os.O_CLOEXEC)
        if self._directory is None:
            raise FileNotFoundError(path)
        return os.open(path, flags | os.O_CLOEXEC, dir_fd=self._directory)
