"""Records into a real Kafka: where each goes, in which order, and what becomes of those that Kafka does not take."""

import asyncio
import json
import random
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka.partitioner import murmur2

from agent.delivery.entry import Entry
from agent.delivery.journal.database import JournalDatabase
from agent.delivery.journal.writer import FILE
from agent.delivery.sinks.kafka.config import KafkaCreateConfig, KafkaTopicsConfig, RouteConfig
from agent.delivery.sinks.kafka.sink import KafkaSink, _hash
from agent.model.record import EncodedRecord, Record, RecordEncoder, Vm
from tests.lab.kafka import KafkaCluster
from tests.lab.kafka_sink import batch, messages, nothing_left, one_topic, opened, persistently, refusal, terms
from tests.lab.scripted_sink import EVENT, SAMPLE, START_NS, VMS, Source, deliver, once, running, soon

BAD = "00000000-0000-4000-8000-00000000bad0"

JAVAS = {  # org.apache.kafka.common.utils.UtilsTest.testMurmur2
    "21": -973932308,
    "foobar": -790332482,
    "a-little-bit-long-string": -985981536,
    "a-little-bit-longer-string": -1486304829,
    "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    "abc": 479470107,
}


def large(count: int, size: int) -> list[Entry]:
    """Return records that no codec makes smaller."""
    stamp, vm, draw = RecordEncoder(START_NS + 10**12), Vm("host1", BAD, "bad"), random.Random(size)
    records = (Record(EVENT, vm, {"pad": draw.randbytes(size // 2).hex()}, START_NS) for _ in range(count))
    return [Entry.of(stamp(record)) for record in records]


def ids(found: list[object]) -> list[str]:
    return [json.loads(message.value)["id"] for message in found]  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", JAVAS)
def test_the_hash_of_a_key_is_javas(key: str) -> None:
    assert int.from_bytes(murmur2(key.encode()).to_bytes(4, "big"), "big", signed=True) == JAVAS[key]
    assert _hash(key) == JAVAS[key] & 0x7FFFFFFF


async def test_each_record_is_where_javas_client_would_put_it_whole_and_in_order(
    kafka: KafkaCluster, caplog: pytest.LogCaptureFixture
) -> None:
    topic = f"test-{uuid4()}"
    vms = [Vm("host1", str(uuid4()), f"vm{number}") for number in range(20)]
    stamp = RecordEncoder(START_NS)
    made = [Entry.of(stamp(Record(EVENT, vms[n % 20], {"n": n, "pad": "y" * 3000}, START_NS + n))) for n in range(2000)]
    await kafka.create_topic(topic, partitions=7)
    async with nothing_left(caplog), opened(terms(kafka.bootstrap, one_topic(topic), compression="none")) as sink:
        for at in range(0, 2000, 500):
            assert await sink.send(made[at : at + 500]) == []
    found = await messages(kafka, topic)
    assert {message.key.decode(): message.partition for message in found} == {vm.key: _hash(vm.key) % 7 for vm in vms}
    for vm in vms:
        mine = [message for message in found if message.key.decode() == vm.key]
        assert [message.value for message in mine] == [entry.body for entry in made if entry.key == vm.key]
        assert all(one.offset < other.offset for one, other in pairwise(mine))
        assert [message.timestamp for message in mine] == [e.time_ns // 1_000_000 for e in made if e.key == vm.key]
    assert all(
        message.headers == (("content-type", b"application/cloudevents+json; charset=UTF-8"),) for message in found
    )


async def test_kinds_and_routes_go_to_their_topics(kafka: KafkaCluster) -> None:
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
    by_beginning = {"qemu.event.job": names["jobs"], "qemu.sample.block": names["block"], "qemu.": names["events"]}
    routes = [RouteConfig(type=beginning, topic=topic) for beginning, topic in by_beginning.items()]
    topics = KafkaTopicsConfig(
        events=names["events"], samples=names["samples"], alerts=names["alerts"], routes=routes[:2]
    )
    source = Source()
    async with opened(
        terms(kafka.bootstrap, topics, create_topics=KafkaCreateConfig(partitions=1, replication_factor=1))
    ) as sink:
        assert await sink.send([batch(source, 1, kind)[0] for kind in kinds]) == []
    for name, topic in names.items():
        found = [json.loads(message.value)["type"] for message in await messages(kafka, topic)]
        assert found == [kind for kind, goes_to in kinds.items() if goes_to == name]
    assert KafkaTopicsConfig(routes=routes).of("qemu.alert.x") == names["events"], "the first that fits wins"


async def test_a_topic_that_is_missing_is_named_and_found_once_it_is_made(kafka: KafkaCluster, topic: str) -> None:
    later = f"test-later-{uuid4()}"
    made = terms(kafka.bootstrap, KafkaTopicsConfig(events=topic, samples=later, alerts=topic))
    said = await refusal(made)
    assert said == f"there is no topic {later}, or we may not see it: create it, or set kafka.create_topics"
    await kafka.create_topic(later)
    async with opened(made) as sink:
        assert await sink.send(batch(Source(SAMPLE), 3)) == []
    assert len(await messages(kafka, later)) == 3


async def test_a_topic_may_be_made_by_the_agent_with_its_partitions(kafka: KafkaCluster) -> None:
    name = f"test-own-{uuid4()}"
    made = terms(kafka.bootstrap, one_topic(name), create_topics=KafkaCreateConfig(partitions=5, replication_factor=-1))
    sinks = [opened(made) for _ in range(3)]
    opens = await asyncio.gather(*(sink.__aenter__() for sink in sinks))  # all find it missing at once
    source = Source()
    assert await opens[0].send(batch(source, 30)) == []
    for sink in sinks:
        await sink.__aexit__(None, None, None)
    found = await messages(kafka, name)
    assert len(found) == 30
    assert {message.partition for message in found} == {_hash(entry.key.decode()) % 5 for entry in found}


async def test_a_topic_whose_name_kafka_does_not_allow_is_said_so(kafka: KafkaCluster) -> None:
    said = await refusal(
        terms(
            kafka.bootstrap,
            one_topic("not a topic!"),
            create_topics=KafkaCreateConfig(partitions=1, replication_factor=1),
        )
    )
    assert "not a topic!" in said
    assert "InvalidTopic" in said


async def test_more_copies_than_there_are_brokers_is_said_so(kafka: KafkaCluster) -> None:
    said = await refusal(
        terms(
            kafka.bootstrap,
            one_topic(f"test-{uuid4()}"),
            create_topics=KafkaCreateConfig(partitions=1, replication_factor=3),
        )
    )
    assert "replication" in said.lower()


async def test_a_topic_that_is_removed_is_said_to_be_gone(kafka: KafkaCluster) -> None:
    name = f"test-gone-{uuid4()}"
    await kafka.create_topic(name)
    source, made = Source(), terms(kafka.bootstrap, one_topic(name), request_timeout=1.0)
    async with opened(made) as sink:
        assert await sink.send(batch(source, 1)) == []
        async with kafka._admin() as admin:
            await admin.delete_topics([name])
        await sink.close()
        assert name in await refusal(made)


async def test_a_record_over_max_record_is_refused_at_once_and_the_rest_delivered(
    kafka: KafkaCluster, topic: str
) -> None:
    source = Source()
    entries = batch(source, 10)
    entries[3:3] = too_large = large(1, 20_000)
    async with opened(terms(kafka.bootstrap, one_topic(topic), max_message_bytes=10_000)) as sink:
        assert list(await sink.send(entries)) == too_large
        assert list(await sink.send(too_large)) == too_large
        assert await sink.send(batch(source, 2)) == []
    assert ids(await messages(kafka, topic)) == source.made


@pytest.mark.parametrize("bad", [1, 12])
async def test_records_that_the_topic_does_not_take_are_found_among_good_ones(kafka: KafkaCluster, bad: int) -> None:
    topic, source = f"test-{uuid4()}", Source(size=500)
    await kafka.create_topic(topic, partitions=2, config={"max.message.bytes": "30000"})
    entries, refused = batch(source, 100), large(bad, 60_000)
    for number, one in enumerate(refused):
        entries.insert(7 * number + 5, one)
    async with opened(terms(kafka.bootstrap, one_topic(topic))) as sink:
        assert await persistently(sink, entries) == refused
        assert await persistently(sink, batch(source, 50), tries=3) == [], "later ones flow"
    found = await messages(kafka, topic)
    assert {*ids(found)} == {*source.made}
    keys = {entry.key for entry in entries} - {BAD}
    for key in keys:
        mine = once(ids([message for message in found if message.key.decode() == key]))
        assert mine == sorted(mine, key=source.made.index)


async def test_a_refusal_is_found_out_though_the_other_lane_delivers_meanwhile(kafka: KafkaCluster) -> None:
    names = [f"test-{uuid4()}", f"test-{uuid4()}"]
    await kafka.create_topic(names[0], config={"max.message.bytes": "30000"})
    await kafka.create_topic(names[1])
    source, other = Source(size=500), Source(SAMPLE, run=1)
    entries, refused = batch(source, 20), large(1, 60_000)
    entries[10:10] = refused
    async with opened(
        terms(kafka.bootstrap, KafkaTopicsConfig(events=names[0], samples=names[1], alerts=names[0]))
    ) as sink:
        for _ in range(5):
            try:
                assert list(await sink.send(entries)) == refused
            except Exception:  # noqa: BLE001 - any failure has the owner open it anew
                await sink.close()
                await sink.open()
                assert await sink.send(batch(other, 1)) == []
            else:
                break
        else:
            pytest.fail("it is sent again and again")
    assert once(ids(await messages(kafka, names[0]))) == source.made


async def test_many_refusals_cost_delivery_no_waiting(
    kafka: KafkaCluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.delivery.sinks.base.FIRST_RETRY_SECONDS", 600.0)
    monkeypatch.setattr("agent.delivery.sinks.base.MOST_RETRY_SECONDS", 600.0)
    topic, source = f"test-{uuid4()}", Source()
    await kafka.create_topic(topic, config={"max.message.bytes": "30000"})
    refused = [EncodedRecord(Record(EVENT, VMS[0], {}, START_NS), entry.id, entry.body) for entry in large(20, 60_000)]
    async with running(deliver(KafkaSink(terms(kafka.bootstrap, one_topic(topic))), folder)) as delivery:
        for one in refused:
            delivery.put(one)
            delivery.put(source.next())
        await soon(lambda: delivery.losses.totals == {("events", "rejected"): 20} and delivery.troubles() == [])
        await soon(lambda: delivery.outlet.delivered >= 20)
    assert [
        record_id for record_id in once(ids(await messages(kafka, topic))) if record_id in source.bodies
    ] == source.made
    store = JournalDatabase(folder / FILE)
    dead = [entry.id for _, entry in store.dead()]
    store.close()
    assert dead == [one.id for one in refused]
