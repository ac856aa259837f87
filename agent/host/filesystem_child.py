"""Program of a child process that reads file systems. A file system that does not answer blocks the child instead of the agent.

It reads requests from standard input, one per line: `statfs PATH` or `realpath PATH`, with the path as hexadecimal digits. For each request
it writes one line: `ok` and the result, or `error` and the errno. It imports nothing of the agent, so that it starts fast and stays small.
"""

import errno
import os
import sys

BTRFS = "/sys/fs/btrfs"
PENDING_FILES = ("allocation/data/bytes_may_use", "allocation/data/bytes_reserved")
"""Files with the number of bytes that were written to a Btrfs but do not count as used yet. Every user may read them.

Btrfs counts data as used only after writing it back, up to 30 s later. ext4, XFS and tmpfs count written data at once.
"""

MAX_TRIES = 4
"""Maximum number of reads of one Btrfs. Data that becomes used during a read may count twice or not at all, so the read is repeated."""


def btrfs_id(fsid: int, directory: str = BTRFS) -> str:
    """Return the UUID of the mounted Btrfs with this `f_fsid`; empty if there is none, because it is another type of file system.

    The lower half of `f_fsid` is computed from the UUID, the upper half also from the subvolume (fs/btrfs/super.c: btrfs_statfs).
    """
    try:
        names = os.listdir(directory)  # noqa: PTH208 - pathlib would slow down the child's start
    except OSError:
        return ""
    for name in names:
        digits = name.replace("-", "")
        if len(digits) == 32 and int(digits[:8], 16) ^ int(digits[16:24], 16) == fsid & 0xFFFFFFFF:
            return name
    return ""


def btrfs_pending(name: str, directory: str = BTRFS) -> int:
    """Return the written bytes of a Btrfs that statvfs does not count as used yet; 0 if they are unknown."""
    pending = 0
    for file in PENDING_FILES:
        try:
            with open(f"{directory}/{name}/{file}", "rb") as figure:  # noqa: PTH123 - see above
                pending += int(figure.read(32))
        except (OSError, ValueError):
            return 0
    return pending


def figures_of(path: str) -> "tuple[int, int, int, int, int]":
    """Return size, free bytes, free bytes without privileges, inodes and free inodes of the file system of a path."""
    stat = os.statvfs(path)
    pending = 0
    name = btrfs_id(stat.f_fsid)
    for _ in range(MAX_TRIES if name else 0):
        pending = btrfs_pending(name)
        stat = os.statvfs(path)
        pending_after = btrfs_pending(name)
        if pending == pending_after:
            break
        pending = min(pending, pending_after)
    size, free, available = (blocks * stat.f_frsize for blocks in (stat.f_blocks, stat.f_bfree, stat.f_bavail))
    return size, max(free - pending, 0), max(available - pending, 0), stat.f_files, stat.f_favail


def answer_request(request: bytes) -> str:
    """Return the answer to one request, without the end of the line."""
    operation, _, digits = request.strip().partition(b" ")
    path = bytes.fromhex(digits.decode("ascii"))
    try:
        if operation == b"realpath":
            return f"ok {os.path.realpath(path, strict=True).hex()}"
        return "ok {} {} {} {} {}".format(*figures_of(os.fsdecode(path)))
    except OSError as error:
        return f"error {error.errno or 0}"
    except ValueError:
        return f"error {errno.EINVAL}"


def main() -> None:
    """Answer requests until standard input is closed."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for request in sys.stdin.buffer:
        sys.stdout.write(f"{answer_request(request)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
