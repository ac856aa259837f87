"""A process that makes many concurrent calls to one libvirtd, like an agent.

Each line on standard input names an outcome: a reply, or a lost connection. The process writes the line to standard output when each of its
callers has had this outcome. After the line `forget`, earlier outcomes do not count.
"""

import asyncio
import sys
from functools import partial
from typing import Final

from agent.monitors.libvirt.connection_pool import HOST_LIMITS, ConnectionPool
from agent.monitors.libvirt.libvirt_python import load_library
from agent.qmp.errors import QmpError
from tests.lab.waiting import until

POOLS: Final = 6
"""Connection pools; an agent has one."""

KEEPALIVE: Final = (1, 2)

ANSWERED: Final = b"answered\n"
ENDED: Final = b"ended\n"
FORGET: Final = b"forget\n"


async def make_calls(pool: ConnectionPool, uuid: str, outcomes: set[bytes]) -> None:
    """Make one call after the other until cancelled, and add each call's outcome to a set."""
    while True:
        try:
            await pool.call_with_connection(lambda connection: connection.look_up_domain(uuid).blockInfo("vdb"))
            outcomes.add(ANSWERED)
        except QmpError:
            outcomes.add(ENDED)
            await asyncio.sleep(0.1)


def _all_have(outcomes: list[set[bytes]], outcome: bytes) -> bool:
    return all(outcome in met for met in outcomes)


async def main(uri: str, uuid: str) -> None:
    """Make calls until standard input ends."""
    api, _ = load_library()
    requests = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    outcomes: list[set[bytes]] = [set() for _ in range(POOLS * HOST_LIMITS.max_calls)]
    callers: list[asyncio.Task[None]] = []
    for first in range(0, len(outcomes), HOST_LIMITS.max_calls):
        pool = ConnectionPool(api, uri, read_only=False, keepalive=KEEPALIVE)
        callers += [
            asyncio.create_task(make_calls(pool, uuid, met)) for met in outcomes[first : first + HOST_LIMITS.max_calls]
        ]
    while outcome := await requests.readline():
        if outcome == FORGET:
            for met in outcomes:
                met.clear()
        else:
            await until(partial(_all_have, outcomes, outcome))
        sys.stdout.buffer.write(outcome)
        sys.stdout.buffer.flush()
    for caller in callers:
        caller.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
