"""Live stream of records for `qmp-agent tail` and the page. A slow subscriber misses records, and does not block the agent."""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from agent.model.record import EncodedRecord, Severity

QUEUE_RECORDS = 1000
"""Maximum number of records that wait for one subscriber."""
MAX_STREAMS = 32
"""Maximum number of concurrent record streams, and of concurrent overview streams."""

RECENT_RECORDS = 500
"""Maximum number of recent records, without samples, that are kept for new subscribers."""
RECENT_BYTES = 1 << 20
"""Maximum size of the recent records that are kept for new subscribers, in bytes."""


class TooManySubscribersError(Exception):
    """The maximum number of concurrent streams is open."""


class Subscriber:
    """A bounded queue of the records that match a filter.

    Args:
        vm: name or UUID of one VM; empty matches all.
        types: prefixes of record types; a record matches if its type begins with any prefix.
        severity: the lowest severity that matches.
    """

    def __init__(self, *, vm: str = "", types: tuple[str, ...] = ("",), severity: Severity = Severity.DEBUG) -> None:
        self.missed = 0
        """Number of matching records that were dropped, because the queue was full. The reader of the queue resets this number."""
        self._vm = vm
        self._types = types
        self._severity = severity
        self._queue: asyncio.Queue[EncodedRecord] = asyncio.Queue(QUEUE_RECORDS)

    def offer(self, encoded: EncodedRecord) -> None:
        """Enqueue a record if it matches and the queue has room."""
        if encoded.severity < self._severity or not encoded.type.startswith(self._types):
            return
        vm = encoded.vm
        if self._vm and (vm is None or self._vm not in (vm.uuid, vm.name)):
            return
        try:
            self._queue.put_nowait(encoded)
        except asyncio.QueueFull:
            self.missed += 1

    async def get(self) -> EncodedRecord:
        """Wait for the next record."""
        return await self._queue.get()


class StreamLimit:
    """Limits the number of concurrent streams."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._in_use = 0

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Count one more open stream while the `with` block runs.

        Raises:
            TooManySubscribersError: all streams are in use.
        """
        if self._in_use >= self._maximum:
            raise TooManySubscribersError(f"all {self._maximum} streams are in use")
        self._in_use += 1
        try:
            yield
        finally:
            self._in_use -= 1


class RecordBroadcaster:
    """Offers each record to all subscribers, and keeps recent records for new subscribers."""

    def __init__(self, recent_records: int = RECENT_RECORDS, recent_bytes: int = RECENT_BYTES) -> None:
        self._subscribers: set[Subscriber] = set()
        self._limit = StreamLimit(MAX_STREAMS)
        self._max_recent_records = recent_records
        self._max_recent_bytes = recent_bytes
        self._recent: deque[EncodedRecord] = deque()
        self._recent_bytes = 0

    def publish(self, encoded: EncodedRecord, kind: str = "") -> None:
        """Offer a record to all subscribers without blocking.

        Args:
            encoded: the record.
            kind: the record's kind, such as `event`; empty to derive the kind from the record.
        """
        for subscriber in self._subscribers:
            subscriber.offer(encoded)
        if (kind or encoded.kind) != "sample":
            recent, size = self._recent, self._recent_bytes + len(encoded.body)
            recent.append(encoded)
            while len(recent) > self._max_recent_records or size > self._max_recent_bytes:
                size -= len(recent.popleft().body)
            self._recent_bytes = size

    def publish_samples(self, samples: Sequence[EncodedRecord]) -> None:
        """Offer samples to all subscribers. Samples are not kept for new subscribers."""
        for subscriber in self._subscribers:
            for encoded in samples:
                subscriber.offer(encoded)

    @contextmanager
    def subscribe(self, subscriber: Subscriber, *, recent: bool = False, after: str = "") -> Iterator[Subscriber]:
        """Deliver records to a subscriber while the `with` block runs.

        Args:
            subscriber: the receiver.
            recent: whether recent records, except samples, are delivered first.
            after: id of the last record that the receiver has. This record and all earlier records are skipped. An unknown id skips no
                record.

        Raises:
            TooManySubscribersError: all streams are in use.
        """
        with self._limit.acquire():
            for encoded in self._recent_after(after) if recent else ():
                subscriber.offer(encoded)
            self._subscribers.add(subscriber)
            try:
                yield subscriber
            finally:
                self._subscribers.discard(subscriber)

    def _recent_after(self, record_id: str) -> list[EncodedRecord]:
        """Return the recent records after the record with this id; all recent records if the id is unknown."""
        ids = [encoded.id for encoded in self._recent]
        return list(self._recent)[ids.index(record_id) + 1 if record_id in ids else 0 :]
