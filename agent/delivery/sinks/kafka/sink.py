"""Kafka sink. Records follow the CloudEvents Kafka binding 1.0.2 in structured mode.

The body is the whole CloudEvent, and the key identifies the VM.

An error that affects every record is an outage: the records wait. A record becomes a dead letter only if Kafka rejects it as too large and
accepts other records. A timestamp never prevents delivery: if Kafka rejects the timestamp of a record, the record is sent without one.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    InvalidTimestampError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAlreadyExistsError,
    for_code,
)
from aiokafka.partitioner import murmur2

from agent.delivery.sinks.base import SinkError
from agent.delivery.sinks.kafka.config import KafkaConfig
from agent.delivery.sinks.kafka.diagnostics import PROBE_SECONDS, explain_error
from agent.delivery.sinks.kafka.producer import discard_producer, start_producer
from agent.delivery.sinks.kafka.size_limits import SizeLimit, read_max_message_bytes
from agent.delivery.sinks.kafka.topic_workarounds import TopicWorkarounds
from agent.model.record import CONTENT_TYPE, EncodedRecord

_log = logging.getLogger(__name__)

HEADERS = [("content-type", f"{CONTENT_TYPE}; charset=UTF-8".encode())]

MAX_RECORD_OVERHEAD_BYTES = 512
"""Upper bound of the bytes that the key, the headers and the framing add to the body of a record."""

TYPICAL_OVERHEAD_BYTES = 256
"""Typical bytes that the headers and the framing add to the key and the body of a record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaTimings:
    """Deadlines that are not configurable, in seconds.

    Attributes:
        open: to connect and read the topics' metadata.
        acknowledge: for the acknowledgement of a batch, including retries. A producer that takes longer is discarded.
        check: time between two checks that the topics exist, while a batch waits for its acknowledgement.
        close: to discard a producer.
        probe: for the test connection that finds out why aiokafka could not connect.
        workaround: how long a topic gets no timestamps after it rejected one, or smaller batches after it rejected one as too large.
    """

    open: float = 30.0
    acknowledge: float = 60.0
    check: float = 5.0
    close: float = 3.0
    probe: float = PROBE_SECONDS
    workaround: float = 600.0


NO_TIMESTAMP = -1
"""Kafka's value for a record without a timestamp. Brokers accept this value regardless of their clocks and limits."""

_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
_RETRY_NOW = (*_TOO_LARGE, InvalidTimestampError)
"""Errors after which the next attempt differs, by smaller batches or by no timestamps. So the retry needs no wait."""


class KafkaSink:
    """Sends records to Kafka. All in-sync replicas acknowledge each record, and the records of a key stay in order."""

    def __init__(
        self, config: KafkaConfig, timings: KafkaTimings | None = None, clock: Callable[[], int] = time.time_ns
    ) -> None:
        """Set up a sink.

        Args:
            config: how to connect, and the topics.
            timings: deadlines.
            clock: returns nanoseconds since the epoch.
        """
        self.name = f"Kafka at {', '.join(config.bootstrap_servers)}"
        self._config = config
        self._timings = timings or KafkaTimings()
        self._producer: AIOKafkaProducer | None = None
        self._clock = clock
        self._workarounds = TopicWorkarounds(self._timings.workaround)
        # The records of the batches in progress, by id:
        self._suspects: set[str] = set()  # one of them made Kafka reject their batch as too large
        self._too_large: dict[
            str, int
        ] = {}  # rejected as too large in a batch of their own, in this attempt, with its bytes
        self._rejected: set[str] = set()
        self._acknowledged: set[str] = set()
        # Batches of several records that were rejected as too large in this attempt: topic, bytes, and ids of the records.
        self._oversized_batches: list[tuple[str, int, list[str]]] = []
        # By topic: the smallest record of the last batch that the topic accepted.
        self._smallest_accepted: dict[str, EncodedRecord] = {}

    def warnings(self) -> list[str]:
        """Return conditions that the operator should check, although records are delivered."""
        return [
            f"topic {topic} rejects the records' timestamps: records are sent without timestamps: {_TIMESTAMP_HINT}"
            for topic in self._workarounds.topics_without_timestamps()
        ]

    async def open(self) -> None:
        """Connect, and check that every topic exists.

        Raises:
            SinkError: no broker is reachable or accepts the agent, or a topic is missing.
        """
        try:
            async with asyncio.timeout(self._timings.open):
                options = self._config.client_options() | {
                    "request_timeout_ms": int(self._config.request_timeout * 1000)
                }
                self._producer = await start_producer(self._config, options, self._timings.close)
                for topic in sorted(self._config.topics.all_topics()):
                    await self._ensure_topic(self._producer, topic, options)
        except SinkError:
            await self.close()
            raise
        except Exception as error:  # aiokafka raises anything at a server that is not Kafka
            await self.close()
            raise SinkError(await explain_error(error, self._config, self._timings.probe)) from error
        except BaseException:
            await self.close()
            raise

    async def _ensure_topic(self, producer: AIOKafkaProducer, topic: str, options: Mapping[str, Any]) -> None:
        metadata = await producer.client.fetch_all_metadata()
        if topic in metadata.topics(exclude_internal_topics=False):
            await producer.partitions_for(topic)
            return
        create = self._config.create_topics
        if create is None:
            raise SinkError(_missing_topic_error(topic))
        admin = AIOKafkaAdminClient(**options)
        await admin.start()
        try:
            with contextlib.suppress(TopicAlreadyExistsError):
                new_topic = NewTopic(topic, create.partitions, 1)
                new_topic.replication_factor = create.replication_factor  # NewTopic's constructor refuses -1
                response = await admin.create_topics([new_topic])
                _raise_topic_error(response.topic_errors[0])
        finally:
            await admin.close()
        await producer.partitions_for(topic)

    async def send(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
        """Send a batch and wait until Kafka acknowledges it. Return the records that Kafka rejects because of the record itself.

        Raises:
            SinkError: some records are not acknowledged. The caller closes the sink, opens it again and sends the batch again.
        """
        producer = self._producer
        if producer is None:
            raise SinkError("the connection is closed")
        results = await self._send_all(producer, self._group_by_partition(producer, batch))
        failures = [result for result in results if isinstance(result, BaseException)]
        await self._handle_oversized_batches()
        if self._too_large:
            await self._reject_too_large(producer, batch)
        # Raise a failure that needs a wait first, because other failures are retried immediately.
        for failure in sorted(failures, key=lambda failure: isinstance(failure, _RETRY_NOW)):
            if isinstance(failure, Exception) and not isinstance(failure, SinkError):
                text = await explain_error(failure, self._config, self._timings.probe)
                raise SinkError(text, retry_now=isinstance(failure, _RETRY_NOW)) from failure
            raise failure
        ids = {record.id for record in batch}
        rejected = [record for record in batch if record.id in self._rejected]
        self._rejected -= ids
        self._acknowledged -= ids
        self._suspects -= ids
        return rejected

    async def _send_all(
        self, producer: AIOKafkaProducer, partitions: Mapping[tuple[str, int], Sequence[EncodedRecord]]
    ) -> list[BaseException | None]:
        """Send records to all partitions concurrently. Return the failure of each partition; None for a partition without failure.

        Raises:
            SinkError: a topic was deleted, or the acknowledgement took too long.
        """
        sending = asyncio.gather(
            *(self._send_partition(producer, *partition, records) for partition, records in partitions.items()),
            return_exceptions=True,
        )
        try:
            async with asyncio.timeout(self._timings.acknowledge):
                while not (await asyncio.wait({sending}, timeout=self._timings.check))[0]:
                    await self._check_topics(producer, {topic for topic, _ in partitions})
        except TimeoutError:
            raise SinkError(
                f"no acknowledgement for {self._timings.acknowledge:g} s: "
                "check the brokers' load, the topics' min.insync.replicas and the quotas of the client"
            ) from None
        finally:
            if not sending.done():
                sending.cancel()
                await asyncio.wait({sending})
        return sending.result()

    async def _check_topics(self, producer: AIOKafkaProducer, topics: set[str]) -> None:
        """Raise SinkError if a topic was deleted, because aiokafka would wait for the topic forever."""
        with contextlib.suppress(KafkaError):
            metadata = await producer.client.fetch_all_metadata()
            for topic in topics - metadata.topics(exclude_internal_topics=False):
                raise SinkError(_missing_topic_error(topic))

    async def _handle_oversized_batches(self) -> None:
        """After batches were rejected as too large, make the batches of the topic smaller, or send their records one by one."""
        oversized_batches, self._oversized_batches = self._oversized_batches, []
        for topic, size, ids in oversized_batches:
            limit = await read_max_message_bytes(self._config.client_options(), topic)
            if limit is not None and size > limit:
                self._workarounds.limit_batches(topic, limit)
            else:
                self._suspects.update(ids)

    async def _reject_too_large(self, producer: AIOKafkaProducer, batch: Sequence[EncodedRecord]) -> None:
        """Reject records that Kafka did not accept even in a batch of their own, if the topic accepts other records.

        Raises:
            SinkError: the limit of a topic is too low for any record; records wait until the limit is raised.
        """
        suspects: dict[str, list[EncodedRecord]] = {}
        for record in batch:
            if record.id in self._too_large:
                suspects.setdefault(self._config.topics.topic_for(record.type), []).append(record)
        sizes, self._too_large = self._too_large, {}
        for topic, records in suspects.items():
            others = [
                record
                for record in batch
                if record not in records and self._config.topics.topic_for(record.type) == topic
            ]
            smallest = min(others, key=_body_bytes, default=self._smallest_accepted.get(topic))
            limit = SizeLimit(
                await read_max_message_bytes(self._config.client_options(), topic),
                _single_record_batch_bytes(producer, smallest) if smallest is not None else None,
            )
            for record in records:
                if not limit.is_record_too_large(sizes[record.id]):
                    raise SinkError(
                        f"topic {topic} rejects even records of {len(record.body)} bytes as too large: "
                        f"raise its max.message.bytes to {self._config.max_message_bytes} or more"
                    )
                self._rejected.add(record.id)

    def _group_by_partition(
        self, producer: AIOKafkaProducer, batch: Sequence[EncodedRecord]
    ) -> dict[tuple[str, int], list[EncodedRecord]]:
        """Return the records of a batch that are not acknowledged or rejected yet, by topic and partition."""
        partitions: dict[tuple[str, int], list[EncodedRecord]] = {}
        routes: dict[tuple[str, str], list[EncodedRecord]] = {}  # one lookup for all records of a type and a VM
        max_body = self._config.max_message_bytes - MAX_RECORD_OVERHEAD_BYTES
        for record in batch:
            if _body_bytes(record) > max_body:
                self._rejected.add(record.id)
            if record.id not in self._rejected and record.id not in self._acknowledged:
                records = routes.get(route := (record.type, record.key))
                if records is None:
                    records = routes[route] = partitions.setdefault(self._choose_partition(producer, *route), [])
                records.append(record)
        return partitions

    def _choose_partition(self, producer: AIOKafkaProducer, record_type: str, key: str) -> tuple[str, int]:
        """Return the topic of a record type and the partition of a key, which Kafka's Java client would choose too."""
        topic = self._config.topics.topic_for(record_type)
        partitions = producer.client.cluster.partitions_for_topic(topic)
        if not partitions:
            raise SinkError(_missing_topic_error(topic))
        return topic, hash_key(key) % len(partitions)

    async def _send_partition(
        self, producer: AIOKafkaProducer, topic: str, partition: int, records: Sequence[EncodedRecord]
    ) -> None:
        """Send the records of one partition, one batch at a time: a batch must not overtake an earlier batch that failed."""
        start = 0
        while start < len(records):
            batch = producer.create_batch()
            latest_ms = self._latest_allowed_timestamp(topic)
            end, size = self._fill_batch(batch, records, start, latest_ms, self._workarounds.max_batch_bytes(topic))
            ids = [record.id for record in records[start:end]]
            try:
                await (await producer.send_batch(batch, topic, partition=partition))
            except _TOO_LARGE:
                if len(ids) == 1:
                    self._too_large[ids[0]] = batch.size()
                else:
                    self._oversized_batches.append((topic, size, ids))
                raise
            except InvalidTimestampError as error:
                if latest_ms == NO_TIMESTAMP:
                    raise SinkError(f"topic {topic} rejects records without a timestamp: {_TIMESTAMP_HINT}") from error
                self._stop_timestamps(topic)
                raise
            self._acknowledged.update(ids)
            self._smallest_accepted[topic] = min(records[start:end], key=_body_bytes)
            start = end

    def _latest_allowed_timestamp(self, topic: str) -> int:
        """Return the latest allowed timestamp of a record, in milliseconds since the epoch; NO_TIMESTAMP if records get no timestamp."""
        return self._clock() // 1_000_000 if self._workarounds.has_timestamps(topic) else NO_TIMESTAMP

    def _stop_timestamps(self, topic: str) -> None:
        if self._workarounds.stop_timestamps(topic):
            _log.warning(
                "%s: topic %s rejects the records' timestamps: records are sent without timestamps: %s",
                self.name,
                topic,
                _TIMESTAMP_HINT,
            )

    def _fill_batch(
        self, batch: Any, records: Sequence[EncodedRecord], start: int, latest_ms: int, max_bytes: float
    ) -> tuple[int, int]:
        """Add records to a batch while it has room. A record that may be too large gets a batch of its own.

        Args:
            batch: aiokafka's batch builder.
            records: the records of the partition.
            start: index of the first record to add.
            latest_ms: the latest allowed timestamp, in milliseconds since the epoch; or NO_TIMESTAMP.
            max_bytes: maximum bytes of the batch; the first record is added whatever its size.

        Returns:
            the index of the first record that is not in the batch, and the bytes of the batch.
        """
        end, size = start, 0
        while end < len(records):
            record_bytes = _body_bytes(records[end]) + len(records[end].key) + TYPICAL_OVERHEAD_BYTES
            if (size and size + record_bytes > max_bytes) or not _append_record(batch, records[end], latest_ms):
                break
            size += record_bytes
            end += 1
            if self._suspects and not self._suspects.isdisjoint(record.id for record in records[end - 1 : end + 1]):
                break
        return end, size

    async def close(self) -> None:
        """Discard the producer and its unsent records."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await discard_producer(producer, self._timings.close)


_TIMESTAMP_HINT = (
    "compare the clocks of this host and of the brokers, "
    "and the topic's message.timestamp.before.max.ms and message.timestamp.after.max.ms"
)


def _missing_topic_error(topic: str) -> str:
    return (
        f"topic {topic} does not exist, or the agent is not authorized to see it: create it, or set kafka.create_topics"
    )


@lru_cache(maxsize=16384)
def hash_key(key: str) -> int:
    """Return the hash by which Kafka's Java client chooses the partition of a key."""
    return int(murmur2(key.encode())) & 0x7FFFFFFF


def _append_record(batch: Any, record: EncodedRecord, latest_ms: int) -> bool:
    """Add a record to a batch; return whether the batch had room for it.

    aiokafka's docstring is wrong: the timestamp is in milliseconds. QEMU may send any time in an event, so the timestamp is limited to
    the range from 1970 to `latest_ms`.
    """
    timestamp = latest_ms
    if latest_ms != NO_TIMESTAMP:
        timestamp = max(0, min(record.time_ns // 1_000_000, latest_ms))
    metadata = batch.append(key=record.key.encode(), value=record.body, timestamp=timestamp, headers=HEADERS)
    return metadata is not None


def _body_bytes(record: EncodedRecord) -> int:
    return len(record.body)


def _single_record_batch_bytes(producer: AIOKafkaProducer, record: EncodedRecord) -> int:
    """Return the bytes of a batch that has only this record, compressed as the producer compresses batches."""
    batch = producer.create_batch()
    _append_record(batch, record, NO_TIMESTAMP)
    return len(batch._build())  # noqa: SLF001 - aiokafka's public `size` is the size before the compression


def _raise_topic_error(topic_error: Sequence[Any]) -> None:
    """Raise the error that Kafka returned on one topic, if there is an error.

    Args:
        topic_error: the topic, the error code (0 for none) and, in newer versions of the protocol, a text.
    """
    if topic_error[1]:
        raise for_code(topic_error[1])(topic_error[2] if len(topic_error) > 2 and topic_error[2] else topic_error[0])
