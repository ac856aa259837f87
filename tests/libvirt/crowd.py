"""A process with many calls to one libvirtd under way, as an agent makes them; when asked, it says that all were answered anew."""

import asyncio
import sys
from typing import Any, Final

from agent.monitors.libvirt import wire
from agent.qmp.errors import QmpError

CALLS: Final = 6
"""Agents' worth of calls."""

KEEPALIVE: Final = (1, 2)

ANSWERED: Final = b"answered\n"


async def ask(calls: wire.Calls, uuid: str, answered: asyncio.Event) -> None:
    """Make one call after the other, for ever."""
    while True:
        try:
            await calls(lambda line: line.domain(uuid).blockInfo("vdb"))
            answered.set()
        except QmpError:
            await asyncio.sleep(0.1)


async def main(uri: str, uuid: str) -> None:
    """Make calls until standard input ends."""
    wire.KEEPALIVE = KEEPALIVE
    api: Any = wire.library()[0]
    told = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    events = [asyncio.Event() for _ in range(CALLS * wire.MAX_CALLS)]
    askers: list[asyncio.Task[None]] = []
    for first in range(0, len(events), wire.MAX_CALLS):
        calls = wire.Calls(api, uri, read_only=False)
        askers += [asyncio.create_task(ask(calls, uuid, event)) for event in events[first : first + wire.MAX_CALLS]]
    while await told.readline():
        for event in events:
            event.clear()
        for event in events:
            await event.wait()
        sys.stdout.buffer.write(ANSWERED)
        sys.stdout.buffer.flush()
    for asker in askers:
        asker.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
