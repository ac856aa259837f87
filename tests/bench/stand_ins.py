"""Processes that stand in for QEMUs under /proc: threads as vCPUs, and a tap.

`python -m tests.bench.stand_ins VCPUS DESCRIPTOR...` forks a process for each listening socket and prints their pids and threads as JSON.
Each calls listen() on its socket. So it is the socket's owner (SO_PEERCRED), while scripted monitors accept the connections.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import struct
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple

_CREATE_TAP: Final = 0x400454CA
"""TUNSETIFF of linux/if_tun.h."""
_TAP_WITHOUT_HEADER: Final = 0x0002 | 0x1000


class StandIn(NamedTuple):
    """A process.

    Attributes:
        pid: its pid.
        vcpus: the ids of its threads.
        tap: the name of its interface; None without permission to create one.
    """

    pid: int
    vcpus: list[int]
    tap: str | None

    def replies(self) -> dict[str, Any]:
        """Return replies to QMP commands that describe the process."""
        vcpus = [{"cpu-index": index, "thread-id": thread} for index, thread in enumerate(self.vcpus)]
        return {"query-cpus-fast": {"return": vcpus}}


@contextlib.asynccontextmanager
async def stand_ins(descriptors: Sequence[int], vcpus: int) -> AsyncIterator[list[StandIn]]:
    """Run a process for each of these listening sockets during the block. Yield the processes in the same order."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.stand_ins", str(vcpus), *map(str, descriptors)),
        pass_fds=descriptors,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            processes = [StandIn(**json.loads(await process.stdout.readline())) for _ in descriptors]
        yield processes
    finally:
        process.stdin.close()
        await process.wait()


def _open_tap(name: str) -> tuple[int, str | None]:
    """Create a tap, which exists as long as its descriptor is open."""
    descriptor = -1
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(descriptor, _CREATE_TAP, struct.pack("16sH22x", name.encode(), _TAP_WITHOUT_HEADER))
    except OSError:
        return descriptor, None
    return descriptor, name


def _stand_in(descriptor: int, vcpus: int, report: int) -> None:
    """Be the owner of a socket until the benchmark ends."""
    socket.socket(fileno=descriptor).listen()
    threads = [threading.Thread(target=threading.Event().wait, daemon=True) for _ in range(vcpus)]
    for thread in threads:
        thread.start()
    _, tap = _open_tap(f"qb{os.getpid()}")
    process = {"pid": os.getpid(), "vcpus": [thread.native_id for thread in threads], "tap": tap}
    os.write(report, json.dumps(process).encode() + b"\n")
    os.read(sys.stdin.fileno(), 1)  # returns when the benchmark closes its end


def _main(vcpus: int, descriptors: Sequence[int]) -> None:
    children = []
    for descriptor in descriptors:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            for other in (reader, *descriptors):
                if other != descriptor:
                    os.close(other)
            _stand_in(descriptor, vcpus, writer)
            os._exit(0)
        children.append(child)
        os.close(writer)
        with os.fdopen(reader) as report:  # one after the other, so that the order is that of the sockets
            print(report.readline().strip(), flush=True)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    _main(int(sys.argv[1]), list(map(int, sys.argv[2:])))
