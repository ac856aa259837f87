"""Program of a child process that reads file systems. A file system that does not answer blocks the child instead of the agent.

It reads one request a line from standard input: `statfs PATH` or `realpath PATH`, with the path as hexadecimal digits. It writes one line
for each: `ok` and the result, or `error` and the errno. It imports nothing of the agent, so that it starts fast and stays small.
"""

import errno
import os
import sys


def answer(request: bytes) -> str:
    """Return the answer to one request, without the end of the line."""
    operation, _, digits = request.strip().partition(b" ")
    path = bytes.fromhex(digits.decode("ascii"))
    try:
        if operation == b"realpath":
            return f"ok {os.path.realpath(path, strict=True).hex()}"
        stat = os.statvfs(path)
    except OSError as error:
        return f"error {error.errno or 0}"
    except ValueError:
        return f"error {errno.EINVAL}"
    size, free, available = (blocks * stat.f_frsize for blocks in (stat.f_blocks, stat.f_bfree, stat.f_bavail))
    return f"ok {size} {free} {available} {stat.f_files} {stat.f_favail}"


def main() -> None:
    """Answer requests until standard input is closed."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for request in sys.stdin.buffer:
        sys.stdout.write(f"{answer(request)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
