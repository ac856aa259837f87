"""The compacted state topic on a real Kafka: creation, tombstones, and what a consumer knows that reads it from the beginning."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from agent.delivery.sinks.kafka.config import KafkaTopicCreationConfig, KafkaTopicsConfig
from agent.delivery.sinks.kafka.sink import KafkaSink
from agent.model.record import EncodedRecord
from tests.lab.kafka import KafkaCluster
from tests.lab.kafka_sink import kafka_config, open_sink
from tests.lab.scripted_sink import DEADLINE_SECONDS
from tests.lab.state_fleet import Fleet
from tests.lab.waiting import until

CLEAN_OFTEN = {
    "cleanup.policy": "compact",
    "segment.ms": "1000",
    "min.cleanable.dirty.ratio": "0.01",
    "delete.retention.ms": "0",
}
"""Config of a topic that the broker compacts within seconds."""


class StateWriter:
    """Writes states to Kafka. A killed writer's last request still reaches the broker, as it does when a process is killed."""

    def __init__(self, sink: KafkaSink) -> None:
        self._sink = sink
        self.writes = 0
        self.tombstones = 0

    async def deliver(self, records: Sequence[EncodedRecord]) -> None:
        sending = asyncio.ensure_future(self._sink.send(records))
        try:
            assert list(await asyncio.shield(sending)) == []
        finally:
            await asyncio.wait({sending})
            self.writes += len(records)
            self.tombstones += sum(not record.body for record in records)


def latest(messages: Sequence[ConsumerRecord]) -> dict[str, bytes]:
    """Return the last value of each key, without deleted keys."""
    values = {message.key.decode(): message.value for message in messages}
    return {key: value for key, value in values.items() if value is not None}


async def cleanup_policy(kafka: KafkaCluster, topic: str) -> str:
    admin = AIOKafkaAdminClient(**kafka.client)
    await admin.start()
    try:
        (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        return {entry[0]: str(entry[1]) for entry in answer.resources[0][4]}["cleanup.policy"]
    finally:
        await admin.close()


async def read_compacted(kafka: KafkaCluster, topic: str) -> list[ConsumerRecord]:
    """Return the messages that a compacted topic still has. Their number is less than the difference of the offsets."""
    messages: list[ConsumerRecord] = []
    consumer = AIOKafkaConsumer(topic, auto_offset_reset="earliest", **kafka.client)
    async with asyncio.timeout(DEADLINE_SECONDS), consumer:
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        ends = await consumer.end_offsets(partitions)
        while [end for partition, end in ends.items() if await consumer.position(partition) < end]:
            for received in (await consumer.getmany(timeout_ms=500)).values():
                messages += received
    return messages


async def test_the_agent_creates_the_topic_of_states_compacted_and_the_others_not(
    kafka: KafkaCluster, topic: str
) -> None:
    state, samples = f"test-state-{uuid4()}", f"test-samples-{uuid4()}"
    topics = KafkaTopicsConfig(events=topic, samples=samples, alerts=topic, state=state)
    create = KafkaTopicCreationConfig(partitions=1, replication_factor=1)
    async with open_sink(kafka_config(kafka.bootstrap, topics, create_topics=create)):
        assert await cleanup_policy(kafka, state) == "compact"
        assert await cleanup_policy(kafka, samples) == "delete"


async def test_a_topic_of_states_that_is_not_compacted_is_a_warning(kafka: KafkaCluster, topic: str) -> None:
    state = f"test-state-{uuid4()}"
    await kafka.create_topic(state, config={"cleanup.policy": "compact"})
    for name, warnings in ((topic, [f"topic {topic} is not compacted"]), (state, [])):
        topics = KafkaTopicsConfig(events=topic, samples=topic, alerts=topic, state=name)
        async with open_sink(kafka_config(kafka.bootstrap, topics)) as sink:
            assert [text.partition(",")[0] for text in sink.warnings()] == warnings


async def test_a_late_consumer_knows_all_that_is_true_of_a_thousand_vms(
    kafka: KafkaCluster, topic: str, tmp_path: Path
) -> None:
    state = f"test-state-{uuid4()}"
    await kafka.create_topic(state, partitions=3, config=CLEAN_OFTEN)
    topics = KafkaTopicsConfig(events=topic, samples=topic, alerts=topic, state=state)
    async with open_sink(kafka_config(kafka.bootstrap, topics)) as sink:
        writer = StateWriter(sink)
        fleet = Fleet(tmp_path, writer.deliver, hosts=5, vms=1000, seed=7)
        await fleet.churn(400)
        await fleet.settle()
        messages = await read_compacted(kafka, state)  # on a slow machine, Kafka may have begun to compact it
        assert len(messages) > 1000  # Kafka may have some twice: delivery is at least once
        assert writer.tombstones
        assert fleet.problems(latest(messages)) == []
        await fleet.churn(400)
        await fleet.settle()

        async def is_compacted() -> bool:
            consumed = await read_compacted(kafka, state)
            return len(consumed) < writer.writes * 3 // 4

        await until(is_compacted, 300)
        assert fleet.problems(latest(await read_compacted(kafka, state))) == []
