"""Records to Apache Kafka, by the CloudEvents Kafka binding 1.0.2 in structured mode: the body is the event, the key its VM.

aiokafka's producer is used for one life and then thrown away. Once one batch has failed for good, an idempotent producer's sequence
numbers no longer fit the broker's and every later batch fails too (aiokafka issue 1017); it does not ask its bootstrap servers again when
all brokers have moved (459); and its `stop` waits without end for brokers that are gone (1101). So any failure here is a SinkError, upon
which the owner closes this sink, opens it anew and sends the same batch again.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
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

from agent.delivery.entry import Entry
from agent.delivery.sinks.base import SinkError
from agent.delivery.sinks.kafka.config import KafkaConfig
from agent.delivery.sinks.kafka.diagnostics import explain
from agent.model.record import CONTENT_TYPE

HEADERS = [("content-type", f"{CONTENT_TYPE}; charset=UTF-8".encode())]

BATCH_BYTES = 1024 * 1024
"""Of records in one batch, before they are compressed: one is under way at a time, and a busy loop gives each round trip its time."""
PLAIN_BATCH_BYTES = 256 * 1024
"""The same where nothing compresses them."""
RECORD_OVERHEAD_BYTES = 512
"""About what a record's key, headers and framing add to its body."""
ACK_SECONDS = 60.0
"""How long brokers may take to acknowledge a batch, retries included, before the producer is thought to be lost."""
CLOSE_SECONDS = 3.0
OPEN_SECONDS = 30.0
"""How long connecting and learning of the topics may take."""

_REFUSALS = (MessageSizeTooLargeError, RecordListTooLargeError, InvalidTimestampError)
"""What a broker says of a batch that it will not take however often it is asked."""


class KafkaSink:
    """A sink whose every record is acknowledged by all in-sync replicas, in order for each key."""

    def __init__(self, config: KafkaConfig, open_seconds: float = OPEN_SECONDS) -> None:
        self.name = f"Kafka at {', '.join(config.bootstrap_servers)}"
        self._config = config
        self._open_seconds = open_seconds
        self._producer: AIOKafkaProducer | None = None
        self._suspects: set[str] = set()  # of a batch that was refused: which record is it?
        self._refused: set[str] = set()
        self._acknowledged: set[str] = set()

    async def open(self) -> None:
        """Connect, and see that every topic is there.

        Raises:
            SinkError: no broker can be reached or none will have us, or a topic is missing, in words for people.
        """
        try:
            async with asyncio.timeout(self._open_seconds):
                options = self._config.options() | {"request_timeout_ms": int(self._config.request_timeout * 1000)}
                self._producer = await self._start(options)
                for topic in sorted(self._config.topics.all()):
                    await self._look_for(self._producer, topic, options)
        except SinkError:
            await self.close()
            raise
        except Exception as error:  # what is no Kafka has aiokafka raise what it likes
            await self.close()
            raise SinkError(await explain(error, self._config)) from error
        except BaseException:
            await self.close()
            raise

    async def _start(self, options: Mapping[str, Any]) -> AIOKafkaProducer:
        codec = None if self._config.compression == "none" else self._config.compression
        producer = AIOKafkaProducer(
            acks="all",
            enable_idempotence=True,
            compression_type=codec,
            max_batch_size=min(BATCH_BYTES if codec else PLAIN_BATCH_BYTES, self._config.max_message_bytes),
            max_request_size=self._config.max_message_bytes + BATCH_BYTES,
            retry_backoff_ms=250,
            metadata_max_age_ms=60_000,
            **options,
        )
        try:
            await producer.start()
        except BaseException:
            await _discard(producer)
            raise
        return producer

    async def _look_for(self, producer: AIOKafkaProducer, topic: str, options: Mapping[str, Any]) -> None:
        found = await producer.client.fetch_all_metadata()
        if topic in found.topics(exclude_internal_topics=False):
            await producer.partitions_for(topic)
            return
        create = self._config.create_topics
        if create is None:
            raise SinkError(f"there is no topic {topic}, or we may not see it: create it, or set kafka.create_topics")
        admin = AIOKafkaAdminClient(**options)
        await admin.start()
        try:
            with contextlib.suppress(TopicAlreadyExistsError):
                new = NewTopic(topic, create.partitions, 1)
                new.replication_factor = create.replication_factor  # which NewTopic itself does not let be -1
                response = await admin.create_topics([new])
                _raise_for(response.topic_errors[0])
        finally:
            await admin.close()
        await producer.partitions_for(topic)

    async def send(self, batch: Sequence[Entry]) -> Sequence[Entry]:
        """Send a batch and wait until all of it is acknowledged; return those that Kafka will not take, each for itself.

        Raises:
            SinkError: some of it is not acknowledged, and this sink is of no more use.
        """
        producer = self._producer
        if producer is None:
            raise SinkError("the connection was closed")
        queues: dict[tuple[str, int], list[Entry]] = {}
        ways: dict[tuple[str, str], list[Entry]] = {}  # a place is found once for all records of a type and a VM
        most_bytes = self._config.max_message_bytes - RECORD_OVERHEAD_BYTES
        for entry in batch:
            if len(entry.body) > most_bytes:
                self._refused.add(entry.id)
            if entry.id not in self._refused and entry.id not in self._acknowledged:
                queue = ways.get(way := (entry.type, entry.key))
                if queue is None:
                    queue = ways[way] = queues.setdefault(self._place(producer, *way), [])
                queue.append(entry)
        try:
            async with asyncio.timeout(ACK_SECONDS):
                ends = await asyncio.gather(
                    *(self._queue(producer, place, q) for place, q in queues.items()), return_exceptions=True
                )
        except TimeoutError:
            raise SinkError(f"no acknowledgement for {ACK_SECONDS:g} s") from None
        failures = [end for end in ends if isinstance(end, BaseException)]
        # A refusal is not for long: each finds one record, or a batch to look for it in.
        for failure in sorted(failures, key=lambda failure: isinstance(failure, _REFUSALS)):
            if isinstance(failure, Exception):
                text = await explain(failure, self._config)
                raise SinkError(text, at_once=isinstance(failure, _REFUSALS)) from failure
            raise failure
        ids = {entry.id for entry in batch}
        refused = [entry for entry in batch if entry.id in self._refused]
        self._refused -= ids
        self._acknowledged -= ids
        self._suspects -= ids
        return refused

    def _place(self, producer: AIOKafkaProducer, record_type: str, key: str) -> tuple[str, int]:
        """Return the topic and partition of a type and a key: what Kafka's own clients would choose for it."""
        topic = self._config.topics.of(record_type)
        partitions = producer.client.cluster.partitions_for_topic(topic)
        if not partitions:
            raise SinkError(f"topic {topic} is gone")
        return topic, _hash(key) % len(partitions)

    async def _queue(self, producer: AIOKafkaProducer, place: tuple[str, int], entries: Sequence[Entry]) -> None:
        """Send one partition's entries, one batch after the other: a batch that failed must not be overtaken by the next."""
        topic, partition = place
        at = 0
        while at < len(entries):
            batch = producer.create_batch()
            first, at = at, self._fill(batch, entries, at)
            try:
                await (await producer.send_batch(batch, topic, partition=partition))
            except _REFUSALS:
                (self._refused if at - first == 1 else self._suspects).update(e.id for e in entries[first:at])
                raise
            self._acknowledged.update(entry.id for entry in entries[first:at])

    def _fill(self, batch: Any, entries: Sequence[Entry], at: int) -> int:
        """Add entries to a batch while it has room, a suspect alone; return where the next one begins."""
        while at < len(entries) and _append(batch, entries[at]):
            at += 1
            if self._suspects and not self._suspects.isdisjoint(entry.id for entry in entries[at - 1 : at + 1]):
                break
        return at

    async def close(self) -> None:
        """Let the producer go, with whatever it has not sent."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _discard(producer)


@lru_cache(maxsize=16384)
def _hash(key: str) -> int:
    return int(murmur2(key.encode())) & 0x7FFFFFFF


def _append(batch: Any, entry: Entry) -> bool:
    """Add an entry to a batch that has room for it. The timestamp is in milliseconds, whatever aiokafka's docstring says."""
    added = batch.append(
        key=entry.key.encode(), value=entry.body, timestamp=entry.time_ns // 1_000_000, headers=HEADERS
    )
    return added is not None


def _raise_for(topic_error: Sequence[Any]) -> None:
    """Raise what a broker said of a topic that it was to create."""
    if topic_error[1]:
        raise for_code(topic_error[1])(topic_error[2] if len(topic_error) > 2 and topic_error[2] else topic_error[0])


async def _discard(producer: AIOKafkaProducer) -> None:
    """End a producer at once, with its tasks and connections.

    Its own `stop` would first wait for brokers that may never answer again; and its sender, cancelled, for the requests under way, which
    end with an exception that aiokafka 0.14 stumbles over. A connection that is closed and not aborted stays for as long as its broker
    takes nothing off it.
    """
    producer._closed = True  # noqa: SLF001 - or it complains when it is collected
    sender, client, accumulator = producer._sender, producer.client, producer._message_accumulator  # noqa: SLF001
    tasks = [task for task in asyncio.all_tasks() if _owner(task) in (sender, client)]
    for task in tasks:
        task.remove_done_callback(sender._fail_all)  # noqa: SLF001
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
    batches = accumulator._pending_batches  # noqa: SLF001
    batches.update(b for queue in accumulator._batches.values() for b in queue)  # noqa: SLF001 - where those to be tried again look for themselves
    accumulator.fail_all(KafkaError("the producer was closed"))
    for batch in batches:
        for future in (batch.future, batch._drain_waiter):  # noqa: SLF001
            if future.done() and not future.cancelled():
                future.exception()  # looked at: nobody may be waiting any more, and asyncio need not complain of that
    for connection in list(client._conns.values()):  # noqa: SLF001
        writer = connection._writer  # noqa: SLF001
        connection.close()
        if writer is not None:
            writer.transport.abort()


def _owner(task: "asyncio.Task[Any]") -> object:
    """Return whose method a task runs, None where that cannot be told."""
    frame = getattr(task.get_coro(), "cr_frame", None)
    return frame.f_locals.get("self") if frame is not None else None
