"""Cache of open files in /proc, sysfs and cgroups. The files stay open between polls. A read at offset 0 returns the present content.

A read of an open file takes a third of the time of opening, reading and closing a file. An open file under /proc/PID belongs to the
process, not to the pid. So reads fail after the process has ended, even if a new process has the same pid.
"""

import os
import resource
from collections.abc import Callable

MAX_TEXT_BYTES = 64 << 10
"""Maximum number of bytes to read from one file. /proc/PID/net/dev has about 130 bytes for each interface."""

READ_BYTES = 4096
"""Number of bytes of the first read of a file. Most files are shorter."""

SHORT_BYTES = 2048
"""A read that returns fewer bytes than this number has reached the end of the file.

The kernel fills each page with as many whole lines as fit (fs/seq_file.c, Linux 2.6 to 6.18).
"""

_RESERVED_DESCRIPTORS = 256
"""Number of descriptors that are kept free for other uses. A budget is half of the remaining descriptors."""


class OpenFileBudget:
    """Limit of the number of file descriptors that stay open between polls.

    Attributes:
        limit: the maximum number.
        used: the number of descriptors that are open now.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @classmethod
    def of_process(cls) -> "OpenFileBudget":
        """Return a budget of half the descriptors that RLIMIT_NOFILE allows. Each VM also needs a descriptor for its monitor."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls(max(0, soft - _RESERVED_DESCRIPTORS) // 2)

    def reserve(self) -> bool:
        """Count one more open descriptor; return False if the limit is reached."""
        if self.used >= self.limit:
            return False
        self.used += 1
        return True


class OpenFileCache:
    """Open files about one process, and files of the host such as a cgroup's. Call `close` after use."""

    def __init__(self, open_file: Callable[[str, int], int], budget: OpenFileBudget) -> None:
        """Create a cache without files.

        Args:
            open_file: opens a path with flags and returns the descriptor. Raises OSError.
            budget: limits how many descriptors stay open. A file beyond the budget is closed after each read.
        """
        self._open_file = open_file
        self._budget = budget
        self._descriptors: dict[str, tuple[tuple[str, ...], list[int | None]]] = {}

    def close(self) -> None:
        """Close all files."""
        for directory in list(self._descriptors):
            self._close_directory(directory)

    def read(self, directory: str, names: tuple[str, ...]) -> list[bytes | None]:
        """Return the contents of files of one directory, truncated at MAX_TEXT_BYTES. `KernelFilesToRead` describes the arguments."""
        known = self._descriptors.get(directory)
        if known is None or known[0] != names:
            self._close_directory(directory)
            known = self._descriptors[directory] = (names, [None] * len(names))
        contents: list[bytes | None] = []
        for index, descriptor in enumerate(known[1]):
            if descriptor is not None:
                try:
                    contents.append(_read_content(descriptor, names[index]))
                    continue
                except OSError:  # the process, thread or interface has ended, and a new one may have the same name
                    self._close_descriptor(known[1], index)
            contents.append(self._open_and_read(directory, names[index], known[1], index))
        return contents

    def _open_and_read(self, directory: str, name: str, descriptors: list[int | None], index: int) -> bytes | None:
        flags = os.O_RDONLY | (os.O_DIRECTORY if name.endswith("/") else 0)
        try:
            descriptor = self._open_file(f"{directory}/{name}" if directory else name, flags)
        except OSError:
            return None
        try:
            content = _read_content(descriptor, name)
        except OSError:
            os.close(descriptor)
            return None
        if self._budget.reserve():
            descriptors[index] = descriptor
        else:
            os.close(descriptor)
        return content

    def _close_directory(self, directory: str) -> None:
        _, descriptors = self._descriptors.pop(directory, ((), []))
        for index in range(len(descriptors)):
            self._close_descriptor(descriptors, index)

    def _close_descriptor(self, descriptors: list[int | None], index: int) -> None:
        descriptor, descriptors[index] = descriptors[index], None
        if descriptor is not None:
            self._budget.used -= 1
            os.close(descriptor)


def read_from_start(descriptor: int) -> bytes:
    """Return the content of an open file, truncated at MAX_TEXT_BYTES.

    Raises:
        OSError: the file cannot be read.
    """
    data = part = os.pread(descriptor, READ_BYTES, 0)
    while len(part) >= SHORT_BYTES and len(data) < MAX_TEXT_BYTES:
        part = os.pread(descriptor, MAX_TEXT_BYTES - len(data), len(data))
        data += part
    return data


def _read_content(descriptor: int, name: str) -> bytes:
    """Return the content of an open file, or the number of entries of an open directory."""
    if not name.endswith("/"):
        return read_from_start(descriptor)
    # Since Linux 6.2, stat reports the number of descriptors as the size of `fd`.
    return b"%d" % (os.fstat(descriptor).st_size or len(os.listdir(descriptor)))
