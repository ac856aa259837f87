"""Records delivered to a real Apache Kafka. An independent client and an independent CloudEvents library read them."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.kafka import KafkaMessage, from_structured_event
from jsonschema import Draft202012Validator

from agent.cli.demo.guest import GuestKind
from agent.schemas.record import record_schema
from tests.lab.agent_process import AgentProcess
from tests.lab.fixtures import StartGuest
from tests.lab.kafka import KafkaCluster
from tests.lab.record_checks import sequence_number, validate_record, validator
from tests.lab.waiting import DEADLINE_SECONDS, until

KINDS: Final = ("events", "samples", "alerts")
PARTITIONS: Final = 3


@dataclass(frozen=True, slots=True)
class Message:
    """A Kafka message and the CloudEvent in it."""

    kind: str
    partition: int
    key: str
    event: BaseCloudEvent

    @property
    def sequence(self) -> int:
        return sequence_number(self.event)

    @property
    def type(self) -> str:
        return self.event.get_type()


@pytest.fixture
async def topics(kafka: KafkaCluster) -> dict[str, str]:
    """New Kafka topics, by the kind of record."""
    names = {kind: f"test-{kind}-{uuid4()}" for kind in KINDS}
    for name in names.values():
        await kafka.create_topic(name, partitions=PARTITIONS)
    return names


@pytest.fixture
async def agent(kafka: KafkaCluster, topics: dict[str, str], folder: Path) -> AsyncIterator[AgentProcess]:
    """An agent that delivers to these topics. The test starts it."""
    config = {
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "intervals": {"poll": "100ms"},
        "timeouts": {"shutdown": "240s"},  # for a broker on a machine under load
        "kafka": {"bootstrap_servers": kafka.bootstrap, "topics": {**topics, "state": None}},
    }
    agent = AgentProcess(folder, config)
    try:
        yield agent
    finally:
        await agent.kill()


async def read_messages(kafka: KafkaCluster, topics: dict[str, str]) -> list[Message]:
    """Return all messages of the topics, in order within each partition. A record that was delivered twice is returned once."""
    schema = validator(record_schema())
    kinds = {topic: kind for kind, topic in topics.items()}
    async with AIOKafkaConsumer(*topics.values(), auto_offset_reset="earliest", **kafka.client) as consumer:
        ends = await consumer.end_offsets(
            [TopicPartition(topic, number) for topic in kinds for number in range(PARTITIONS)]
        )
        total = sum(ends.values())
        messages: dict[str, Message] = {}
        for _ in range(total):
            async with asyncio.timeout(DEADLINE_SECONDS):
                received = await consumer.getone()
            message = parse(kinds[received.topic], received, schema)
            messages.setdefault(message.event.get_id(), message)
    return [*messages.values()]


def parse(kind: str, message: ConsumerRecord, schema: Draft202012Validator) -> Message:
    """Parse a message as CloudEvents' Kafka binding in structured mode, and validate the event with the schema of records."""
    headers = dict(message.headers)
    assert headers["content-type"].decode().partition(";")[0] == "application/cloudevents+json"
    event = from_structured_event(KafkaMessage(headers, message.key, message.value))
    filters = {name.removeprefix("ce_"): value.decode() for name, value in headers.items() if name.startswith("ce_")}
    assert filters.items() <= {name: str(value) for name, value in event.get_attributes().items()}.items()
    assert filters.keys() == {"type"}, "the default of kafka.headers"
    assert event.get_data() == validate_record(message.value, schema).get_data()
    time = event.get_time()
    assert time is not None
    assert message.timestamp == pytest.approx(time.timestamp() * 1000, abs=1)
    return Message(kind, message.partition, message.key.decode(), event)


def assert_no_record_is_missing(messages: Sequence[Message]) -> None:
    """Assert that each message of a source in one topic names the message before it."""
    previous = None
    for message in messages:
        attributes = message.event.get_attributes()
        assert attributes.get("previoussequence") == previous
        previous = attributes["sequence"]


async def test_each_vms_records_arrive_complete_in_order_and_in_the_right_topic(
    kafka: KafkaCluster, topics: dict[str, str], agent: AgentProcess, start_guest: StartGuest
) -> None:
    await agent.start()
    writer = await start_guest("writer", kind=GuestKind.WRITER, write_kib=60)
    idle = await start_guest("idle")
    await writer.wait_until_booted()

    async def exports_its_disk() -> bool:
        return (await agent.metrics()).value("qemu_block_writes_total", vm_uuid=writer.uuid, device="disk0") is not None

    await until(exports_its_disk)
    await writer.command("block-set-write-threshold", node_name="disk0-storage", write_threshold=1 << 20)
    await writer.wait_for_event("BLOCK_WRITE_THRESHOLD")
    await writer.command("stop")
    await writer.command("cont")
    await idle.stop()

    async def has_reported_all() -> bool:
        series = await agent.metrics()
        return (
            (series.value("qmp_agent_records_total", kind="sample") or 0) >= 50
            and series.value("qemu_vm_events_total", vm_uuid=writer.uuid, event="RESUME") == 1
            and series.names_of(idle.uuid) == []
        )

    await until(has_reported_all)
    ended = await agent.stop(signal.SIGTERM)
    assert ended.status == 0, ended.log
    assert ended.out == ""

    messages = await read_messages(kafka, topics)
    assert sorted(message.sequence for message in messages) == list(range(1, len(messages) + 1))
    of_agent = [message.type for message in messages if message.type.startswith("qemu.agent.")]
    assert (of_agent[0], of_agent[-1]) == ("qemu.agent.started", "qemu.agent.stopping")
    messages = [message for message in messages if message.key != "hv7"]  # those of the agent and of pools
    assert {message.key for message in messages} == {writer.uuid, idle.uuid}
    for message in messages:
        kind = "alerts" if message.type == "qemu.alert.write_threshold" else "events"
        assert message.kind == ("samples" if message.type.startswith("qemu.sample.") else kind)
        assert message.event.get_extension("vmuuid") == message.event.get_extension("partitionkey") == message.key
    for kind in KINDS:
        for key in (writer.uuid, idle.uuid):
            of_vm = [message for message in messages if (message.kind, message.key) == (kind, key)]
            assert len({message.partition for message in of_vm}) <= 1
            assert [message.sequence for message in of_vm] == sorted(message.sequence for message in of_vm)

            assert_no_record_is_missing(of_vm)

    def types(kind: str, key: str) -> list[str]:
        return [message.type for message in messages if (message.kind, message.key) == (kind, key)]

    assert set(types("alerts", writer.uuid)) == {"qemu.alert.write_threshold"}
    events = types("events", writer.uuid)
    assert events[0] == "qemu.vm.attached"
    assert [kind for kind in events if kind.startswith("qemu.event.")] == [
        "qemu.event.block_write_threshold",
        "qemu.event.stop",
        "qemu.event.resume",
    ]
    assert events[-1] == "qemu.vm.detached", "the last record before the exit is delivered too"
    assert types("events", idle.uuid) == ["qemu.vm.attached", "qemu.event.shutdown", "qemu.vm.gone"]


async def test_records_that_wait_for_a_paused_broker_are_delivered_at_shutdown(
    kafka: KafkaCluster, topics: dict[str, str], agent: AgentProcess, start_guest: StartGuest
) -> None:
    idle = await start_guest("idle")
    await agent.start()
    await until(lambda: "records are delivered" in agent.log)
    (broker,) = kafka.brokers
    await broker.pause()
    try:
        await idle.command("stop")
        await idle.command("cont")

        async def has_counted_resume() -> bool:
            return (await agent.metrics()).value("qemu_vm_events_total", event="RESUME") == 1

        await until(has_counted_resume)
        agent.send_signal(signal.SIGTERM)
        await until(lambda: "stopping" in agent.log)
    finally:
        broker.resume()
    ended = await agent.stop()
    assert ended.status == 0, ended.log
    messages = await read_messages(kafka, topics)
    assert sorted(message.sequence for message in messages) == list(range(1, len(messages) + 1))
    events = [message.type for message in messages if message.kind == "events" and "agent" not in message.type]
    assert events == ["qemu.vm.attached", "qemu.event.stop", "qemu.event.resume", "qemu.vm.detached"]


async def test_records_that_wait_when_the_agent_is_killed_are_delivered_by_the_next_run(
    kafka: KafkaCluster, topics: dict[str, str], agent: AgentProcess, start_guest: StartGuest
) -> None:
    idle = await start_guest("idle")
    (broker,) = kafka.brokers
    await broker.pause()
    try:
        await agent.start()
        await until(lambda: f"idle at {idle.monitor}: up" in agent.log)
        await idle.command("stop")
        await idle.command("cont")

        async def has_read_both() -> bool:
            return (await agent.metrics()).value("qemu_vm_events_total", vm_uuid=idle.uuid, event="RESUME") == 1

        await until(has_read_both)
        series = await agent.metrics()  # the broker takes nothing, so the queue has all records
        waiting = series.value("qmp_agent_queue_records", queue="events")
        assert waiting is not None
        assert waiting >= 5, "the agent's start, its first heartbeat, and the three records of the VM"

        async def is_journaled() -> bool:
            written = (await agent.metrics()).value("qmp_agent_journal_records_written_total", queue="events")
            return written is not None and written >= waiting

        await until(is_journaled)
        await agent.kill()
    finally:
        broker.resume()
    await agent.start()
    await until(lambda: "records are delivered" in agent.log)

    async def is_attached() -> bool:
        return (await agent.metrics()).value("qemu_vm_up", vm_uuid=idle.uuid) == 1

    await until(is_attached)
    assert (await agent.stop()).status == 0
    messages = [message for message in await read_messages(kafka, topics) if message.kind == "events"]
    runs: dict[str, list[str]] = {}
    for message in messages:
        if message.key == idle.uuid:
            runs.setdefault(message.event.get_id().partition("-")[0], []).append(message.type)
    assert list(runs.values()) == [
        ["qemu.vm.attached", "qemu.event.stop", "qemu.event.resume"],
        ["qemu.vm.attached", "qemu.vm.detached"],
    ]
