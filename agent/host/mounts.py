"""Parses /proc/PID/mountinfo (proc(5)), and finds the mount that contains a path. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

READ_ONLY_OPTIONS = frozenset({"ro", "emergency_ro"})
"""Options of a read-only file system. An ext4 has the option `emergency_ro` after an error (since Linux 6.12)."""

_OCTAL = re.compile(r"\\([0-7]{3})")
"""Matches an octal escape. The kernel escapes space, tab, newline and backslash (fs/proc_namespace.c: mangle)."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo.

    Attributes:
        id: The kernel's id of the mount.
        parent: Id of the parent mount, which contains the mount point.
        device: `major:minor` of the file system. Bind mounts of a file system have the same number.
        root: Directory inside the file system that is mounted; `/` except for a bind mount or a subvolume.
        mount_point: Mount point in the process's mount namespace.
        type: File system type, such as `xfs` or `fuse.sshfs`.
        source: Source of the mount, such as `/dev/sda1`, `server:/export` or `tank/vm`.
        read_only: Whether the file system itself is read-only. A read-only mount of a writable file system does not count.
    """

    id: int
    parent: int
    device: str
    root: str
    mount_point: str
    type: str
    source: str
    read_only: bool = False


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


@lru_cache(maxsize=64)
def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Parse the content of a mountinfo file. Invalid lines are skipped."""
    return tuple(mount for line in text.splitlines() if (mount := _parse_line(line)) is not None)


def _parse_line(line: str) -> Mount | None:
    front, _, back = line.partition(" - ")
    fields, rest = front.split(" "), back.split(" ")
    if len(fields) < 6 or len(rest) < 2 or not (fields[0].isdecimal() and fields[1].isdecimal()):
        return None
    root, mount_point, kind, source = map(_unescape, (fields[3], fields[4], rest[0], rest[1]))
    read_only = len(rest) > 2 and not READ_ONLY_OPTIONS.isdisjoint(rest[2].split(","))
    return Mount(int(fields[0]), int(fields[1]), fields[2], root, mount_point, kind, source, read_only)


def find_mount(mounts: Sequence[Mount], path: str) -> Mount | None:
    """Return the mount that contains an absolute path; None if no mount has the mount point `/`.

    The search goes from the root mount to its child mounts, like the kernel's path lookup. So the result is never a mount that a later
    mount on a parent directory hides.

    Args:
        mounts: All mounts of the mount namespace.
        path: An absolute path without `..`. Symbolic links are not followed.
    """
    on_path = [
        mount for mount in mounts if mount.mount_point in ("/", path) or path.startswith(f"{mount.mount_point}/")
    ]
    ids = {mount.id for mount in on_path}
    below = next((mount for mount in on_path if mount.parent not in ids or mount.parent == mount.id), None)
    current = None
    while below is not None:
        current = below
        on_path.remove(current)
        children = [mount for mount in on_path if mount.parent == current.id]
        below = min(children, key=lambda mount: len(mount.mount_point), default=None)
    return current
