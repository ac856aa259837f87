"""How often a state is in the topic if the acknowledgement of its write is lost, and what readers know then."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from agent.consumer.state_reader import StateReader
from agent.delivery.sinks.kafka.config import KafkaTopicsConfig
from agent.model.record import EncodedRecord, Record, RecordEncoder
from agent.model.state_topic_records import StateRecordEntity
from tests.lab.kafka import KafkaCluster
from tests.lab.kafka_sink import kafka_config, open_sink, read_topic
from tests.lab.lossy_proxy import LossyProxy
from tests.lab.machine import free_port
from tests.lab.scripted_sink import DEADLINE_SECONDS, START_NS
from tests.lab.waiting import until

STATES: Final = "states"
VMS: Final = 20


@dataclass(frozen=True, slots=True)
class LossyBroker:
    """A broker whose responses can be lost on their way to the agent, and its address for the agent."""

    cluster: KafkaCluster
    proxy: LossyProxy
    address: str

    async def stored(self) -> int:
        """Return the number of messages in the state topic."""
        async with AIOKafkaConsumer(**self.cluster.client) as consumer:
            return sum((await consumer.end_offsets([TopicPartition(STATES, 0), TopicPartition(STATES, 1)])).values())

    async def read(self) -> list[ConsumerRecord]:
        """Return the messages in the state topic."""
        return await read_topic(self.cluster, STATES)

    async def vms_in_state(self) -> dict[str, object]:
        """Return the number of each VM that a reader of the state topic knows, by UUID."""
        async with StateReader(STATES, client=self.cluster.client) as reader:
            return {record.vm_uuid: record.data["number"] for record in reader.state.vms()}


@pytest.fixture
async def lossy_broker(folder: Path) -> AsyncIterator[LossyBroker]:
    cluster = KafkaCluster(folder / "lossy")
    (broker,) = cluster.brokers
    port, behind = free_port(), free_port()
    addresses = {name: f"{name}://127.0.0.1:{number}" for name, number in broker.ports.items()}
    advertised = ",".join((addresses["CLIENT"], addresses["INTERNAL"], f"LOSSY://127.0.0.1:{port}"))
    cluster._properties |= {
        "listeners": ",".join((*addresses.values(), f"LOSSY://127.0.0.1:{behind}")),
        "advertised.listeners": advertised,
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT,LOSSY:PLAINTEXT",
    }
    async with cluster, LossyProxy(port, behind) as proxy:
        await cluster.create_topic(STATES, partitions=2, config={"cleanup.policy": "compact"})
        await cluster.create_topic("others")
        yield LossyBroker(cluster, proxy, f"127.0.0.1:{port}")


def states() -> list[EncodedRecord]:
    """Return the writes of a turn: states of VMs, and the tombstone of the last VM."""
    encode = RecordEncoder(START_NS)
    entities = [
        StateRecordEntity("hv0", f"vm-{number}", f"name-{number}", path=f"vms/vm-{number}") for number in range(VMS)
    ]
    records = [encode(Record("qemu.state.vm", vm, {"number": number}, START_NS)) for number, vm in enumerate(entities)]
    gone = entities[-1]
    return [*records, EncodedRecord("tombstone", gone.key, "qemu.state.tombstone", START_NS, b"", gone)]


async def test_a_lost_acknowledgement_repeats_states_only_if_the_connection_is_given_up(
    lossy_broker: LossyBroker,
) -> None:
    broker, writes = lossy_broker, states()
    topics = KafkaTopicsConfig(events="others", samples="others", alerts="others", state=STATES)
    known = {f"vm-{number}": number for number in range(VMS - 1)}
    config = kafka_config([broker.address], topics)

    # The producer sends the batch again itself. Kafka recognizes its number and stores nothing twice.
    async with open_sink(config) as sink:
        broker.proxy.discards_responses = True
        sending = asyncio.create_task(sink.send(writes))
        await until(lambda: at_least(broker, len(writes)), DEADLINE_SECONDS)
        assert not sending.done()
        broker.proxy.discards_responses = False
        broker.proxy.end_connections()
        assert list(await sending) == []
    assert await broker.stored() == len(writes)
    assert await broker.vms_in_state() == known

    # The sink gives up the producer, and a new producer sends the batch again. Kafka cannot know that it is the same batch.
    async with open_sink(config) as sink:
        broker.proxy.discards_responses = True
        sending = asyncio.create_task(sink.send(writes))
        await until(lambda: at_least(broker, 2 * len(writes)), DEADLINE_SECONDS)
        sending.cancel()
        await asyncio.wait({sending})
        broker.proxy.discards_responses = False
        await sink.close()
        await sink.open()
        assert list(await sink.send(writes)) == []
    assert await broker.stored() == 3 * len(writes)
    messages = await broker.read()
    by_partition = {number: [m.value for m in messages if m.partition == number] for number in (0, 1)}
    for values in by_partition.values():
        third = len(values) // 3
        assert values == values[:third] * 3, "a batch is repeated whole and in order"
    assert await broker.vms_in_state() == known


async def at_least(broker: LossyBroker, count: int) -> bool:
    """Return whether the state topic has this number of messages."""
    return await broker.stored() >= count
