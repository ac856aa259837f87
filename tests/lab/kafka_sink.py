"""Kafka sinks for tests, watched for what they leave behind, and what lies in a topic."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from agent.delivery.entry import Entry
from agent.delivery.sinks.base import SinkError
from agent.delivery.sinks.kafka.config import KafkaConfig, KafkaTopicsConfig
from agent.delivery.sinks.kafka.sink import KafkaSink
from tests.lab.kafka import KafkaCluster
from tests.lab.scripted_sink import LONG, Source, soon

OPEN_SECONDS: Final = 5.0


def one_topic(name: str) -> KafkaTopicsConfig:
    """Return a table by which all goes to one topic."""
    made: KafkaTopicsConfig = KafkaTopicsConfig.model_construct(events=name, samples=name, alerts=name)  # be it none
    return made


def terms(bootstrap_servers: Sequence[str], topics: KafkaTopicsConfig, **more: Any) -> KafkaConfig:
    """Return terms in the clear."""
    return KafkaConfig(**{"bootstrap_servers": [*bootstrap_servers], "topics": topics, "request_timeout": 5.0, **more})


def batch(source: Source, count: int, kind: str | None = None) -> list[Entry]:
    return [Entry.of(stamped) for stamped in source.some(count, kind)]


@contextlib.asynccontextmanager
async def nothing_left(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """See that what is done meanwhile leaves no task, no socket and no complaint of asyncio's behind."""
    before, files = asyncio.all_tasks(), _connections()
    yield
    gc.collect()

    def left() -> set[object]:
        return (asyncio.all_tasks() - before - {asyncio.current_task()}) | (_connections() - files)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):  # what is cancelled or aborted ends in the loop's next turn
            await soon(lambda: not left())
    assert not left(), str(left())
    said = [record.getMessage() for record in caplog.records if record.name == "asyncio" and record.levelno >= 30]
    assert said == []


def _connections() -> set[str]:
    """Return this process' TCP sockets, by their inodes."""
    ours = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            ours.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    return ours & {line.split()[9] for line in Path("/proc/self/net/tcp").read_text().splitlines()}


@contextlib.asynccontextmanager
async def opened(made: KafkaConfig) -> AsyncIterator[KafkaSink]:
    """A sink that is open for as long as the block runs."""
    sink = KafkaSink(made, OPEN_SECONDS)
    await sink.open()
    try:
        yield sink
    finally:
        await sink.close()


async def refusal(made: KafkaConfig, *, seconds: float = LONG) -> str:
    """Return what a sink says that cannot be opened."""
    sink = KafkaSink(made, min(OPEN_SECONDS, seconds / 2))
    async with asyncio.timeout(seconds):
        with pytest.raises(SinkError) as raised:
            await sink.open()
    await sink.close()
    return str(raised.value)


async def persistently(sink: KafkaSink, entries: Sequence[Entry], *, tries: int = 40) -> list[Entry]:
    """Send a batch as its owner does, opening the sink anew after each failure; return what was refused."""
    for _ in range(tries):
        try:
            return list(await sink.send(entries))
        except SinkError:
            await sink.close()
            await sink.open()
    raise AssertionError(f"not within {tries} tries")


async def messages(kafka: KafkaCluster, topic: str) -> list[ConsumerRecord]:
    """Return all that lies in a topic, each partition's in its order."""
    found: list[ConsumerRecord] = []
    consumer = AIOKafkaConsumer(topic, auto_offset_reset="earliest", **kafka.client)
    async with asyncio.timeout(LONG), consumer:
        places = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        left = sum((await consumer.end_offsets(places)).values())
        while len(found) < left:
            for some in (await consumer.getmany(timeout_ms=500)).values():
                found += some
    return found
