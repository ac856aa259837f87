"""The Kafka sink against a real Kafka: topics, partitions, order, and rejected records."""

import asyncio
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka.partitioner import murmur2

from agent.delivery.journal.database import JournalDatabase
from agent.delivery.journal.journal import JOURNAL_FILE
from agent.delivery.sinks.kafka.config import KafkaTopicCreationConfig, KafkaTopicsConfig, TopicRouteConfig
from agent.delivery.sinks.kafka.sink import KafkaSink, murmur2_hash
from agent.model.record import Record, RecordEncoder, Vm
from tests.lab.kafka import KafkaCluster
from tests.lab.kafka_sink import (
    BAD_UUID,
    ids,
    kafka_config,
    large_records,
    no_leaks,
    open_error,
    open_sink,
    read_topic,
    send_with_retries,
    single_topic,
)
from tests.lab.scripted_sink import (
    EVENT,
    SAMPLE,
    SHORT_TIMINGS,
    START_NS,
    RecordSource,
    deduplicated,
    eventually,
    make_pipeline,
    running,
)

JAVA_HASHES = {  # org.apache.kafka.common.utils.UtilsTest.testMurmur2
    "21": -973932308,
    "foobar": -790332482,
    "a-little-bit-long-string": -985981536,
    "a-little-bit-longer-string": -1486304829,
    "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    "abc": 479470107,
}


@pytest.mark.parametrize("key", JAVA_HASHES)
def test_keys_are_hashed_as_in_kafkas_java_client(key: str) -> None:
    assert int.from_bytes(murmur2(key.encode()).to_bytes(4, "big"), "big", signed=True) == JAVA_HASHES[key]
    assert murmur2_hash(key) == JAVA_HASHES[key] & 0x7FFFFFFF


async def test_records_are_unchanged_in_order_and_in_the_java_clients_partitions(
    kafka: KafkaCluster, caplog: pytest.LogCaptureFixture
) -> None:
    topic = f"test-{uuid4()}"
    vms = [Vm("host1", str(uuid4()), f"vm{number}") for number in range(20)]
    encode = RecordEncoder(START_NS)
    records = [encode(Record(EVENT, vms[n % 20], {"n": n, "pad": "y" * 3000}, START_NS + n)) for n in range(2000)]
    await kafka.create_topic(topic, partitions=7)
    async with (
        no_leaks(caplog),
        open_sink(kafka_config(kafka.bootstrap, single_topic(topic), compression="none")) as sink,
    ):
        for at in range(0, 2000, 500):
            assert await sink.send(records[at : at + 500]) == []
    messages = await read_topic(kafka, topic)
    assert {message.key.decode(): message.partition for message in messages} == {
        vm.key: murmur2_hash(vm.key) % 7 for vm in vms
    }
    for vm in vms:
        mine = [message for message in messages if message.key.decode() == vm.key]
        assert [message.value for message in mine] == [record.body for record in records if record.key == vm.key]
        assert all(one.offset < other.offset for one, other in pairwise(mine))
        assert [message.timestamp for message in mine] == [e.time_ns // 1_000_000 for e in records if e.key == vm.key]
    assert all(dict(message.headers)["ce_type"].decode() == json.loads(message.value)["type"] for message in messages)


async def test_record_types_and_routes_select_the_topic(kafka: KafkaCluster) -> None:
    names = {name: f"test-{name}-{uuid4()}" for name in ("events", "samples", "alerts", "jobs", "block")}
    kinds = {
        EVENT: "events",
        "qemu.vm.attached": "events",
        "qemu.agent.records_dropped": "events",
        SAMPLE: "block",
        "qemu.sample.cpu": "samples",
        "qemu.alert.write_threshold": "alerts",
        "qemu.event.job_status_change": "jobs",
    }
    by_prefix = {"qemu.event.job": names["jobs"], "qemu.sample.block": names["block"], "qemu.": names["events"]}
    routes = [TopicRouteConfig(type=prefix, topic=topic) for prefix, topic in by_prefix.items()]
    topics = KafkaTopicsConfig(
        events=names["events"], samples=names["samples"], alerts=names["alerts"], state=None, routes=routes[:2]
    )
    source = RecordSource()
    async with open_sink(
        kafka_config(
            kafka.bootstrap, topics, create_topics=KafkaTopicCreationConfig(partitions=1, replication_factor=1)
        )
    ) as sink:
        assert await sink.send([source.next(kind) for kind in kinds]) == []
    for name, topic in names.items():
        messages = [json.loads(message.value)["type"] for message in await read_topic(kafka, topic)]
        assert messages == [kind for kind, goes_to in kinds.items() if goes_to == name]
    assert KafkaTopicsConfig(routes=routes).topic_for("qemu.alert.x") == names["events"], "the first match wins"


async def test_a_missing_topic_is_reported_and_used_once_it_exists(kafka: KafkaCluster, topic: str) -> None:
    later = f"test-later-{uuid4()}"
    config = kafka_config(kafka.bootstrap, KafkaTopicsConfig(events=topic, samples=later, alerts=topic, state=None))
    error = await open_error(config)
    assert error == (
        f"topic {later} does not exist, or the agent is not authorized to see it: create it, or set kafka.create_topics"
    )
    await kafka.create_topic(later)
    async with open_sink(config) as sink:
        assert await sink.send([*RecordSource(SAMPLE).take(3)]) == []
    assert len(await read_topic(kafka, later)) == 3


async def test_missing_topics_are_created_with_the_configured_partitions(kafka: KafkaCluster) -> None:
    name = f"test-own-{uuid4()}"
    config = kafka_config(
        kafka.bootstrap, single_topic(name), create_topics=KafkaTopicCreationConfig(partitions=5, replication_factor=-1)
    )
    sinks = [open_sink(config) for _ in range(3)]
    opens = await asyncio.gather(*(sink.__aenter__() for sink in sinks))  # all of them find it missing
    source = RecordSource()
    assert await opens[0].send([*source.take(30)]) == []
    for sink in sinks:
        await sink.__aexit__(None, None, None)
    messages = await read_topic(kafka, name)
    assert len(messages) == 30
    assert {message.partition for message in messages} == {murmur2_hash(record.key.decode()) % 5 for record in messages}


async def test_an_invalid_topic_name_is_reported(kafka: KafkaCluster) -> None:
    error = await open_error(
        kafka_config(
            kafka.bootstrap,
            single_topic("not a topic!"),
            create_topics=KafkaTopicCreationConfig(partitions=1, replication_factor=1),
        )
    )
    assert "not a topic!" in error
    assert "InvalidTopic" in error


async def test_a_replication_factor_above_the_number_of_brokers_is_reported(kafka: KafkaCluster) -> None:
    error = await open_error(
        kafka_config(
            kafka.bootstrap,
            single_topic(f"test-{uuid4()}"),
            create_topics=KafkaTopicCreationConfig(partitions=1, replication_factor=3),
        )
    )
    assert "replication" in error.lower()


async def test_a_deleted_topic_is_reported(kafka: KafkaCluster) -> None:
    name = f"test-gone-{uuid4()}"
    await kafka.create_topic(name)
    source, config = RecordSource(), kafka_config(kafka.bootstrap, single_topic(name))
    async with open_sink(config) as sink:
        assert await sink.send([*source.take(1)]) == []
        async with kafka._admin() as admin:
            await admin.delete_topics([name])
        await sink.close()
        assert name in await open_error(config)


async def test_records_over_max_message_bytes_are_rejected_and_the_others_delivered(
    kafka: KafkaCluster, topic: str
) -> None:
    source = RecordSource()
    records = [*source.take(10)]
    records[3:3] = too_large = large_records(1, 20_000)
    async with open_sink(kafka_config(kafka.bootstrap, single_topic(topic), max_message_bytes=10_000)) as sink:
        assert list(await sink.send(records)) == too_large
        assert list(await sink.send(too_large)) == too_large
        assert await sink.send([*source.take(2)]) == []
    assert ids(await read_topic(kafka, topic)) == source.ids


@pytest.mark.parametrize("bad", [1, 12])
async def test_records_too_large_for_the_topic_are_found_and_the_others_delivered(
    kafka: KafkaCluster, bad: int
) -> None:
    topic, source = f"test-{uuid4()}", RecordSource(size=500)
    await kafka.create_topic(topic, partitions=2, config={"max.message.bytes": "30000"})
    records, rejected = [*source.take(100)], large_records(bad, 60_000)
    for number, record in enumerate(rejected):
        records.insert(7 * number + 5, record)
    async with open_sink(kafka_config(kafka.bootstrap, single_topic(topic))) as sink:
        assert await send_with_retries(sink, records) == rejected
        assert await send_with_retries(sink, [*source.take(50)]) == [], "later records are delivered"
    messages = await read_topic(kafka, topic)
    assert {*ids(messages)} == {*source.ids}
    keys = {record.key for record in records} - {BAD_UUID}
    for key in keys:
        mine = deduplicated(ids([message for message in messages if message.key.decode() == key]))
        assert mine == sorted(mine, key=source.ids.index)


async def test_a_rejected_record_is_found_while_another_queue_delivers(kafka: KafkaCluster) -> None:
    names = [f"test-{uuid4()}", f"test-{uuid4()}"]
    await kafka.create_topic(names[0], config={"max.message.bytes": "30000"})
    await kafka.create_topic(names[1])
    source, other = RecordSource(size=500), RecordSource(SAMPLE, run=1)
    records, rejected = [*source.take(20)], large_records(1, 60_000)
    records[10:10] = rejected
    async with open_sink(
        kafka_config(kafka.bootstrap, KafkaTopicsConfig(events=names[0], samples=names[1], alerts=names[0], state=None))
    ) as sink:
        for _ in range(40):
            try:
                assert list(await sink.send(records)) == rejected
            except Exception:  # noqa: BLE001 - the supervisor opens the sink again after any failure
                await sink.close()
                await sink.open()
                assert await sink.send([*other.take(1)]) == []
            else:
                break
        else:
            pytest.fail("the batch is never delivered")
    assert deduplicated(ids(await read_topic(kafka, names[0]))) == source.ids


async def test_many_rejected_records_delay_no_others(kafka: KafkaCluster, folder: Path) -> None:
    timings = replace(SHORT_TIMINGS, first_retry=600.0, max_retry=600.0)
    topic, source = f"test-{uuid4()}", RecordSource()
    await kafka.create_topic(topic, config={"max.message.bytes": "30000"})
    rejected = large_records(20, 60_000)
    async with running(
        make_pipeline(KafkaSink(kafka_config(kafka.bootstrap, single_topic(topic))), folder, timings=timings)
    ) as pipeline:
        for record in rejected:
            pipeline.put(record)
            pipeline.put(source.next())
        await eventually(
            lambda: pipeline.drops.totals == {("events", "rejected"): 20} and pipeline.unready_reasons() == []
        )
        await eventually(lambda: pipeline.supervisor.delivered >= 20)
    assert [
        record_id for record_id in deduplicated(ids(await read_topic(kafka, topic))) if record_id in source.bodies
    ] == source.ids
    database = JournalDatabase(folder / JOURNAL_FILE)
    dead_letters = [record.id for _, record in database.dead_letters()]
    database.close()
    assert dead_letters == [record.id for record in rejected]
