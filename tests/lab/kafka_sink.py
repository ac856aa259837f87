"""Kafka sinks for tests, a check that they leave no task or socket open, and functions that read topics."""

import asyncio
import contextlib
import gc
import json
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from agent.delivery.sinks.base import SinkError
from agent.delivery.sinks.kafka.config import KafkaConfig, KafkaTopicsConfig
from agent.delivery.sinks.kafka.sink import KafkaSink, KafkaTimings
from agent.model.record import EncodedRecord, Record, RecordEncoder, Vm
from tests.lab.kafka import KafkaCluster
from tests.lab.scripted_sink import DEADLINE_SECONDS, EVENT, START_NS, eventually

BAD_UUID: Final = "00000000-0000-4000-8000-00000000bad0"
"""The VM of `large_records`."""
TIMINGS: Final = KafkaTimings(open=120.0, acknowledge=120.0, probe=30.0)
"""Generous, for brokers on a machine under load."""


def large_records(count: int, size: int) -> list[EncodedRecord]:
    """Return records of about `size` bytes that cannot be compressed."""
    encode, vm, draw = RecordEncoder(START_NS + 10**12), Vm("host1", BAD_UUID, "bad"), random.Random(size)
    records = (Record(EVENT, vm, {"pad": draw.randbytes(size // 2).hex()}, START_NS) for _ in range(count))
    return [encode(record) for record in records]


def ids(messages: Iterable[ConsumerRecord]) -> list[str]:
    """Return the record ids of Kafka messages."""
    return [json.loads(message.value)["id"] for message in messages]


def single_topic(name: str) -> KafkaTopicsConfig:
    """Return a topics config with one topic for all records. The topic's name is not checked."""
    topics: KafkaTopicsConfig = KafkaTopicsConfig.model_construct(events=name, samples=name, alerts=name, state=None)
    return topics


def kafka_config(bootstrap_servers: Sequence[str], topics: KafkaTopicsConfig, **more: Any) -> KafkaConfig:
    """Return the config of a Kafka sink. By default, connections have no encryption and no credentials."""
    return KafkaConfig(**{"bootstrap_servers": [*bootstrap_servers], "topics": topics, "request_timeout": 60.0, **more})


@contextlib.asynccontextmanager
async def no_leaks(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Assert that the block leaves no task and no socket open, and that asyncio logs no warning."""
    tasks, connections = asyncio.all_tasks(), _connections()
    yield
    gc.collect()

    def leaked() -> set[object]:
        return (asyncio.all_tasks() - tasks - {asyncio.current_task()}) | (_connections() - connections)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20.0):  # cancelled tasks and aborted sockets end in the next turn of the event loop
            await eventually(lambda: not leaked())
    assert not leaked(), str(leaked())
    warnings = [record.getMessage() for record in caplog.records if record.name == "asyncio" and record.levelno >= 30]
    assert warnings == []


def _connections() -> set[str]:
    """Return this process' TCP sockets, by inode."""
    sockets = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            sockets.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    return sockets & {line.split()[9] for line in Path("/proc/self/net/tcp").read_text().splitlines()}


@contextlib.asynccontextmanager
async def open_sink(config: KafkaConfig, timings: KafkaTimings = TIMINGS) -> AsyncIterator[KafkaSink]:
    """Keep a sink open while the `with` block runs."""
    sink = KafkaSink(config, timings)
    await sink.open()
    try:
        yield sink
    finally:
        await sink.close()


async def open_error(config: KafkaConfig, *, seconds: float = 60.0) -> str:
    """Return the error of a sink that cannot be opened. The timeouts of the attempt are derived from `seconds`."""
    sink = KafkaSink(config, KafkaTimings(open=min(TIMINGS.open, seconds / 2), probe=min(TIMINGS.probe, seconds / 8)))
    async with asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises(SinkError) as raised:
            await sink.open()
    await sink.close()
    return str(raised.value)


async def send_with_retries(
    sink: KafkaSink, records: Sequence[EncodedRecord], *, tries: int = 40
) -> list[EncodedRecord]:
    """Send a batch, and open the sink again after each failure, as the supervisor does. Return the rejected records."""
    for _ in range(tries):
        try:
            return list(await sink.send(records))
        except SinkError:
            await sink.close()
            with contextlib.suppress(SinkError):  # a send then fails, too
                await sink.open()
    raise AssertionError(f"not delivered within {tries} tries")


async def read_topic(kafka: KafkaCluster, topic: str) -> list[ConsumerRecord]:
    """Return all messages of a topic. The messages of each partition are in order.

    A consumer of aiokafka receives nothing more if the broker got no CPU time while the consumer started, so another one reads again.
    """
    for _ in range(3):
        with contextlib.suppress(TimeoutError):
            return await _read_once(kafka, topic)
    raise AssertionError(f"topic {topic} cannot be read")


async def _read_once(kafka: KafkaCluster, topic: str) -> list[ConsumerRecord]:
    messages: list[ConsumerRecord] = []
    consumer = AIOKafkaConsumer(topic, auto_offset_reset="earliest", **kafka.client)
    async with asyncio.timeout(DEADLINE_SECONDS / 2), consumer:
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        expected = sum((await consumer.end_offsets(partitions)).values())
        while len(messages) < expected:
            for received in (await consumer.getmany(timeout_ms=500)).values():
                messages += received
    return messages
