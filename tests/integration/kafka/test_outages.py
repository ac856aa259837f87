"""Errors that affect every record are outages: records wait, the cause is reported, and no record becomes a dead letter."""

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import InvalidProducerEpoch, MessageSizeTooLargeError, OutOfOrderSequenceNumber
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest

from agent.delivery.pipeline import DeliveryPipeline
from agent.delivery.sinks.kafka.sink import KafkaSink, KafkaTimings
from tests.lab.kafka import KafkaCluster
from tests.lab.kafka_home import java_command, kafka_home
from tests.lab.kafka_sink import TIMINGS, ids, kafka_config, large_records, read_topic, single_topic
from tests.lab.scripted_sink import (
    DEADLINE_SECONDS,
    RecordSource,
    deduplicated,
    dropped,
    eventually,
    make_pipeline,
    running,
)

TWO_HOURS_NS = 2 * 3600 * 10**9


@pytest.fixture
def topic_name() -> str:
    return f"test-{uuid4()}"


def make_kafka_pipeline(
    kafka: KafkaCluster,
    topic: str,
    folder: Path,
    *,
    timings: KafkaTimings = TIMINGS,
    clock: Callable[[], int] = time.time_ns,
    **config: Any,
) -> DeliveryPipeline:
    """Return a pipeline with a journal to one topic."""
    settings = kafka_config(kafka.bootstrap, single_topic(topic), **config)
    return make_pipeline(KafkaSink(settings, timings, clock), folder)


async def set_topic_config(kafka: KafkaCluster, topic: str, **config: str) -> None:
    """Replace a topic's config; underscores stand for dots."""
    resource = ConfigResource(
        ConfigResourceType.TOPIC, topic, configs={name.replace("_", "."): value for name, value in config.items()}
    )
    async with kafka._admin() as admin:
        await admin.alter_configs([resource])


async def wait_until_rejected(kafka: KafkaCluster, topic: str, size: int) -> None:
    """Wait until the broker applies a lower limit: send messages of `size` bytes until it rejects one."""
    async with AIOKafkaProducer(**kafka.client) as producer, asyncio.timeout(DEADLINE_SECONDS):
        with contextlib.suppress(MessageSizeTooLargeError):
            while True:
                await producer.send_and_wait(topic, b'{"id": "too large"}'.ljust(size))


async def put_until_unready(pipeline: DeliveryPipeline, source: RecordSource, reason: str) -> None:
    """Put records until the pipeline reports a reason. Brokers apply a change a little later than they confirm it."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not any(reason in text for text in pipeline.unready_reasons()):
            pipeline.put(source.next())
            await asyncio.sleep(0.05)


async def wait_all_delivered(pipeline: DeliveryPipeline, source: RecordSource) -> None:
    """Wait until the sink has all records of a source."""
    await eventually(lambda: pipeline.supervisor.delivered == len(source.ids) and pipeline.unready_reasons() == [])


def assert_in_order(delivered: list[str], source: RecordSource) -> None:
    """Check that the records of each of the three VMs are complete and in order."""
    for vm in range(3):
        expected = source.ids[vm::3]
        assert [record_id for record_id in deduplicated(delivered) if record_id in set(expected)] == expected


# --- Timestamps ---


@pytest.mark.parametrize("hours", [2, -2])
async def test_a_clock_that_differs_from_the_brokers_loses_no_record(
    kafka: KafkaCluster, folder: Path, topic_name: str, hours: int
) -> None:
    limits = {"message.timestamp.before.max.ms": "3600000", "message.timestamp.after.max.ms": "3600000"}
    await kafka.create_topic(topic_name, partitions=3, config=limits)

    def clock() -> int:
        return time.time_ns() + hours * 3600 * 10**9

    source = RecordSource(start_ns=clock())
    async with running(make_kafka_pipeline(kafka, topic_name, folder, clock=clock)) as pipeline:
        for _ in range(30):
            for record in source.take(10):
                pipeline.put(record)
            await asyncio.sleep(0.01)
        await eventually(lambda: pipeline.supervisor.delivered == 300)
        assert pipeline.unready_reasons() == []
        assert [warning.partition(" rejects")[0] for warning in pipeline.warnings()] == [f"topic {topic_name}"]
        assert pipeline.supervisor.reconnects <= 2, "the topic's timestamps stay off"
    assert dropped(pipeline) == 0
    messages = await read_topic(kafka, topic_name)
    assert_in_order(ids(messages), source)
    assert {message.timestamp for message in messages} == {-1}


async def test_a_record_from_the_future_gets_the_time_of_sending(kafka: KafkaCluster, folder: Path, topic: str) -> None:
    """A hostile QEMU can send any time in an event."""
    future, past = RecordSource(start_ns=TWO_HOURS_NS * 10**6), RecordSource(run=1, start_ns=-TWO_HOURS_NS)
    before = time.time_ns() // 1_000_000
    async with running(make_kafka_pipeline(kafka, topic, folder)) as pipeline:
        pipeline.put(future.next())
        pipeline.put(past.next())
        await eventually(lambda: pipeline.supervisor.delivered == 2)
        assert pipeline.supervisor.reconnects == 0
    times = [message.timestamp for message in await read_topic(kafka, topic)]
    assert times[1] == 0
    assert before <= times[0] <= time.time_ns() // 1_000_000


async def test_timestamps_are_tried_again_after_a_while(kafka: KafkaCluster, folder: Path, topic_name: str) -> None:
    await kafka.create_topic(topic_name, config={"message.timestamp.before.max.ms": "3600000"})
    old, new = RecordSource(start_ns=time.time_ns() - TWO_HOURS_NS), RecordSource(run=1, start_ns=time.time_ns())
    timings = replace(TIMINGS, workaround=0.5)
    async with running(make_kafka_pipeline(kafka, topic_name, folder, timings=timings)) as pipeline:
        pipeline.put(old.next())
        await eventually(lambda: pipeline.supervisor.delivered == 1)
        await eventually(lambda: pipeline.warnings() == [])
        pipeline.put(new.next())
        await eventually(lambda: pipeline.supervisor.delivered == 2)
    assert [message.timestamp > 0 for message in await read_topic(kafka, topic_name)] == [False, True]


# --- Topics and permissions ---


async def test_records_wait_while_a_topic_is_deleted(kafka: KafkaCluster, folder: Path, topic_name: str) -> None:
    await kafka.create_topic(topic_name)
    source = RecordSource()
    timings = replace(TIMINGS, check=0.5)
    async with running(make_kafka_pipeline(kafka, topic_name, folder, timings=timings)) as pipeline:
        pipeline.put(source.next())
        await eventually(lambda: pipeline.supervisor.delivered == 1)
        async with kafka._admin() as admin:
            await admin.delete_topics([topic_name])
        await put_until_unready(pipeline, source, f"topic {topic_name} does not exist")
        waiting = [record.id for record in (*pipeline.events.in_flight, *pipeline.events.tail.records)]
        await kafka.create_topic(topic_name)
        await wait_all_delivered(pipeline, source)
    assert dropped(pipeline) == 0
    assert waiting
    assert deduplicated(ids(await read_topic(kafka, topic_name))) == waiting


TOPIC, LITERAL, ALL, WRITE, DENY, ALLOW, ANY = 2, 3, 2, 4, 2, 3, 1
"""Constants of Kafka's protocol: AclOperation, AclPermissionType and so on."""


async def add_acl(kafka: KafkaCluster, topic: str, operation: int, permission: int) -> None:
    """Allow or deny anonymous clients an operation on a topic."""
    async with kafka._admin() as admin:
        acl = CreateAclsRequest(TOPIC, topic, LITERAL, "User:ANONYMOUS", "*", operation, permission)
        response = await admin._send_request(acl)
        assert response.creation_responses == [(0, "")]


async def remove_acls(kafka: KafkaCluster, topic: str) -> None:
    """Remove all ACLs of a topic."""
    async with kafka._admin() as admin:
        await admin._send_request(DeleteAclsRequest(TOPIC, topic, LITERAL, None, None, ANY, ANY))


@pytest.mark.parametrize("operation", [WRITE, ALL])
async def test_records_wait_while_a_permission_is_withdrawn(
    kafka: KafkaCluster, folder: Path, topic_name: str, operation: int
) -> None:
    await kafka.create_topic(topic_name)
    await add_acl(kafka, topic_name, ALL, ALLOW)
    source = RecordSource()
    async with running(make_kafka_pipeline(kafka, topic_name, folder)) as pipeline:
        pipeline.put(source.next())
        await eventually(lambda: pipeline.supervisor.delivered == 1)
        await add_acl(kafka, topic_name, operation, DENY)
        await put_until_unready(pipeline, source, "authorized")
        await remove_acls(kafka, topic_name)
        await wait_all_delivered(pipeline, source)
    assert dropped(pipeline) == 0
    assert deduplicated(ids(await read_topic(kafka, topic_name))) == source.ids


# --- Sizes ---


async def test_records_wait_while_the_topic_accepts_no_record_at_all(
    kafka: KafkaCluster, folder: Path, topic_name: str
) -> None:
    await kafka.create_topic(topic_name)
    source = RecordSource(size=500)
    async with running(make_kafka_pipeline(kafka, topic_name, folder)) as pipeline:
        pipeline.put(source.next())
        await eventually(lambda: pipeline.supervisor.delivered == 1)
        await set_topic_config(kafka, topic_name, max_message_bytes="100")
        await put_until_unready(pipeline, source, "raise its max.message.bytes")
        await set_topic_config(kafka, topic_name, max_message_bytes="1000000")
        await wait_all_delivered(pipeline, source)
    assert dropped(pipeline) == 0
    assert_in_order(ids(await read_topic(kafka, topic_name)), source)


@pytest.mark.parametrize("size", [3000, 20_000])
async def test_a_single_record_that_is_too_large_delays_no_later_ones(
    kafka: KafkaCluster, folder: Path, topic_name: str, size: int
) -> None:
    await kafka.create_topic(topic_name, config={"max.message.bytes": "2000"})
    source, (rejected,) = RecordSource(), large_records(1, size)
    async with running(make_kafka_pipeline(kafka, topic_name, folder)) as pipeline:
        pipeline.put(source.next())
        await eventually(lambda: pipeline.supervisor.delivered == 1)
        pipeline.put(rejected)
        await eventually(lambda: pipeline.drops.totals == {("events", "rejected"): 1})
        pipeline.put(source.next())
        await eventually(lambda: len(pipeline.events) == 0 and pipeline.unready_reasons() == [])
    assert [i for i in ids(await read_topic(kafka, topic_name)) if i in source.bodies] == source.ids


@pytest.mark.parametrize("more", [260, 370])
async def test_a_record_that_only_its_key_makes_too_large_delays_no_later_ones(
    kafka: KafkaCluster, folder: Path, topic_name: str, more: int
) -> None:
    """The key of a monitor without a VM is its address, of up to 255 characters. Framing and headers take 128 bytes."""
    source, (rejected,) = RecordSource(), large_records(1, 1500)
    rejected.key = "k" * 255
    await kafka.create_topic(topic_name, config={"max.message.bytes": str(len(rejected.body) + more)})
    async with running(make_kafka_pipeline(kafka, topic_name, folder, compression="none")) as pipeline:
        pipeline.put(source.next())
        await eventually(lambda: pipeline.supervisor.delivered == 1)
        pipeline.put(rejected)
        pipeline.put(source.next())
        await eventually(lambda: pipeline.drops.totals == {("events", "rejected"): 1})
        await eventually(lambda: len(pipeline.events) == 0 and pipeline.unready_reasons() == [])
    assert [i for i in ids(await read_topic(kafka, topic_name)) if i in source.bodies] == source.ids


async def test_compressed_records_beside_a_larger_one_are_no_outage(
    kafka: KafkaCluster, folder: Path, topic_name: str
) -> None:
    """Each record has more bytes than the topic accepts, but is sent with fewer."""
    await kafka.create_topic(topic_name, config={"max.message.bytes": "1500"})
    source, (rejected,) = RecordSource(size=4000), large_records(1, 20_000)
    async with running(make_kafka_pipeline(kafka, topic_name, folder, compression="gzip")) as pipeline:
        pipeline.put(source.next())
        await eventually(lambda: pipeline.supervisor.delivered == 1)
        pipeline.put(rejected)
        await eventually(lambda: pipeline.drops.totals == {("events", "rejected"): 1})
        pipeline.put(source.next())
        await eventually(lambda: len(pipeline.events) == 0 and pipeline.unready_reasons() == [])
    assert [i for i in ids(await read_topic(kafka, topic_name)) if i in source.bodies] == source.ids


async def test_only_records_larger_than_the_lowered_limit_are_rejected(
    kafka: KafkaCluster, folder: Path, topic_name: str
) -> None:
    await kafka.create_topic(topic_name)
    source, rejected = RecordSource(), large_records(3, 3000)
    async with running(make_kafka_pipeline(kafka, topic_name, folder)) as pipeline:
        await set_topic_config(kafka, topic_name, max_message_bytes="2000")
        await wait_until_rejected(kafka, topic_name, 3000)
        for number, record in enumerate(source.take(30)):
            pipeline.put(record)
            if number % 10 == 0:
                pipeline.put(rejected[number // 10])
        await eventually(lambda: pipeline.drops.totals == {("events", "rejected"): 3})
        await eventually(lambda: pipeline.unready_reasons() == [] and pipeline.supervisor.delivered >= 30)
    delivered = ids(await read_topic(kafka, topic_name))
    assert [record_id for record_id in deduplicated(delivered) if record_id in source.bodies] == source.ids


async def test_batches_fit_a_lowered_limit_after_one_rejection(
    kafka: KafkaCluster, folder: Path, topic_name: str
) -> None:
    await kafka.create_topic(topic_name, config={"max.message.bytes": "5000"})
    source = RecordSource()
    async with running(make_kafka_pipeline(kafka, topic_name, folder, compression="none")) as pipeline:
        for _ in range(10):
            for record in source.take(50):
                pipeline.put(record)
            await wait_all_delivered(pipeline, source)
        assert pipeline.supervisor.reconnects == 1
    assert ids(await read_topic(kafka, topic_name)) == source.ids


# --- Quotas and fencing ---


async def test_a_quota_delays_records_and_loses_none(kafka: KafkaCluster, folder: Path, topic: str) -> None:
    client = f"client-{uuid4()}"

    def set_quota(*change: str) -> None:
        command = [*java_command(kafka_home()), "kafka.admin.ConfigCommand", "--bootstrap-server", kafka.bootstrap[0]]
        entity = ["--entity-type", "clients", "--entity-name", client]
        subprocess.run([*command, "--alter", *entity, *change], check=True, capture_output=True)

    await asyncio.to_thread(set_quota, "--add-config", "producer_byte_rate=20000")
    records = large_records(20, 10_000)
    config: dict[str, Any] = {"client_id": client, "compression": "none", "request_timeout": 1.0}
    async with running(make_kafka_pipeline(kafka, topic, folder, **config)) as pipeline:
        for record in records:
            pipeline.put(record)
            await asyncio.sleep(0.02)
        await eventually(lambda: pipeline.supervisor.delivered == 20)
    assert dropped(pipeline) == 0
    assert deduplicated(ids(await read_topic(kafka, topic))) == [record.id for record in records]


@pytest.mark.parametrize("error", [InvalidProducerEpoch, OutOfOrderSequenceNumber])
async def test_a_fenced_producer_is_replaced(
    kafka: KafkaCluster, folder: Path, topic: str, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    source, send_batch = RecordSource(), AIOKafkaProducer.send_batch
    failures = [error(), error()]

    async def fenced(self: AIOKafkaProducer, *args: Any, **more: Any) -> Any:
        if failures:
            raise failures.pop()
        return await send_batch(self, *args, **more)

    monkeypatch.setattr(AIOKafkaProducer, "send_batch", fenced)
    async with running(make_kafka_pipeline(kafka, topic, folder)) as pipeline:
        for record in source.take(10):
            pipeline.put(record)
        await eventually(lambda: pipeline.supervisor.delivered == 10)
        assert pipeline.supervisor.reconnects == 2
    assert dropped(pipeline) == 0
    assert ids(await read_topic(kafka, topic)) == source.ids
