"""The consumers' library against a real Kafka: repetitions, gaps, restarts, and several members of a group."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaProducer

from agent.consumer.kafka_consumer import ConsumedItem, ConsumerSettings, ForeignMessage, RecordConsumer
from agent.consumer.record_orderer import Gap, OrderSettings
from agent.consumer.stream_record import StreamRecord
from tests.lab.background import in_background
from tests.lab.kafka import KafkaCluster
from tests.lab.scripted_sink import DEADLINE_SECONDS
from tests.lab.waiting import until

SETTINGS: Final = ConsumerSettings(OrderSettings(hold_seconds=0.2), reread_messages=100, poll_seconds=0.1)


def body(number: int, previous: int = 0, *, vm: str = "vm-1") -> bytes:
    """Return a record with this place among the records of a VM. Without a predecessor, `previous` is 0."""
    attributes: dict[str, Any] = {
        "specversion": "1.0",
        "id": f"01M7ZEJTQH-{vm}-{number}",
        "source": f"/hosts/hv7/vms/{vm}",
        "type": "qemu.event.stop",
        "time": "2026-11-21T16:21:13Z",
        "sequence": f"01M7ZEJTQH{number:012}",
        "data": {"number": number},
    }
    if previous:
        attributes["previoussequence"] = f"01M7ZEJTQH{previous:012}"
    return orjson.dumps(attributes)


async def send(kafka: KafkaCluster, topic: str, *bodies: bytes, key: str = "vm-1") -> None:
    """Append messages to a topic, in order within a key."""
    async with AIOKafkaProducer(**kafka.client) as producer:
        for value in bodies:
            await producer.send_and_wait(topic, value, key=key.encode())


def consumer(kafka: KafkaCluster, topic: str, **more: Any) -> RecordConsumer:
    """Return a consumer whose group is named as the topic."""
    return RecordConsumer([topic], group=topic, client=kafka.client, settings=SETTINGS, **more)


def describe(items: Iterable[ConsumedItem]) -> list[object]:
    """Return the numbers of records, and what else a consumer handed on in words."""
    described: list[object] = []
    for item in items:
        match item:
            case StreamRecord():
                described.append(item.data["number"])
            case Gap():
                described.append("gap")
            case ForeignMessage():
                described.append(item.cause)
    return described


async def take(reader: RecordConsumer, count: int) -> list[object]:
    """Return a description of the next items, and commit them."""
    taken: list[ConsumedItem] = []
    async with asyncio.timeout(DEADLINE_SECONDS):
        async for items in reader:
            taken += items
            if len(taken) >= count:
                await reader.commit()
                break
    return describe(taken)


@contextlib.asynccontextmanager
async def reading(kafka: KafkaCluster, topic: str) -> AsyncIterator[list[ConsumedItem]]:
    """Append what a member of the topic's group receives to a list while the `with` block runs."""
    received: list[ConsumedItem] = []

    async def read() -> None:
        async with consumer(kafka, topic) as member:
            async for items in member:
                received.extend(items)

    async with in_background(read()):
        yield received


async def test_repetitions_are_dropped_and_a_loss_is_reported(kafka: KafkaCluster, topic: str) -> None:
    await send(kafka, topic, body(1), body(2, 1), body(1), body(2, 1), body(5, 4), body(7, 5), b"[]")
    async with consumer(kafka, topic) as reader:
        assert await take(reader, 6) == [1, 2, "the value is not a JSON object", "gap", 5, 7]


async def test_a_restart_neither_repeats_what_was_committed_nor_loses_a_record(kafka: KafkaCluster, topic: str) -> None:
    await send(kafka, topic, body(1), body(2, 1))
    async with consumer(kafka, topic) as reader:
        assert await take(reader, 2) == [1, 2]
    await send(kafka, topic, body(1), body(2, 1), body(3, 2), body(5, 4))
    async with consumer(kafka, topic) as reader:
        assert await take(reader, 3) == [3, "gap", 5]


async def test_a_consumer_that_is_killed_before_the_commit_receives_the_batch_again(
    kafka: KafkaCluster, topic: str
) -> None:
    await send(kafka, topic, body(1), body(2, 1))
    async with consumer(kafka, topic) as killed, asyncio.timeout(DEADLINE_SECONDS):
        async for items in killed:
            if items:
                assert describe(items) == [1, 2]
                break
    async with consumer(kafka, topic) as reader:
        assert await take(reader, 2) == [1, 2]


async def test_a_record_that_waits_is_not_committed(kafka: KafkaCluster, topic: str) -> None:
    await send(kafka, topic, body(1), body(3, 2))
    async with consumer(kafka, topic) as reader:
        assert await take(reader, 1) == [1]
    await send(kafka, topic, body(2, 1))
    async with consumer(kafka, topic) as reader:
        assert await take(reader, 2) == [2, 3]


async def test_a_consumer_that_is_killed_again_and_again_ends_with_the_true_state(
    kafka: KafkaCluster, topic: str
) -> None:
    draw = random.Random(11)
    newest: dict[str, int] = {}
    sent: list[bytes] = []
    for number in range(1, 601):
        vm = f"vm-{draw.randrange(20)}"
        sent.append(body(number, newest.get(vm, 0), vm=vm))
        newest[vm] = number
        if draw.random() < 0.1:
            sent += sent[-10:]  # a producer that did not receive its acknowledgement
    async with AIOKafkaProducer(**kafka.client) as producer:
        for value in sent:
            await producer.send(topic, value, key=b"key")

    found: dict[str, int] = {}
    settings = ConsumerSettings(
        OrderSettings(hold_seconds=0.2), reread_messages=100, max_batch_messages=50, poll_seconds=0.1
    )
    kills = 0
    async with asyncio.timeout(DEADLINE_SECONDS):
        while found != newest:
            async with RecordConsumer([topic], group=topic, client=kafka.client, settings=settings) as reader:
                async for items in reader:
                    for item in items:
                        assert isinstance(item, StreamRecord), item
                        found[item.source.rpartition("/")[2]] = item.data["number"]
                    if found == newest or draw.random() < 0.2:
                        kills += 1
                        break  # without a commit of this batch
    assert kills > 2


async def test_no_record_is_lost_while_members_join_and_leave_a_group(kafka: KafkaCluster, topic: str) -> None:
    shared = f"{topic}-shared"
    await kafka.create_topic(shared, partitions=4)
    vms = [f"vm-{number}" for number in range(12)]

    async def send_to_all(number: int, previous: int) -> None:
        for vm in vms:
            await send(kafka, shared, body(number, previous, vm=vm), key=vm)

    def ids(received: list[ConsumedItem]) -> set[str]:
        assert all(isinstance(item, StreamRecord) for item in received), describe(received)
        return {item.id for item in received if isinstance(item, StreamRecord)}

    def expected(number: int) -> set[str]:
        return {f"01M7ZEJTQH-{vm}-{number}" for vm in vms}

    async with reading(kafka, shared) as first:
        await send_to_all(1, 0)
        await until(lambda: ids(first) >= expected(1), DEADLINE_SECONDS)
        number = 1
        async with reading(kafka, shared) as second:
            while not second:
                number += 1
                await send_to_all(number, number - 1)
                await until(lambda: ids(first) | ids(second) >= expected(number), DEADLINE_SECONDS)  # noqa: B023 - it is awaited here
        await send_to_all(number + 1, number)
        await until(lambda: ids(first) >= expected(number + 1), DEADLINE_SECONDS)
