"""Member of a consumer group that reads the agent's topics, drops duplicates, restores the order and reports gaps.

    async with RecordConsumer(["qemu.alerts"], group="pager", client={"bootstrap_servers": "kafka-1:9092"}) as consumer:
        async for items in consumer:
            for item in items:
                ...

The consumer commits a batch when the caller requests the next batch. A killed service receives its last batch again, so delivery is at
least once. After a start or a rebalance, the consumer rereads some messages before the committed offset, without returning them to the
caller. These messages reveal duplicates and gaps across restarts, so the consumer stores nothing.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from agent.consumer.record_orderer import Gap, OrderSettings, RecordOrderer
from agent.consumer.stream_record import MessageFormatError, MessagePosition, StreamRecord

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ForeignMessage:
    """A message in a topic that is not a record of the agent.

    Attributes:
        position: topic, partition and offset of the message.
        cause: why the message cannot be parsed.
    """

    position: MessagePosition
    cause: str


ConsumedItem = StreamRecord | Gap | ForeignMessage
"""An item of a batch: a record, a gap, or a message that is not a record of the agent."""


@dataclass(frozen=True, slots=True)
class ConsumerSettings:
    """Settings of a `RecordConsumer`.

    Attributes:
        order: limits of the records that wait for an earlier record of the same source.
        reread_messages: number of messages before the committed offset that the consumer rereads in each partition after a start.
        max_batch_messages: maximum number of messages in a batch.
        poll_seconds: how long the consumer waits for messages before it returns an empty batch.
        request_seconds: timeout of each request to Kafka, in seconds.
    """

    order: OrderSettings = field(default_factory=OrderSettings)
    reread_messages: int = 10_000
    max_batch_messages: int = 1000
    poll_seconds: float = 0.5
    request_seconds: float = 30.0


class _AssignedPartition:
    """State of a partition that is assigned to this consumer.

    Attributes:
        orderer: orders the records of the partition.
        committed: the committed offset; None if the group has committed none.
        next_offset: the offset after the last message that was read.
    """

    def __init__(self, orderer: RecordOrderer, committed: int | None, first_offset: int) -> None:
        """Set up the state before the first message is read.

        Args:
            orderer: orders the records of the partition.
            committed: the committed offset; None if the group has committed none.
            first_offset: offset of the first message to return. The consumer rereads earlier messages, but does not return them.
        """
        self.orderer = orderer
        self.committed = committed
        self.next_offset = first_offset
        self._first_offset = first_offset
        self._is_rereading = True

    def add(self, message: ConsumerRecord) -> list[ConsumedItem]:
        """Add the next message of the partition. Return the items that are ready for the caller."""
        position = MessagePosition(message.topic, message.partition, message.offset)
        items: list[ConsumedItem] = []
        if self._is_rereading and message.offset >= self._first_offset:
            self._is_rereading = False
            self.orderer.release_all()  # discards the records that were returned before the restart
        self.next_offset = max(self.next_offset, message.offset + 1)
        try:
            items += self.orderer.add(StreamRecord.parse(position, message.value, message.headers))
        except MessageFormatError as error:
            items.append(ForeignMessage(position, str(error)))
        return [] if self._is_rereading else items

    def release_overdue(self) -> list[ConsumedItem]:
        """Return the records that have waited too long for an earlier record, and the gaps before these records."""
        return [] if self._is_rereading else [*self.orderer.release_overdue()]

    @property
    def offset_to_commit(self) -> int:
        """The offset to commit after the caller has handled all returned items."""
        held = self.orderer.first_held_offset
        return self.next_offset if held is None or self._is_rereading else min(held, self.next_offset)


class RecordConsumer:
    """A member of a consumer group that reads the agent's records. Use as an async context manager and an async iterator.

    Each iteration yields a batch: a list of records, gaps, and messages that are not records of the agent. A batch may be empty.
    """

    def __init__(
        self,
        topics: Iterable[str],
        *,
        group: str,
        client: Mapping[str, Any],
        settings: ConsumerSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up a consumer.

        Args:
            topics: names of the topics.
            group: name of the consumer group. The members of a group share the partitions.
            client: aiokafka's keyword arguments for the connection, such as `bootstrap_servers`. A group without committed
                offsets begins at the oldest record, unless `auto_offset_reset` is `latest`.
            settings: limits and timeouts; None for the defaults.
            clock: returns the time of a monotonic clock in seconds.
        """
        self._topics = list(topics)
        self._settings = settings or ConsumerSettings()
        self._clock = clock
        self._reset_to_end = client.get("auto_offset_reset", "earliest") == "latest"
        options = {"auto_offset_reset": "earliest", **client}
        self._consumer = AIOKafkaConsumer(
            group_id=group, enable_auto_commit=False, max_poll_records=self._settings.max_batch_messages, **options
        )
        self._partitions: dict[TopicPartition, _AssignedPartition] = {}
        self._handled: Mapping[TopicPartition, tuple[_AssignedPartition, int]] = {}

    async def __aenter__(self) -> Self:
        """Connect, and join the group.

        Raises:
            KafkaError: the consumer cannot connect.
            TimeoutError: Kafka did not answer in time.
        """
        self._consumer.subscribe(self._topics, listener=_RebalanceListener(self))
        try:
            async with asyncio.timeout(self._settings.request_seconds):
                await self._consumer.start()  # returns after the group has assigned the partitions
            await self._set_up_new_partitions()
        except BaseException:
            await self._stop_consumer()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop_consumer()

    async def _stop_consumer(self) -> None:
        with contextlib.suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(self._settings.request_seconds):
                await self._consumer.stop()

    async def __aiter__(self) -> AsyncIterator[list[ConsumedItem]]:
        """Yield batches until cancelled. Each iteration first commits the previous batch."""
        while True:
            yield await self._read_batch()
            await self.commit()

    async def commit(self) -> None:
        """Commit the last batch. Call this method if you leave the loop after you have handled the whole batch."""
        offsets = {
            name: offset
            for name, (partition, offset) in self._handled.items()
            if offset != partition.committed and self._partitions.get(name) is partition
        }
        if not offsets:
            return
        try:
            async with asyncio.timeout(self._settings.request_seconds):
                await self._consumer.commit(offsets)
        except (KafkaError, TimeoutError) as error:
            _log.warning(
                "consumer group: offsets not committed: %r; the commit after the next batch includes these offsets",
                error,
            )
            return
        for name, offset in offsets.items():
            # Update the object in `_handled`. A rebalance may have removed the partition from `_partitions`.
            self._handled[name][0].committed = offset

    async def _read_batch(self) -> list[ConsumedItem]:
        """Poll Kafka for messages, and return a batch of items."""
        await self._set_up_new_partitions()
        poll_ms = int(self._settings.poll_seconds * 1000)
        messages: Mapping[TopicPartition, Sequence[ConsumerRecord]] = await self._consumer.getmany(timeout_ms=poll_ms)
        items: list[ConsumedItem] = []
        for name, received in messages.items():
            partition = self._partitions.get(name)
            # A partition that was assigned during the request is not in `_partitions` yet. The next call seeks in the partition.
            if partition is not None:
                items += [item for message in received for item in partition.add(message)]
        for partition in self._partitions.values():
            items += partition.release_overdue()
        self._handled = {name: (partition, partition.offset_to_commit) for name, partition in self._partitions.items()}
        return items

    async def _set_up_new_partitions(self) -> None:
        """In each new partition, seek to `settings.reread_messages` messages before the committed offset."""
        new = [name for name in self._consumer.assignment() if name not in self._partitions]
        if not new:
            return
        try:
            async with asyncio.timeout(self._settings.request_seconds):
                first = await self._consumer.beginning_offsets(new)
                end = await self._consumer.end_offsets(new)
                committed = {name: await self._consumer.committed(name) for name in new}
        except (KafkaError, TimeoutError) as error:
            _log.warning("consumer group: cannot read the offsets of new partitions: %r; retrying", error)
            return
        assigned = self._consumer.assignment()
        for name in filter(assigned.__contains__, new):
            default = end[name] if self._reset_to_end else first[name]
            start = default if committed[name] is None else min(max(committed[name], first[name]), end[name])
            begin = max(first[name], start - self._settings.reread_messages)
            orderer = RecordOrderer(self._settings.order, self._clock, complete=begin == 0)
            self._partitions[name] = _AssignedPartition(orderer, committed[name], start)
            self._consumer.seek(name, begin)

    def discard_partitions(self, names: Iterable[TopicPartition]) -> None:
        """Discard the state of revoked partitions, which another member of the group may read now."""
        for name in names:
            self._partitions.pop(name, None)


class _RebalanceListener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """Listener that reports revoked partitions to the consumer."""

    def __init__(self, consumer: RecordConsumer) -> None:
        self._consumer = consumer

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._consumer.discard_partitions(revoked)

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Do nothing. The next read sets up new partitions, and can report errors. aiokafka only logs the errors of a listener."""
