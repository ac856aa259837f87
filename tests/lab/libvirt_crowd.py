"""A process with many calls to one libvirtd under way, as an agent makes them.

Asked by a line on standard input, it says the same line once each of its callers has met that anew: an answer, or its connection's end.
"""

import asyncio
import sys
from functools import partial
from typing import Final

from agent.cli.demo.guest import until
from agent.monitors.libvirt import connection_pool
from agent.monitors.libvirt.connection_pool import MAX_CALLS, ConnectionPool, library
from agent.qmp.errors import QmpError

CALLS: Final = 6
"""Agents' worth of calls."""

KEEPALIVE: Final = (1, 2)

ANSWERED: Final = b"answered\n"
ENDED: Final = b"ended\n"


async def ask(calls: ConnectionPool, uuid: str, met: set[bytes]) -> None:
    """Make one call after the other, for ever."""
    while True:
        try:
            await calls(lambda line: line.domain(uuid).blockInfo("vdb"))
            met.add(ANSWERED)
        except QmpError:
            met.add(ENDED)
            await asyncio.sleep(0.1)


def _all_have(met: list[set[bytes]], what: bytes) -> bool:
    return all(what in mine for mine in met)


async def main(uri: str, uuid: str) -> None:
    """Make calls until standard input ends."""
    connection_pool.KEEPALIVE = KEEPALIVE
    api, _ = library()
    told = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    met: list[set[bytes]] = [set() for _ in range(CALLS * MAX_CALLS)]
    askers: list[asyncio.Task[None]] = []
    for first in range(0, len(met), MAX_CALLS):
        calls = ConnectionPool(api, uri, read_only=False)
        askers += [asyncio.create_task(ask(calls, uuid, mine)) for mine in met[first : first + MAX_CALLS]]
    while what := await told.readline():
        for mine in met:
            mine.clear()
        await until(partial(_all_have, met, what), 60)
        sys.stdout.buffer.write(what)
        sys.stdout.buffer.flush()
    for asker in askers:
        asker.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
