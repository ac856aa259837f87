"""Program of a child process that reads file systems. A file system that does not answer blocks the child instead of the agent.

The program reads requests from standard input, one per line: `statfs PATH` or `realpath PATH`, with the path as hexadecimal digits.
For each request, the program writes one line: `ok` and the result, or `error` and the errno. The program imports no module of the agent,
so that it starts fast and needs little memory.
"""

import errno
import os
import sys

BTRFS = "/sys/fs/btrfs"
PENDING_FILES = ("allocation/data/bytes_may_use", "allocation/data/bytes_reserved")
"""Files with the number of bytes that were written to a Btrfs but do not count as used yet. Every user may read these files.

Btrfs counts data as used only after it has written the data to disk, up to 30 s later. ext4, XFS and tmpfs count written data at once.
"""

MAX_BTRFS_READS = 4
"""Maximum number of reads of one Btrfs.

If data changed from pending to used during a read, the program reads again, because such data may count twice or not at all.
"""


def find_btrfs_uuid(fsid: int, directory: str = BTRFS) -> str:
    """Return the UUID of the mounted Btrfs with this `f_fsid`; empty for a file system of another type.

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


def read_btrfs_pending_bytes(name: str, directory: str = BTRFS) -> int:
    """Return the written bytes of a Btrfs that statvfs does not count as used yet; 0 if unknown."""
    pending = 0
    for file in PENDING_FILES:
        try:
            with open(f"{directory}/{name}/{file}", "rb") as pending_file:  # noqa: PTH123 - see above
                pending += int(pending_file.read(32))
        except (OSError, ValueError):
            return 0
    return pending


def read_filesystem_stats(path: str) -> "tuple[int, int, int, int, int]":
    """Return five numbers about a path's file system.

    Returns:
        The size, the free bytes, the bytes that an unprivileged user can write, the number of inodes, and the number of inodes that an
        unprivileged user can create.
    """
    stat = os.statvfs(path)
    pending = 0
    name = find_btrfs_uuid(stat.f_fsid)
    for _ in range(MAX_BTRFS_READS if name else 0):
        pending = read_btrfs_pending_bytes(name)
        stat = os.statvfs(path)
        pending_after = read_btrfs_pending_bytes(name)
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
