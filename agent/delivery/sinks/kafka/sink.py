"""Kafka sink. Records follow the CloudEvents Kafka binding 1.0.2 in structured mode.

The body is the whole CloudEvent, and the key identifies the VM.

An error that affects every record is an outage: the records wait. Kafka rejects a record because of the record itself only if it is too
large and other records are not. A timestamp never prevents delivery: if Kafka rejects a record's timestamp, it is sent without one.
"""

import asyncio
import contextlib
import logging
import math
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
from agent.delivery.sinks.kafka.diagnostics import PROBE_SECONDS, explain
from agent.delivery.sinks.kafka.producer import discard_producer, start_producer
from agent.delivery.sinks.kafka.size_limits import SizeLimit, read_max_message_bytes
from agent.model.record import CONTENT_TYPE, EncodedRecord

_log = logging.getLogger(__name__)

HEADERS = [("content-type", f"{CONTENT_TYPE}; charset=UTF-8".encode())]

RECORD_OVERHEAD_BYTES = 512
"""Approximate bytes that a record's key, headers and framing add to its body."""

OVERHEAD_BYTES = 256
"""Approximate bytes that headers and framing add to a record's key and body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaTimings:
    """Deadlines that are not configurable, in seconds.

    Attributes:
        open: to connect and read the topics' metadata.
        acknowledge: for the acknowledgement of a batch, including retries; a producer that takes longer is discarded.
        check: interval of the checks that the topics exist, while waiting for an acknowledgement.
        close: to discard a producer.
        probe: for the connection that finds out why aiokafka could not connect.
        relearn: how long a topic gets no timestamps, or smaller batches, after it rejected a timestamp or a batch.
    """

    open: float = 30.0
    acknowledge: float = 60.0
    check: float = 5.0
    close: float = 3.0
    probe: float = PROBE_SECONDS
    relearn: float = 600.0


NO_TIMESTAMP = -1
"""Kafka's value for a record without a timestamp. Brokers accept it regardless of their clocks and limits."""

_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
_RETRY_NOW = (*_TOO_LARGE, InvalidTimestampError)
"""Errors of a batch after which the next attempt differs: smaller batches, or no timestamps."""


class KafkaSink:
    """A sink whose records are acknowledged by all in-sync replicas, in order for each key."""

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
        self._suspects: set[str] = set()  # ids of the records of a rejected batch: one of them is the cause
        self._too_large: dict[
            str, int
        ] = {}  # id and bytes as sent of the records that were rejected alone in this attempt
        self._oversized: list[
            tuple[str, int, list[str]]
        ] = []  # topic, bytes and ids of batches rejected in this attempt
        self._batch_limits: dict[
            str, tuple[int, float]
        ] = {}  # bytes of a topic's batches, and until when by time.monotonic
        self._smallest: dict[str, EncodedRecord] = {}  # the smallest record of the last batch that a topic accepted
        self._rejected: set[str] = set()
        self._acknowledged: set[str] = set()
        self._untimestamped: dict[str, float] = {}  # until when a topic gets no timestamps, by time.monotonic

    def warnings(self) -> list[str]:
        """Return conditions that the operator should check, although records are delivered."""
        now = time.monotonic()
        return [
            f"topic {topic} rejects the records' timestamps: records are sent without timestamps: {_TIMESTAMP_HINT}"
            for topic, until in sorted(self._untimestamped.items())
            if now < until
        ]

    async def open(self) -> None:
        """Connect, and check that every topic exists.

        Raises:
            SinkError: no broker is reachable or accepts the agent, or a topic is missing.
        """
        try:
            async with asyncio.timeout(self._timings.open):
                options = self._config.options() | {"request_timeout_ms": int(self._config.request_timeout * 1000)}
                self._producer = await start_producer(self._config, options, self._timings.close)
                for topic in sorted(self._config.topics.all()):
                    await self._ensure_topic(self._producer, topic, options)
        except SinkError:
            await self.close()
            raise
        except Exception as error:  # aiokafka raises anything at a server that is not Kafka
            await self.close()
            raise SinkError(await explain(error, self._config, self._timings.probe)) from error
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
            raise SinkError(_missing(topic))
        admin = AIOKafkaAdminClient(**options)
        await admin.start()
        try:
            with contextlib.suppress(TopicAlreadyExistsError):
                new = NewTopic(topic, create.partitions, 1)
                new.replication_factor = create.replication_factor  # NewTopic's constructor refuses -1
                response = await admin.create_topics([new])
                _raise_for(response.topic_errors[0])
        finally:
            await admin.close()
        await producer.partitions_for(topic)

    async def send(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
        """Send a batch and wait until Kafka acknowledges it; return the records that Kafka rejects because of the record itself.

        Raises:
            SinkError: some records are not acknowledged; close this sink and open it again.
        """
        producer = self._producer
        if producer is None:
            raise SinkError("the connection is closed")
        results = await self._send_all(producer, self._by_partition(producer, batch))
        failures = [result for result in results if isinstance(result, BaseException)]
        await self._limit_batches()
        if self._too_large:
            await self._judge_too_large(producer, batch)
        # Raise a failure that needs a wait first; the retry after the others is immediate.
        for failure in sorted(failures, key=lambda failure: isinstance(failure, _RETRY_NOW)):
            if isinstance(failure, Exception) and not isinstance(failure, SinkError):
                text = await explain(failure, self._config, self._timings.probe)
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
        """Send records to all partitions concurrently; return the failure of each partition, or None.

        Raises:
            SinkError: a topic was deleted, or the acknowledgement took too long.
        """
        sending = asyncio.gather(
            *(self._send_partition(producer, place, records) for place, records in partitions.items()),
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
        """Raise SinkError if a topic was deleted: aiokafka would wait for the topic forever."""
        with contextlib.suppress(KafkaError):
            metadata = await producer.client.fetch_all_metadata()
            for topic in topics - metadata.topics(exclude_internal_topics=False):
                raise SinkError(_missing(topic))

    async def _limit_batches(self) -> None:
        """After batches were rejected as too large: make the topic's batches smaller, or send their records one by one."""
        oversized, self._oversized = self._oversized, []
        for topic, size, ids in oversized:
            limit = await read_max_message_bytes(self._config.options(), topic)
            if limit is not None and size > limit:
                self._batch_limits[topic] = limit, time.monotonic() + self._timings.relearn
            else:
                self._suspects.update(ids)

    async def _judge_too_large(self, producer: AIOKafkaProducer, batch: Sequence[EncodedRecord]) -> None:
        """Decide why Kafka rejected records that each had a batch of their own: they are too large, or their topic's limit is too low.

        Raises:
            SinkError: the limit of a topic is too low for any record; records wait until it is raised.
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
            smallest = min(others, key=_body_bytes, default=self._smallest.get(topic))
            limit = SizeLimit(
                await read_max_message_bytes(self._config.options(), topic),
                _bytes_as_sent(producer, smallest) if smallest is not None else None,
            )
            for record in records:
                if not limit.is_fault_of(sizes[record.id]):
                    raise SinkError(
                        f"topic {topic} rejects even records of {len(record.body)} bytes as too large: "
                        f"raise its max.message.bytes to {self._config.max_message_bytes} or more"
                    )
                self._rejected.add(record.id)

    def _by_partition(
        self, producer: AIOKafkaProducer, batch: Sequence[EncodedRecord]
    ) -> dict[tuple[str, int], list[EncodedRecord]]:
        """Return the records that are not sent yet, by topic and partition."""
        partitions: dict[tuple[str, int], list[EncodedRecord]] = {}
        routes: dict[tuple[str, str], list[EncodedRecord]] = {}  # one lookup for all records of a type and a VM
        max_body = self._config.max_message_bytes - RECORD_OVERHEAD_BYTES
        for record in batch:
            if _body_bytes(record) > max_body:
                self._rejected.add(record.id)
            if record.id not in self._rejected and record.id not in self._acknowledged:
                records = routes.get(route := (record.type, record.key))
                if records is None:
                    records = routes[route] = partitions.setdefault(self._partition(producer, *route), [])
                records.append(record)
        return partitions

    def _partition(self, producer: AIOKafkaProducer, record_type: str, key: str) -> tuple[str, int]:
        """Return the topic and partition for a type and a key; the partition is the one that Kafka's own clients choose."""
        topic = self._config.topics.topic_for(record_type)
        partitions = producer.client.cluster.partitions_for_topic(topic)
        if not partitions:
            raise SinkError(_missing(topic))
        return topic, _hash(key) % len(partitions)

    async def _send_partition(
        self, producer: AIOKafkaProducer, place: tuple[str, int], records: Sequence[EncodedRecord]
    ) -> None:
        """Send one partition's records, one batch at a time: a batch must not overtake an earlier one that failed."""
        topic, partition = place
        start = 0
        while start < len(records):
            batch = producer.create_batch()
            latest_ms = self._latest_timestamp(topic)
            end, size = self._fill(batch, records, start, latest_ms, self._batch_limit(topic))
            ids = [record.id for record in records[start:end]]
            try:
                await (await producer.send_batch(batch, topic, partition=partition))
            except _TOO_LARGE:
                if len(ids) == 1:
                    self._too_large[ids[0]] = batch.size()
                else:
                    self._oversized.append((topic, size, ids))
                raise
            except InvalidTimestampError as error:
                if latest_ms == NO_TIMESTAMP:
                    raise SinkError(f"topic {topic} rejects records without a timestamp: {_TIMESTAMP_HINT}") from error
                self._stop_timestamps(topic)
                raise
            self._acknowledged.update(ids)
            self._smallest[topic] = min(records[start:end], key=_body_bytes)
            start = end

    def _batch_limit(self, topic: str) -> float:
        limit, until = self._batch_limits.get(topic, (math.inf, math.inf))
        return limit if time.monotonic() < until else math.inf

    def _latest_timestamp(self, topic: str) -> int:
        """Return the latest allowed timestamp of a record in milliseconds since the epoch; NO_TIMESTAMP if the topic gets none."""
        if time.monotonic() < self._untimestamped.get(topic, 0.0):
            return NO_TIMESTAMP
        return self._clock() // 1_000_000

    def _stop_timestamps(self, topic: str) -> None:
        if topic not in self._untimestamped:
            _log.warning(
                "%s: topic %s rejects the records' timestamps: records are sent without timestamps: %s",
                self.name,
                topic,
                _TIMESTAMP_HINT,
            )
        self._untimestamped[topic] = time.monotonic() + self._timings.relearn

    def _fill(
        self, batch: Any, records: Sequence[EncodedRecord], start: int, latest_ms: int, limit: float
    ) -> tuple[int, int]:
        """Add records to a batch while it has room. A suspect, one that may be too large, gets its own batch.

        Args:
            batch: aiokafka's batch builder.
            records: the records of the partition.
            start: index of the first record to add.
            latest_ms: the latest allowed timestamp, as in `_append`.
            limit: maximum bytes of the batch; the first record is added whatever its size.

        Returns:
            the index of the first record of the next batch, and the bytes of this one.
        """
        end, size = start, 0
        while end < len(records):
            more = _body_bytes(records[end]) + len(records[end].key) + OVERHEAD_BYTES
            if (size and size + more > limit) or not _append(batch, records[end], latest_ms):
                break
            size += more
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


def _missing(topic: str) -> str:
    return (
        f"topic {topic} does not exist, or the agent is not authorized to see it: create it, or set kafka.create_topics"
    )


@lru_cache(maxsize=16384)
def _hash(key: str) -> int:
    return int(murmur2(key.encode())) & 0x7FFFFFFF


def _append(batch: Any, record: EncodedRecord, latest_ms: int) -> bool:
    """Add a record to a batch, if it has room.

    The timestamp is in milliseconds; aiokafka's docstring is wrong. QEMU may send any time in an event, so the timestamp is limited to
    the range from 1970 to now.
    """
    timestamp = latest_ms
    if latest_ms != NO_TIMESTAMP:
        timestamp = max(0, min(record.time_ns // 1_000_000, latest_ms))
    added = batch.append(key=record.key.encode(), value=record.body, timestamp=timestamp, headers=HEADERS)
    return added is not None


def _body_bytes(record: EncodedRecord) -> int:
    return len(record.body)


def _bytes_as_sent(producer: AIOKafkaProducer, record: EncodedRecord) -> int:
    """Return the bytes of a batch that has one record alone, compressed as the producer compresses it."""
    batch = producer.create_batch()
    _append(batch, record, NO_TIMESTAMP)
    return len(batch._build())  # noqa: SLF001 - aiokafka's public `size` is that before the compression


def _raise_for(topic_error: Sequence[Any]) -> None:
    """Raise the error of a request to create a topic, if it failed."""
    if topic_error[1]:
        raise for_code(topic_error[1])(topic_error[2] if len(topic_error) > 2 and topic_error[2] else topic_error[0])
