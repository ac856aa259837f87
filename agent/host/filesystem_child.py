"""Program of a child process that reads file systems. A file system that does not answer blocks the child instead of the agent.

The program reads requests from standard input, one per line: `statfs PATH` or `realpath PATH`, with the path as hexadecimal digits.
The program answers each request with one line: `ok` and the result, or `error` and the errno. The program imports no module of the agent.
So the program starts fast and needs little memory.
"""

import errno
import os
import sys

BTRFS = "/sys/fs/btrfs"
UNFLUSHED_BYTES_FILES = ("allocation/data/bytes_may_use", "allocation/data/bytes_reserved")
"""Files with the number of unflushed bytes of a Btrfs. Every user may read these files.

A process has written the unflushed bytes, but Btrfs has not yet flushed the bytes to disk.

Btrfs counts data as used only after the flush, up to 30 s later. Other file systems, such as ext4, XFS and tmpfs, count data at once.
"""

MAX_BTRFS_READS = 4
"""Maximum number of times that the program reads one Btrfs for one request.

The program reads again if the number of unflushed bytes has changed during a read. Data that was flushed during the read may count twice
or not at all.
"""


def find_btrfs_uuid_by_fsid(fsid: int, directory: str = BTRFS) -> str:
    """Return the UUID of the mounted Btrfs whose `f_fsid` (statvfs) is `fsid`; empty for a file system of another type.

    The kernel computes the lower half of `f_fsid` from the UUID. The upper half also depends on the subvolume (fs/btrfs/super.c:
    btrfs_statfs).
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


def read_btrfs_unflushed_bytes(name: str, directory: str = BTRFS) -> int:
    """Return the number of unflushed bytes of a Btrfs, which statvfs still counts as free; 0 if unknown."""
    pending = 0
    for file in UNFLUSHED_BYTES_FILES:
        try:
            with open(f"{directory}/{name}/{file}", "rb") as pending_file:  # noqa: PTH123 - see above
                pending += int(pending_file.read(32))
        except (OSError, ValueError):
            return 0
    return pending


def read_filesystem_stats(path: str) -> "tuple[int, int, int, int, int]":
    """Return five numbers about a path's file system.

    Returns:
        The size, the free bytes, the free bytes for an unprivileged user, the number of inodes, and the free inodes for an unprivileged
        user.
    """
    stat = os.statvfs(path)
    pending = 0
    name = find_btrfs_uuid_by_fsid(stat.f_fsid)
    for _ in range(MAX_BTRFS_READS if name else 0):
        pending = read_btrfs_unflushed_bytes(name)
        stat = os.statvfs(path)
        pending_after = read_btrfs_unflushed_bytes(name)
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
        return "ok {} {} {} {} {}".format(*read_filesystem_stats(os.fsdecode(path)))
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
