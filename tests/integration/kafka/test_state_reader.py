"""Readers of the state topic against a real Kafka, and against the truth: early, late, killed, and reading twice."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiokafka import AIOKafkaProducer

from agent.consumer.state_reader import StateReader
from agent.model.record import Record, RecordEncoder, Vm
from tests.lab.kafka import KafkaCluster
from tests.lab.scripted_sink import DEADLINE_SECONDS, START_NS
from tests.lab.waiting import until

HOSTS = ("hv0", "hv1", "hv2")
VMS = 50
CHANGES = 1500

State = dict[tuple[str, str], int]
"""The number of the last change by host and VM."""


@dataclass
class Fleet:
    """Hosts that write the states of VMs, which start, change, move and end at random.

    Attributes:
        topic: The state topic.
        truth: What a reader should find.
    """

    kafka: KafkaCluster
    topic: str
    producer: AIOKafkaProducer
    truth: State = field(default_factory=dict)
    _draw: random.Random = field(default_factory=lambda: random.Random(7))
    _encode: RecordEncoder = field(default_factory=lambda: RecordEncoder(START_NS))
    _changes: int = 0

    async def change(self, count: int) -> None:
        """Write a number of changes."""
        for _ in range(count):
            self._changes += 1
            host, uuid = self._draw.choice(HOSTS), f"vm-{self._draw.randrange(VMS)}"
            if (host, uuid) in self.truth and self._draw.random() < 0.3:
                del self.truth[host, uuid]
                value = None
            else:
                self.truth[host, uuid] = self._changes
                record = Record("qemu.state.vm", Vm(host, uuid, uuid), {"change": self._changes}, START_NS)
                value = self._encode(record).body
            await self.producer.send(self.topic, value, key=f"/hosts/{host}/state/vms/{uuid}".encode())
        await self.producer.flush()

    def reader(self) -> StateReader:
        return StateReader(self.topic, client=self.kafka.client)


@pytest.fixture
async def fleet(kafka: KafkaCluster, topic: str) -> AsyncIterator[Fleet]:
    states = f"{topic}-state"
    compaction = {"cleanup.policy": "compact", "segment.ms": "200", "min.cleanable.dirty.ratio": "0.01"}
    await kafka.create_topic(states, partitions=4, config=compaction)
    async with AIOKafkaProducer(**kafka.client) as producer:
        yield Fleet(kafka, states, producer)


def state_of(reader: StateReader) -> State:
    """Return the state that a reader has."""
    records = [record for uuid in range(VMS) if (record := reader.state.vm(f"vm-{uuid}")) is not None]
    assert len(records) == len(list(reader.state.vms()))
    return {(record.host, record.vm_uuid): record.data["change"] for record in reader.state.vms_on_all_hosts()}


async def test_a_reader_has_the_true_state_whenever_it_begins(fleet: Fleet) -> None:
    async with fleet.reader() as early:
        assert len(early.state) == 0
        for _ in range(3):
            await fleet.change(CHANGES // 3)
            await early.catch_up()
            assert state_of(early) == fleet.truth
        async with fleet.reader() as late:
            assert state_of(late) == fleet.truth


async def test_a_reader_that_was_killed_or_reads_twice_has_the_true_state(fleet: Fleet) -> None:
    await fleet.change(CHANGES)
    killed = fleet.reader()
    reading = asyncio.create_task(killed.__aenter__())
    await until(lambda: len(killed.state), DEADLINE_SECONDS)
    reading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reading
    await killed.__aexit__()
    async with fleet.reader() as reader:
        assert state_of(reader) == fleet.truth
        await reader._consumer.seek_to_beginning()
        await fleet.change(100)
        await reader.catch_up()
        assert state_of(reader) == fleet.truth
