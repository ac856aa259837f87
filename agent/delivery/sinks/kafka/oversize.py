"""Records in batches that Kafka rejected as too large: which of them are too large themselves."""

from collections.abc import Callable, Collection, Sequence

from agent.delivery.sinks.base import SinkError
from agent.delivery.sinks.kafka.config import KafkaConfig
from agent.delivery.sinks.kafka.size_limits import SizeLimit, read_max_message_bytes
from agent.delivery.sinks.kafka.topic_workarounds import TopicWorkarounds
from agent.model.record import EncodedRecord

BatchSize = Callable[[EncodedRecord], int]
"""Returns the bytes of a batch that has only this record, compressed as the producer compresses batches."""


class OversizeHandler:
    """Finds the records that are too large for their topic, over several attempts to send a batch.

    After a batch of several records was rejected, the next attempt has smaller batches. If a batch that respects the limit of its topic was
    rejected all the same, its records are suspects: each of them gets a batch of its own.
    """

    def __init__(self, config: KafkaConfig, workarounds: TopicWorkarounds) -> None:
        self._config = config
        self._workarounds = workarounds
        self._suspects: set[str] = set()  # ids of records of the batches in progress
        # Rejected in this attempt:
        self._batches: list[tuple[str, int, list[str]]] = []  # of several records: topic, bytes, and ids of the records
        self._records: dict[str, int] = {}  # in a batch of their own: id, and bytes of the batch
        # By topic: the smallest record of the last batch that the topic accepted.
        self._smallest_accepted: dict[str, EncodedRecord] = {}

    def has_suspect(self, records: Collection[EncodedRecord]) -> bool:
        """Return whether one of the records has to be sent in a batch of its own."""
        return bool(self._suspects) and not self._suspects.isdisjoint(record.id for record in records)

    def on_batch_rejected(self, topic: str, size: int, batch_bytes: int, ids: list[str]) -> None:
        """Store that Kafka rejected a batch as too large in this attempt.

        Args:
            topic: the topic.
            size: bytes of the batch before compression.
            batch_bytes: bytes of the batch as it was sent.
            ids: ids of the batch's records.
        """
        if len(ids) == 1:
            self._records[ids[0]] = batch_bytes
        else:
            self._batches.append((topic, size, ids))

    def on_batch_accepted(self, topic: str, records: Sequence[EncodedRecord]) -> None:
        """Store that Kafka accepted a batch of these records."""
        self._smallest_accepted[topic] = min(records, key=_body_bytes)

    def on_records_done(self, ids: set[str]) -> None:
        """Remove records that need no further attempt."""
        self._suspects -= ids

    async def find_too_large(self, batch: Sequence[EncodedRecord], batch_size: BatchSize) -> set[str]:
        """Prepare the next attempt, and return the ids of the records that the topic does not accept while it accepts others.

        Args:
            batch: the records that were sent in this attempt and in earlier ones.
            batch_size: returns the size of a batch of one record.

        Raises:
            SinkError: the limit of a topic is too low for any record; records wait until the limit is raised.
        """
        await self._prepare_smaller_batches()
        return await self._compare_with_limits(batch, batch_size) if self._records else set()

    async def _prepare_smaller_batches(self) -> None:
        """After batches were rejected, make the batches of the topic smaller, or send their records one by one."""
        batches, self._batches = self._batches, []
        for topic, size, ids in batches:
            limit = await read_max_message_bytes(self._config.client_options(), topic)
            if limit is not None and size > limit:
                self._workarounds.limit_batches(topic, limit)
            else:
                self._suspects.update(ids)

    async def _compare_with_limits(self, batch: Sequence[EncodedRecord], batch_size: BatchSize) -> set[str]:
        """Return the ids of records that Kafka did not accept even in a batch of their own, if the topic accepts other records."""
        rejected: dict[str, list[EncodedRecord]] = {}
        for record in batch:
            if record.id in self._records:
                rejected.setdefault(self._config.topic_for(record.type), []).append(record)
        sizes, self._records = self._records, {}
        too_large = set()
        for topic, records in rejected.items():
            others = [
                record for record in batch if record.id not in sizes and self._config.topic_for(record.type) == topic
            ]
            if (accepted := self._smallest_accepted.get(topic)) is not None:
                others.append(accepted)  # the others may be too large too
            smallest = min(others, key=_body_bytes, default=None)
            limit = SizeLimit(
                await read_max_message_bytes(self._config.client_options(), topic),
                batch_size(smallest) if smallest is not None else None,
            )
            for record in records:
                if not limit.is_record_too_large(sizes[record.id]):
                    raise SinkError(
                        f"topic {topic} rejects even records of {len(record.body)} bytes as too large: "
                        f"raise its max.message.bytes to {self._config.max_message_bytes} or more"
                    )
                too_large.add(record.id)
        return too_large


def _body_bytes(record: EncodedRecord) -> int:
    return len(record.body)
