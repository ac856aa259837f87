"""Records as they come, for those who look on: `qmp-agent tail` and the page. Nobody who looks on slows the agent down."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from agent.record import Severity, Stamped

QUEUE_RECORDS = 1000
MAX_ONLOOKERS = 32


class TooManyError(Exception):
    """There are as many onlookers as we serve."""


class Onlooker:
    """One who looks on: a bounded queue of the records that it wants."""

    def __init__(self, *, vm: str = "", type_prefix: str = "", severity: Severity = Severity.DEBUG) -> None:
        self.missed = 0
        """Records it was too slow for, since it last asked."""
        self._vm = vm
        self._type = type_prefix
        self._severity = severity
        self._queue: asyncio.Queue[Stamped] = asyncio.Queue(QUEUE_RECORDS)

    def put(self, stamped: Stamped) -> None:
        """Take a record if it is wanted and there is room."""
        record = stamped.record
        if record.severity < self._severity or (self._type and not record.type.startswith(self._type)):
            return
        if self._vm and self._vm not in (record.vm.uuid, record.vm.name):
            return
        try:
            self._queue.put_nowait(stamped)
        except asyncio.QueueFull:
            self.missed += 1

    async def get(self) -> Stamped:
        """Wait for the next one."""
        return await self._queue.get()


class Live:
    """All who look on."""

    def __init__(self) -> None:
        self._onlookers: set[Onlooker] = set()

    def put(self, stamped: Stamped) -> None:
        """Show a record to all."""
        for onlooker in self._onlookers:
            onlooker.put(stamped)

    @contextmanager
    def join(self, onlooker: Onlooker) -> Iterator[Onlooker]:
        """Look on for as long as the block runs.

        Raises:
            TooManyError: there is no room for another.
        """
        if len(self._onlookers) >= MAX_ONLOOKERS:
            raise TooManyError(f"{MAX_ONLOOKERS} are looking on already")
        self._onlookers.add(onlooker)
        try:
            yield onlooker
        finally:
            self._onlookers.discard(onlooker)
