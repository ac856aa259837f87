"""Sink that sends records to Kafka. Messages follow the CloudEvents Kafka binding 1.0.2, and the key of a message identifies the VM.

If an error affects every record, the records wait. A record becomes a dead letter only if Kafka rejects this record as too large, but
accepts other records. If Kafka rejects a record's timestamp, the sink sends the record without a timestamp.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
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
from agent.delivery.sinks.kafka.dead_letters import DeadLetterTopic
from agent.delivery.sinks.kafka.diagnostics import PROBE_SECONDS, explain_error
from agent.delivery.sinks.kafka.message import (
    NO_TIMESTAMP,
    KafkaMessage,
    build_message_encoder,
    message_bytes_upper_bound,
)
from agent.delivery.sinks.kafka.oversize import OversizeRecordFinder
from agent.delivery.sinks.kafka.producer import discard_producer, start_producer
from agent.delivery.sinks.kafka.rejection_workarounds import RejectionWorkarounds
from agent.delivery.sinks.kafka.topic_settings import read_topic_setting
from agent.model.record import EncodedRecord

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaTimings:
    """Deadlines and intervals in seconds. The config cannot change these times.

    Attributes:
        open: maximum time to connect and read the topics' metadata.
        acknowledge: maximum time until a batch is acknowledged, including retries. After this time, the producer is discarded.
        check: time between two checks that the topics exist, while a batch waits for its acknowledgement.
        close: maximum time to discard a producer.
        probe: maximum time of a test connection, which finds out why aiokafka could not connect.
        workaround: how long a workaround for a topic lasts. A topic that rejected a timestamp gets no timestamps; a topic that rejected a
            large batch gets smaller batches.
    """

    open: float = 30.0
    acknowledge: float = 60.0
    check: float = 5.0
    close: float = 3.0
    probe: float = PROBE_SECONDS
    workaround: float = 600.0


_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
_RETRY_NOW = (*_TOO_LARGE, InvalidTimestampError)
"""Errors after which the sink retries immediately, with smaller batches or without timestamps."""


class KafkaSink:
    """Sends records to Kafka. All in-sync replicas acknowledge each record, and the records of a key stay in order."""

    def __init__(
        self, config: KafkaConfig, timings: KafkaTimings | None = None, clock: Callable[[], int] = time.time_ns
    ) -> None:
        """Set up a sink.

        Args:
            config: how to connect, and the topics.
            timings: deadlines and intervals; None for the defaults.
            clock: returns nanoseconds since the epoch.
        """
        self.name = f"Kafka at {', '.join(config.bootstrap_servers)}"
        self._config = config
        self._timings = timings or KafkaTimings()
        self._producer: AIOKafkaProducer | None = None
        self._clock = clock
        self._encode = build_message_encoder(config.content_mode, config.headers)
        self._workarounds = RejectionWorkarounds(self._timings.workaround)
        self._cleanup_policy: str | None = None  # of the state topic; None if unknown
        self._oversize = OversizeRecordFinder(config, self._workarounds)
        # The records of the batches in progress, by id:
        self._rejected: set[str] = set()
        self._acknowledged: set[str] = set()
        self._dead_letters: DeadLetterTopic | None = None
        if config.topics.dead_letters is not None:
            self._dead_letters = DeadLetterTopic(config.topics.dead_letters, self._encode, config.topics.topic_for)

    def warnings(self) -> list[str]:
        """Return warnings for the operator about topics. The sink still delivers records to these topics."""
        warnings = [
            f"topic {topic} rejects the records' timestamps: records are sent without timestamps: {_TIMESTAMP_HINT}"
            for topic in self._workarounds.topics_without_timestamps()
        ]
        if self._cleanup_policy is not None and "compact" not in self._cleanup_policy:
            warnings.append(
                f"topic {self._config.topics.state} is not compacted, so Kafka deletes states after the retention time: "
                "set its cleanup.policy to compact"
            )
        return warnings

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
                if (state := self._config.topics.state) is not None:
                    self._cleanup_policy = await read_topic_setting(options, state, "cleanup.policy")
        except SinkError:
            await self.close()
            raise
        except Exception as error:  # if the server does not speak Kafka's protocol, aiokafka may raise any exception
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
                is_compacted = topic == self._config.topics.state
                settings = {"cleanup.policy": "compact"} if is_compacted else {}
                new_topic = NewTopic(topic, create.partitions, 1, topic_configs=settings)
                new_topic.replication_factor = create.replication_factor  # NewTopic's constructor refuses -1
                response = await admin.create_topics([new_topic])
                _raise_topic_error(response.topic_errors[0])
        finally:
            await admin.close()
        await producer.partitions_for(topic)

    async def send(self, batch: Sequence[EncodedRecord]) -> Sequence[EncodedRecord]:
        """Send a batch, and wait until Kafka acknowledges it. Return the records that Kafka rejects as too large.

        Raises:
            SinkError: some records are not acknowledged. The caller reopens the sink and sends the batch again.
        """
        producer = self._producer
        if producer is None:
            raise SinkError("the connection is closed")
        results = await self._send_all(producer, self._group_by_partition(producer, batch))
        failures = [result for result in results if isinstance(result, BaseException)]
        self._rejected |= await self._oversize.find_too_large(
            batch, lambda record: _batch_bytes(producer, self._encode(record))
        )
        # Prefer a failure that needs a wait before the retry to a failure with an immediate retry.
        for failure in sorted(failures, key=lambda failure: isinstance(failure, _RETRY_NOW)):
            if isinstance(failure, Exception) and not isinstance(failure, SinkError):
                text = await explain_error(failure, self._config, self._timings.probe)
                raise SinkError(text, retry_now=isinstance(failure, _RETRY_NOW)) from failure
            raise failure
        ids = {record.id for record in batch}
        rejected = [record for record in batch if record.id in self._rejected] if self._rejected else []
        if rejected and self._dead_letters is not None:
            await self._send_dead_letters(producer, self._dead_letters, rejected)
        self._rejected -= ids
        self._acknowledged -= ids
        self._oversize.remove_from_suspects(ids)
        return rejected

    async def _send_dead_letters(
        self, producer: AIOKafkaProducer, dead_letters: DeadLetterTopic, records: Sequence[EncodedRecord]
    ) -> None:
        """Send rejected records to the dead-letter topic.

        Raises:
            SinkError: Kafka does not acknowledge some of the records.
        """
        try:
            await dead_letters.send(producer, records, self._timings.acknowledge)
        except KafkaError as failure:
            raise SinkError(await explain_error(failure, self._config, self._timings.probe)) from failure

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
                with contextlib.suppress(asyncio.CancelledError):
                    sending.exception()  # retrieve the exception, because asyncio logs exceptions that are never retrieved
        return sending.result()

    async def _check_topics(self, producer: AIOKafkaProducer, topics: set[str]) -> None:
        """Raise SinkError if a topic was deleted, because aiokafka would wait for the topic forever."""
        with contextlib.suppress(KafkaError):
            metadata = await producer.client.fetch_all_metadata()
            for topic in topics - metadata.topics(exclude_internal_topics=False):
                raise SinkError(_missing_topic_error(topic))

    def _group_by_partition(
        self, producer: AIOKafkaProducer, batch: Sequence[EncodedRecord]
    ) -> dict[tuple[str, int], list[EncodedRecord]]:
        """Return the records of a batch that are not acknowledged or rejected yet, by topic and partition."""
        partitions: dict[tuple[str, int], list[EncodedRecord]] = {}
        # The list in `partitions`, by record type and key. One search for the partition serves all records of a type and a VM.
        routes: dict[tuple[str, str], list[EncodedRecord]] = {}
        # Up to this size, a record's message cannot be too large, because the key and the headers only repeat parts of the body.
        small = self._config.max_message_bytes // 4
        has_done = bool(self._acknowledged)
        for record in batch:
            if (
                len(record.body) > small
                and message_bytes_upper_bound(self._encode(record)) > self._config.max_message_bytes
            ):
                self._rejected.add(record.id)
            if not (has_done and record.id in self._acknowledged) and record.id not in self._rejected:
                records = routes.get(route := (record.type, record.key))
                if records is None:
                    records = routes[route] = partitions.setdefault(self._choose_partition(producer, *route), [])
                records.append(record)
        return partitions

    def _choose_partition(self, producer: AIOKafkaProducer, record_type: str, key: str) -> tuple[str, int]:
        """Return the topic of a record type, and the partition that Kafka's Java client chooses for the key."""
        topic = self._config.topics.topic_for(record_type)
        partitions = producer.client.cluster.partitions_for_topic(topic)
        if not partitions:
            raise SinkError(_missing_topic_error(topic))
        return topic, murmur2_hash(key) % len(partitions)

    async def _send_partition(
        self, producer: AIOKafkaProducer, topic: str, partition: int, records: Sequence[EncodedRecord]
    ) -> None:
        """Send the records of one partition in order: send a batch only after Kafka has acknowledged the previous batch."""
        start = 0
        while start < len(records):
            batch = producer.create_batch()
            latest_ms = self._latest_allowed_timestamp(topic)
            end, size = self._fill_batch(batch, records, start, latest_ms, self._workarounds.max_batch_bytes(topic))
            ids = [record.id for record in records[start:end]]
            try:
                await (await producer.send_batch(batch, topic, partition=partition))
            except _TOO_LARGE:
                self._oversize.remember_rejected_batch(topic, size, batch.size(), ids)
                raise
            except InvalidTimestampError as error:
                if latest_ms == NO_TIMESTAMP:
                    raise SinkError(f"topic {topic} rejects records without a timestamp: {_TIMESTAMP_HINT}") from error
                self._stop_timestamps(topic)
                raise
            self._acknowledged.update(ids)
            self._oversize.remember_smallest_accepted_record(topic, records[start:end])
            start = end

    def _latest_allowed_timestamp(self, topic: str) -> int:
        """Return the latest timestamp that a message may have, in milliseconds since the epoch.

        The result is the current time, or NO_TIMESTAMP if the sink sends no timestamps to the topic.
        """
        return self._clock() // 1_000_000 if self._workarounds.sends_timestamps(topic) else NO_TIMESTAMP

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
        """Add records to a batch until the batch is full. Put a record that may be too large into its own batch.

        Args:
            batch: aiokafka's batch builder.
            records: the records of the partition.
            start: index of the first record to add.
            latest_ms: the latest allowed timestamp, in milliseconds since the epoch; or NO_TIMESTAMP.
            max_bytes: maximum bytes of the batch. The first record is added even if it is larger.

        Returns:
            the index of the first record that is not in the batch, and the bytes of the batch before compression.
        """
        encode, is_limited, has_suspects = self._encode, max_bytes < math.inf, self._oversize.has_suspects
        end, append = start, batch.append  # aiokafka's docstring is wrong: its timestamps are in milliseconds
        for record in islice(records, start, None):
            message = key, value, headers = encode(record)
            if is_limited and end > start and batch.size() + message_bytes_upper_bound(message) > max_bytes:
                break
            time_ms = record.time_ns // 1_000_000
            if not 0 <= time_ms <= latest_ms:
                time_ms = _limit_timestamp(time_ms, latest_ms)
            if append(key=key, value=value, timestamp=time_ms, headers=headers) is None:
                break
            end += 1
            if has_suspects and self._oversize.contains_suspect(records[end - 1 : end + 1]):
                break
        return end, batch.size()

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
def murmur2_hash(key: str) -> int:
    """Return the hash that Kafka's Java client uses to choose the partition of a key."""
    return int(murmur2(key.encode())) & 0x7FFFFFFF


def _limit_timestamp(time_ms: int, latest_ms: int) -> int:
    """Return the timestamp to send for a record whose time is before 1970 or after `latest_ms`. QEMU may send any time in an event.

    Args:
        time_ms: the record's time, milliseconds since the epoch.
        latest_ms: the latest allowed timestamp, in milliseconds since the epoch; or NO_TIMESTAMP.
    """
    return latest_ms if latest_ms == NO_TIMESTAMP or time_ms > 0 else 0


def _batch_bytes(producer: AIOKafkaProducer, message: KafkaMessage) -> int:
    """Return the bytes of a batch with only this message, compressed like the batches of the producer."""
    batch = producer.create_batch()
    key, value, headers = message
    batch.append(key=key, value=value, timestamp=NO_TIMESTAMP, headers=headers)
    return len(batch._build())  # noqa: SLF001 - aiokafka's public `size` is the size before the compression


def _raise_topic_error(topic_error: Sequence[Any]) -> None:
    """Raise the error that Kafka returned for a new topic. Do nothing if there is no error.

    Args:
        topic_error: the topic, the error code (0 for none) and, in newer versions of the protocol, a text.
    """
    if topic_error[1]:
        raise for_code(topic_error[1])(topic_error[2] if len(topic_error) > 2 and topic_error[2] else topic_error[0])
