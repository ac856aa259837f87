"""Finds the records that are too large for their topic, after Kafka rejected a batch as too large."""

from collections.abc import Callable, Collection, Sequence

from agent.delivery.sinks.base import SinkError
from agent.delivery.sinks.kafka.config import KafkaConfig
from agent.delivery.sinks.kafka.rejection_workarounds import RejectionWorkarounds
from agent.delivery.sinks.kafka.topic_size_limit import TopicSizeLimit, read_max_message_bytes
from agent.model.record import EncodedRecord

BatchSize = Callable[[EncodedRecord], int]
"""Returns the bytes of a batch with only this record, compressed like the batches of the producer."""


class OversizeRecordFinder:
    """Finds the records that are too large for their topic. The search takes several attempts to send a batch.

    Kafka rejects a batch of several records as a whole. The next batches are smaller if the rejected batch exceeds the topic's limit,
    max.message.bytes. Otherwise all records of the rejected batch are suspects: each may be too large. The next attempt sends each
    suspect in a separate batch.
    """

    def __init__(self, config: KafkaConfig, workarounds: RejectionWorkarounds) -> None:
        self._config = config
        self._workarounds = workarounds
        self._suspects: set[str] = set()  # ids of records of the batches in progress
        # Batches of several records that Kafka rejected in this attempt: topic, bytes, and ids of the records.
        self._rejected_batches: list[tuple[str, int, list[str]]] = []
        # Batches of only one record that Kafka rejected in this attempt: the bytes of the batch, by the record's id.
        self._rejected_records: dict[str, int] = {}
        # The smallest record of the last batch that a topic accepted, by topic.
        self._smallest_accepted: dict[str, EncodedRecord] = {}

    @property
    def has_suspects(self) -> bool:
        """True if some records have to be sent in separate batches."""
        return bool(self._suspects)

    def contains_suspect(self, records: Collection[EncodedRecord]) -> bool:
        """Return whether one of the records has to be sent in a separate batch."""
        return not self._suspects.isdisjoint(record.id for record in records)

    def remember_rejected_batch(self, topic: str, uncompressed_bytes: int, sent_bytes: int, ids: list[str]) -> None:
        """Remember a batch that Kafka rejected as too large in this attempt, for `find_too_large`.

        Args:
            topic: the topic.
            uncompressed_bytes: bytes of the batch before compression.
            sent_bytes: bytes of the batch as it was sent.
            ids: ids of the batch's records.
        """
        if len(ids) == 1:
            self._rejected_records[ids[0]] = sent_bytes
        else:
            self._rejected_batches.append((topic, uncompressed_bytes, ids))

    def remember_smallest_accepted_record(self, topic: str, records: Sequence[EncodedRecord]) -> None:
        """Remember the smallest record of a batch that Kafka accepted."""
        self._smallest_accepted[topic] = min(records, key=_body_bytes)

    def remove_from_suspects(self, ids: set[str]) -> None:
        """Remove records from the suspects, because they need no further attempt."""
        self._suspects -= ids

    async def find_too_large(self, batch: Sequence[EncodedRecord], batch_size: BatchSize) -> set[str]:
        """Prepare the next attempt to send a batch. Return the ids of the records that are too large for their topic.

        Args:
            batch: the records that were sent in this attempt and in earlier attempts.
            batch_size: returns the bytes of a batch with one record.

        Raises:
            SinkError: the limit of a topic is too low for any record. The records wait until the limit is raised.
        """
        await self._prepare_smaller_batches()
        return await self._compare_with_limits(batch, batch_size) if self._rejected_records else set()

    async def _prepare_smaller_batches(self) -> None:
        """For each rejected batch, limit the bytes of the topic's next batches, or make all records of the batch suspects."""
        batches, self._rejected_batches = self._rejected_batches, []
        for topic, size, ids in batches:
            limit = await read_max_message_bytes(self._config.client_options(), topic)
            if limit is not None and size > limit:
                self._workarounds.limit_batches(topic, limit)
            else:
                self._suspects.update(ids)

    async def _compare_with_limits(self, batch: Sequence[EncodedRecord], batch_size: BatchSize) -> set[str]:
        """Return the ids of rejected records that were alone in their batch and whose topic accepts other records."""
        rejected: dict[str, list[EncodedRecord]] = {}
        for record in batch:
            if record.id in self._rejected_records:
                rejected.setdefault(self._config.topic_for(record.type), []).append(record)
        sizes, self._rejected_records = self._rejected_records, {}
        too_large = set()
        for topic, records in rejected.items():
            others = [
                record for record in batch if record.id not in sizes and self._config.topic_for(record.type) == topic
            ]
            if (accepted := self._smallest_accepted.get(topic)) is not None:
                others.append(accepted)  # all other records in the batch may also be too large
            smallest = min(others, key=_body_bytes, default=None)
            limit = TopicSizeLimit(
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
