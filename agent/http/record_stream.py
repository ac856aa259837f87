"""Records as they come, for those who look on: `qmp-agent tail` and the page. Nobody who looks on slows the agent down."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from agent.model.record import EncodedRecord, Severity

QUEUE_RECORDS = 1000
MAX_STREAMS = 32
"""Streams that are served at once, of each kind."""

RECENT_RECORDS = 500
RECENT_BYTES = 1 << 20
"""What is kept of records that are no samples, for those who come late or come back; whichever is less."""


class TooManySubscribersError(Exception):
    """There are as many onlookers as we serve."""


class Subscriber:
    """One who looks on: a bounded queue of the records that it wants."""

    def __init__(self, *, vm: str = "", types: tuple[str, ...] = ("",), severity: Severity = Severity.DEBUG) -> None:
        self.missed = 0
        """Records it was too slow for, since it last asked."""
        self._vm = vm
        self._types = types
        self._severity = severity
        self._queue: asyncio.Queue[EncodedRecord] = asyncio.Queue(QUEUE_RECORDS)

    def offer(self, stamped: EncodedRecord) -> None:
        """Take a record if it is wanted and there is room."""
        record = stamped.record
        if record.severity < self._severity or not record.type.startswith(self._types):
            return
        if self._vm and self._vm not in (record.vm.uuid, record.vm.name):
            return
        try:
            self._queue.put_nowait(stamped)
        except asyncio.QueueFull:
            self.missed += 1

    async def get(self) -> EncodedRecord:
        """Wait for the next one."""
        return await self._queue.get()


class StreamLimit:
    """Room for so many."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._taken = 0

    @contextmanager
    def seat(self) -> Iterator[None]:
        """Take a seat for as long as the block runs.

        Raises:
            TooManyError: there is none.
        """
        if self._taken >= self._count:
            raise TooManySubscribersError(f"{self._count} are looking on already")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class RecordBroadcaster:
    """All who look on, and what happened of late."""

    def __init__(self) -> None:
        self._onlookers: set[Subscriber] = set()
        self._seats = StreamLimit(MAX_STREAMS)
        self._recent: deque[EncodedRecord] = deque()
        self._recent_bytes = 0

    def publish(self, stamped: EncodedRecord) -> None:
        """Show a record to all."""
        for onlooker in self._onlookers:
            onlooker.offer(stamped)
        if stamped.record.kind != "sample":
            self._recent.append(stamped)
            self._recent_bytes += len(stamped.body)
            while len(self._recent) > RECENT_RECORDS or self._recent_bytes > RECENT_BYTES:
                self._recent_bytes -= len(self._recent.popleft().body)

    @contextmanager
    def subscribe(self, onlooker: Subscriber, *, recent: bool = False, after: str = "") -> Iterator[Subscriber]:
        """Look on for as long as the block runs.

        Args:
            onlooker: who.
            recent: whether it is shown first what happened of late, samples aside.
            after: the id of the last record that it has seen, so that it is not shown that and those before it again.

        Raises:
            TooManyError: there is no room for another.
        """
        with self._seats.seat():
            for stamped in self._since(after) if recent else ():
                onlooker.offer(stamped)
            self._onlookers.add(onlooker)
            try:
                yield onlooker
            finally:
                self._onlookers.discard(onlooker)

    def _since(self, after: str) -> list[EncodedRecord]:
        """Return what is kept from after that id on; all, where it is not among them."""
        ids = [stamped.id for stamped in self._recent]
        return list(self._recent)[ids.index(after) + 1 if after in ids else 0 :]
