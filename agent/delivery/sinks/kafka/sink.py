"""Kafka sink, by the CloudEvents Kafka binding 1.0.2 in structured mode: the body is the event, the key its VM.

An aiokafka producer is discarded after any failure. Once a batch has failed for good, an idempotent producer's sequence numbers do not
match the broker's and every later batch fails too (aiokafka issue 1017). A producer does not return to its bootstrap servers when all
brokers have moved (459). Its `stop` waits forever for brokers that are gone (1101). So every failure is a SinkError: the supervisor
closes this sink, opens it again and sends the same batch again.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
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
from agent.model.record import CONTENT_TYPE, EncodedRecord

HEADERS = [("content-type", f"{CONTENT_TYPE}; charset=UTF-8".encode())]

BATCH_BYTES = 1024 * 1024
"""Bytes of records in one Kafka batch before compression. One batch per partition is in flight, and a busy loop slows each round trip."""
UNCOMPRESSED_BATCH_BYTES = 256 * 1024
"""The same without compression."""
RECORD_OVERHEAD_BYTES = 512
"""Bytes that a record's key, headers and framing add to its body, roughly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaTimings:
    """Deadlines that are not configurable, in seconds.

    Attributes:
        open: connecting and reading the topics' metadata.
        acknowledge: acknowledgement of a batch, retries included; a producer that takes longer counts as lost.
        close: discarding a producer.
        probe: one connection that finds out why aiokafka could not connect.
    """

    open: float = 30.0
    acknowledge: float = 60.0
    close: float = 3.0
    probe: float = PROBE_SECONDS


_REJECTIONS = (MessageSizeTooLargeError, RecordListTooLargeError, InvalidTimestampError)
"""Errors of a batch that a retry cannot change."""


class KafkaSink:
    """A sink whose records are acknowledged by all in-sync replicas, in order for each key."""

    def __init__(self, config: KafkaConfig, timings: KafkaTimings | None = None) -> None:
        self.name = f"Kafka at {', '.join(config.bootstrap_servers)}"
        self._config = config
        self._timings = timings or KafkaTimings()
        self._producer: AIOKafkaProducer | None = None
        self._suspects: set[str] = set()  # ids of the records of a rejected batch: one of them is the cause
        self._rejected: set[str] = set()
        self._acknowledged: set[str] = set()

    async def open(self) -> None:
        """Connect, and check that every topic exists.

        Raises:
            SinkError: no broker is reachable or accepts the agent, or a topic is missing.
        """
        try:
            async with asyncio.timeout(self._timings.open):
                options = self._config.options() | {"request_timeout_ms": int(self._config.request_timeout * 1000)}
                self._producer = await self._start(options)
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

    async def _start(self, options: Mapping[str, Any]) -> AIOKafkaProducer:
        codec = None if self._config.compression == "none" else self._config.compression
        batch_bytes = BATCH_BYTES if codec else UNCOMPRESSED_BATCH_BYTES
        producer = AIOKafkaProducer(
            acks="all",
            enable_idempotence=True,
            compression_type=codec,
            max_batch_size=min(batch_bytes, self._config.max_message_bytes),
            max_request_size=self._config.max_message_bytes + BATCH_BYTES,
            retry_backoff_ms=250,
            metadata_max_age_ms=60_000,
            **options,
        )
        try:
            await producer.start()
        except BaseException:
            await _discard(producer, self._timings.close)
            raise
        return producer

    async def _ensure_topic(self, producer: AIOKafkaProducer, topic: str, options: Mapping[str, Any]) -> None:
        metadata = await producer.client.fetch_all_metadata()
        if topic in metadata.topics(exclude_internal_topics=False):
            await producer.partitions_for(topic)
            return
        create = self._config.create_topics
        if create is None:
            raise SinkError(
                f"topic {topic} does not exist, or the agent is not authorized to see it: create it, or set kafka.create_topics"
            )
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
        """Send a batch and wait until Kafka has acknowledged it; return the records that Kafka rejects for themselves.

        Raises:
            SinkError: some records are not acknowledged; close this sink and open it again.
        """
        producer = self._producer
        if producer is None:
            raise SinkError("the connection is closed")
        partitions = self._by_partition(producer, batch)
        try:
            async with asyncio.timeout(self._timings.acknowledge):
                results = await asyncio.gather(
                    *(self._send_partition(producer, place, records) for place, records in partitions.items()),
                    return_exceptions=True,
                )
        except TimeoutError:
            raise SinkError(f"no acknowledgement for {self._timings.acknowledge:g} s") from None
        failures = [result for result in results if isinstance(result, BaseException)]
        # Rejections last: their retry is immediate, for each finds one record, or a batch in which to search for it.
        for failure in sorted(failures, key=lambda failure: isinstance(failure, _REJECTIONS)):
            if isinstance(failure, Exception):
                text = await explain(failure, self._config, self._timings.probe)
                raise SinkError(text, retry_now=isinstance(failure, _REJECTIONS)) from failure
            raise failure
        ids = {record.id for record in batch}
        rejected = [record for record in batch if record.id in self._rejected]
        self._rejected -= ids
        self._acknowledged -= ids
        self._suspects -= ids
        return rejected

    def _by_partition(
        self, producer: AIOKafkaProducer, batch: Sequence[EncodedRecord]
    ) -> dict[tuple[str, int], list[EncodedRecord]]:
        """Return the records that are still to be sent, by topic and partition."""
        partitions: dict[tuple[str, int], list[EncodedRecord]] = {}
        routes: dict[tuple[str, str], list[EncodedRecord]] = {}  # one lookup for all records of a type and a VM
        max_body = self._config.max_message_bytes - RECORD_OVERHEAD_BYTES
        for record in batch:
            if len(record.body) > max_body:
                self._rejected.add(record.id)
            if record.id not in self._rejected and record.id not in self._acknowledged:
                records = routes.get(route := (record.type, record.key))
                if records is None:
                    records = routes[route] = partitions.setdefault(self._partition(producer, *route), [])
                records.append(record)
        return partitions

    def _partition(self, producer: AIOKafkaProducer, record_type: str, key: str) -> tuple[str, int]:
        """Return the topic and partition of a type and a key, as Kafka's own clients choose it."""
        topic = self._config.topics.topic_for(record_type)
        partitions = producer.client.cluster.partitions_for_topic(topic)
        if not partitions:
            raise SinkError(f"topic {topic} was deleted")
        return topic, _hash(key) % len(partitions)

    async def _send_partition(
        self, producer: AIOKafkaProducer, place: tuple[str, int], records: Sequence[EncodedRecord]
    ) -> None:
        """Send one partition's records, one batch after the other: the next batch must not overtake one that failed."""
        topic, partition = place
        start = 0
        while start < len(records):
            batch = producer.create_batch()
            end = self._fill(batch, records, start)
            ids = [record.id for record in records[start:end]]
            try:
                await (await producer.send_batch(batch, topic, partition=partition))
            except _REJECTIONS:
                (self._rejected if len(ids) == 1 else self._suspects).update(ids)
                raise
            self._acknowledged.update(ids)
            start = end

    def _fill(self, batch: Any, records: Sequence[EncodedRecord], start: int) -> int:
        """Add records to a batch while it has room, a suspect alone; return where the next batch starts."""
        end = start
        while end < len(records) and _append(batch, records[end]):
            end += 1
            if self._suspects and not self._suspects.isdisjoint(record.id for record in records[end - 1 : end + 1]):
                break
        return end

    async def close(self) -> None:
        """Discard the producer, with whatever it has not sent."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _discard(producer, self._timings.close)


@lru_cache(maxsize=16384)
def _hash(key: str) -> int:
    return int(murmur2(key.encode())) & 0x7FFFFFFF


def _append(batch: Any, record: EncodedRecord) -> bool:
    """Add a record to a batch, if it has room. The timestamp is in milliseconds, whatever aiokafka's docstring says."""
    added = batch.append(
        key=record.key.encode(), value=record.body, timestamp=record.time_ns // 1_000_000, headers=HEADERS
    )
    return added is not None


def _raise_for(topic_error: Sequence[Any]) -> None:
    """Raise the error of a topic that was to be created, if there is one."""
    if topic_error[1]:
        raise for_code(topic_error[1])(topic_error[2] if len(topic_error) > 2 and topic_error[2] else topic_error[0])


async def _discard(producer: AIOKafkaProducer, seconds: float) -> None:
    """End a producer immediately, with its tasks and connections.

    Its own `stop` waits for brokers that may never answer. Its sender, once cancelled, waits for the requests under way, which end with an
    exception that aiokafka 0.14 does not handle. A connection that is closed but not aborted stays until its broker reads all of it.

    Args:
        producer: the producer.
        seconds: how long its tasks may take to end.
    """
    producer._closed = True  # noqa: SLF001 - or it warns when it is garbage-collected
    sender, client, accumulator = producer._sender, producer.client, producer._message_accumulator  # noqa: SLF001
    tasks = [task for task in asyncio.all_tasks() if _owner(task) in (sender, client)]
    for task in tasks:
        task.remove_done_callback(sender._fail_all)  # noqa: SLF001
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)
    batches = accumulator._pending_batches  # noqa: SLF001
    batches.update(b for queue in accumulator._batches.values() for b in queue)  # noqa: SLF001 - batches that wait for a retry
    accumulator.fail_all(KafkaError("the producer was closed"))
    for batch in batches:
        for future in (batch.future, batch._drain_waiter):  # noqa: SLF001
            if future.done() and not future.cancelled():
                future.exception()  # retrieved, or asyncio warns: no task may be waiting for it
    for connection in list(client._conns.values()):  # noqa: SLF001
        writer = connection._writer  # noqa: SLF001
        connection.close()
        if writer is not None:
            writer.transport.abort()


def _owner(task: "asyncio.Task[Any]") -> object:
    """Return the object whose method a task runs; None if unknown."""
    frame = getattr(task.get_coro(), "cr_frame", None)
    return frame.f_locals.get("self") if frame is not None else None
