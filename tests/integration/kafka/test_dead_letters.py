"""The topic for dead letters, on a real Kafka."""

import json
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import ConsumerRecord

from agent.delivery.sinks.kafka.config import KafkaConfig, KafkaTopicsConfig
from agent.delivery.sinks.kafka.message import ContentMode
from agent.model.record import EncodedRecord
from tests.lab.kafka import KafkaCluster
from tests.lab.kafka_sink import (
    ids,
    kafka_config,
    large_records,
    open_error,
    open_sink,
    read_topic,
    send_with_retries,
)
from tests.lab.scripted_sink import RecordSource


async def dead_letter_config(kafka: KafkaCluster, max_bytes: int, **more: Any) -> KafkaConfig:
    """Create a topic for events that takes 30,000 bytes, and one for dead letters; return a config with both."""
    events, dead_letters = f"test-{uuid4()}", f"test-{uuid4()}"
    await kafka.create_topic(events, config={"max.message.bytes": "30000"})
    await kafka.create_topic(dead_letters, config={"max.message.bytes": str(max_bytes)})
    topics = KafkaTopicsConfig(events=events, samples=events, alerts=events, state=None, dead_letters=dead_letters)
    return kafka_config(kafka.bootstrap, topics, **more)


async def deliver(config: KafkaConfig, rejected: Sequence[EncodedRecord]) -> None:
    """Deliver ordinary records with some that are too large for their topic."""
    records: list[EncodedRecord] = [*RecordSource(size=500).take(20)]
    records[10:10] = rejected
    async with open_sink(config) as sink:
        assert await send_with_retries(sink, records) == rejected, "the journal stores them too"
        assert await send_with_retries(sink, rejected) == rejected


def id_of(message: ConsumerRecord) -> str:
    """Return the id of a dead letter: in its headers in binary mode, else in its value."""
    headers = dict(message.headers)
    return headers["ce_id"].decode() if "ce_id" in headers else str(json.loads(message.value)["id"])


async def read_dead_letters(kafka: KafkaCluster, config: KafkaConfig) -> dict[str, ConsumerRecord]:
    """Return the last dead letter of each record, by the record's id."""
    assert config.topics.dead_letters is not None
    messages = await read_topic(kafka, config.topics.dead_letters)
    return {id_of(message): message for message in messages}


def rejection(message: ConsumerRecord) -> dict[str, str]:
    """Return the headers on the rejection."""
    return {name: value.decode() for name, value in message.headers if name.startswith("dead_letter_")}


async def test_a_record_that_its_topic_rejects_is_whole_in_the_topic_for_dead_letters(kafka: KafkaCluster) -> None:
    config = await dead_letter_config(kafka, 1_000_000)
    rejected = large_records(2, 60_000)
    await deliver(config, rejected)
    dead_letters = await read_dead_letters(kafka, config)
    assert {*dead_letters} == {record.id for record in rejected}
    for record in rejected:
        message = dead_letters[record.id]
        assert (message.key.decode(), message.value) == (record.key, record.body)
        assert rejection(message) == {
            "dead_letter_reason": "too_large",
            "dead_letter_topic": config.topics.events,
            "dead_letter_bytes": str(len(record.body)),
            "dead_letter_truncated": "false",
        }
    assert len(ids(await read_topic(kafka, config.topics.events))) >= 20


@pytest.mark.parametrize("mode", ContentMode)
async def test_a_dead_letter_that_is_too_large_too_has_no_data(kafka: KafkaCluster, mode: ContentMode) -> None:
    config = await dead_letter_config(kafka, 30_000, content_mode=mode)
    rejected = large_records(1, 60_000)
    await deliver(config, rejected)
    (message,) = (await read_dead_letters(kafka, config)).values()
    assert rejection(message)["dead_letter_truncated"] == "true"
    assert rejection(message)["dead_letter_bytes"] == str(len(rejected[0].body))
    if mode is ContentMode.BINARY:
        assert message.value == b"null"
    else:
        whole = json.loads(rejected[0].body)
        assert json.loads(message.value) == whole | {"data": None}


async def test_a_record_beyond_aiokafkas_limit_becomes_a_dead_letter_without_data(kafka: KafkaCluster) -> None:
    config = await dead_letter_config(kafka, 10_000_000, max_message_bytes=10_000)
    rejected = large_records(1, 3_000_000)
    await deliver(config, rejected)
    (message,) = (await read_dead_letters(kafka, config)).values()
    assert rejection(message)["dead_letter_truncated"] == "true"


async def test_records_wait_until_the_topic_for_dead_letters_exists(kafka: KafkaCluster, topic: str) -> None:
    topics = KafkaTopicsConfig(events=topic, samples=topic, alerts=topic, state=None, dead_letters=f"test-{uuid4()}")
    assert f"topic {topics.dead_letters} does not exist" in await open_error(kafka_config(kafka.bootstrap, topics))
