"""The jobs of deploy/flink on a real Flink and a real Kafka. The times of the records are simulated, so the test waits for no minute."""

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from agent.model.record import Record, RecordEncoder, Vm
from tests.lab.flink import FlinkJobs
from tests.lab.kafka import KafkaCluster
from tests.lab.waiting import until

START_SECONDS: Final = 1_795_600_800
"""A whole minute."""
RESULT_SECONDS: Final = 240.0
"""Deadline of a result: generous, for a machine under load."""
MIB: Final = 1 << 20
RECORDS: Final = ("qemu.events", "qemu.samples", "qemu.state", "fleet.clock")
RESULTS: Final = ("fleet.silent_hosts", "fleet.top_talkers", "fleet.filling_pools", "fleet.vms")


@dataclass
class Stream:
    """Topics with the records of simulated hosts, and the jobs that read them."""

    kafka: KafkaCluster
    topics: dict[str, str]
    jobs: FlinkJobs
    results: dict[str, list[tuple[Any, Any]]] = field(default_factory=lambda: defaultdict(list))

    async def send(self, topic: str, records: Iterable[Record]) -> None:
        """Send records to a topic. Kafka's timestamps are the times of the records."""
        encoders: dict[str, RecordEncoder] = {}
        async with AIOKafkaProducer(compression_type="zstd", **self.kafka.client) as producer:
            for record in records:
                encode = encoders.setdefault(record.vm.host, RecordEncoder(START_SECONDS * 10**9))
                encoded = encode(record)
                millis = encoded.time_ns // 10**6
                await producer.send(self.topics[topic], encoded.body, key=encoded.key.encode(), timestamp_ms=millis)
                if encoded.id.endswith("7"):  # records may arrive twice
                    await producer.send(self.topics[topic], encoded.body, key=encoded.key.encode(), timestamp_ms=millis)
            await producer.flush()

    async def send_states(self, states: Iterable[tuple[str, Record | None]]) -> None:
        """Send records to the state topic by key. None sends a tombstone."""
        encode = RecordEncoder(START_SECONDS * 10**9)
        async with AIOKafkaProducer(compression_type="zstd", **self.kafka.client) as producer:
            for key, record in states:
                value = None if record is None else encode(record).body
                await producer.send_and_wait(self.topics["qemu.state"], value, key=key.encode())

    async def send_ticks(self, seconds: Iterable[float]) -> None:
        """Send ticks of the clock, at times after the start."""
        async with AIOKafkaProducer(**self.kafka.client) as producer:
            for at in seconds:
                millis = int((START_SECONDS + at) * 1000)
                await producer.send_and_wait(self.topics["fleet.clock"], b'{"tick": 2}', timestamp_ms=millis)

    async def collect_results(self) -> None:
        """Store the results of the jobs as they arrive, until cancelled. A raw key is a text, and the value of a tombstone is None."""
        names = {self.topics[name]: name for name in RESULTS}
        async with AIOKafkaConsumer(*names, auto_offset_reset="earliest", **self.kafka.client) as consumer:
            async for message in consumer:
                key = json.loads(message.key) if message.key.startswith(b"{") else message.key.decode()
                self.results[names[message.topic]].append((key, message.value and json.loads(message.value)))

    def present(self, topic: str) -> dict[str, dict[str, Any]]:
        """Return what is left in a compacted topic of results."""
        self.jobs.check()
        return {key: value for key, value in dict(self.results[topic]).items() if value is not None}

    async def wait_for_results(self, topic: str, count: int) -> list[tuple[Any, Any]]:
        """Return the keys and values of a topic when it has at least this many."""

        def has_results() -> bool:
            self.jobs.check()
            return len(self.results[topic]) >= count

        await until(has_results, RESULT_SECONDS)
        return self.results[topic]


@pytest.fixture
async def stream(kafka: KafkaCluster, folder: Path) -> AsyncIterator[Stream]:
    topics = {name: f"{name}-{uuid4()}" for name in (*RECORDS, *RESULTS)}
    for name in topics.values():
        await kafka.create_topic(name)
    replacements = {f"'{name}'": f"'{topic}'" for name, topic in topics.items()}
    replacements["latest-offset"] = "earliest-offset"
    replacements["SELECT tick FROM ticks"] = "SELECT tick FROM ticks WHERE tick < 0"  # the test sends the ticks
    names = ("silent_hosts", "top_talkers", "shared_pools", "current_state")
    async with FlinkJobs(folder / "flink", names, kafka.bootstrap[0], replacements) as jobs:
        stream = Stream(kafka, topics, jobs)
        collector = asyncio.create_task(stream.collect_results())
        yield stream
        collector.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await collector


def life(host: str, change: str, seconds: float) -> Record:
    """Return a record of an agent's life, seconds after the start."""
    return Record(f"qemu.agent.{change}", Vm(host, "", ""), {}, int((START_SECONDS + seconds) * 10**9))


def vm_sample(host: str, vm: int, family: str, seconds: float, **data: Any) -> Record:
    """Return a sample of a VM's disk, seconds after the start."""
    source = Vm(host, f"00000000-0000-4000-8000-{vm:012}", f"vm-{vm}")
    time_ns = int((START_SECONDS + seconds) * 10**9)
    return Record(f"qemu.sample.{family}", source, {"device": "disk0", **data}, time_ns, "disk0")


def disk_counters(seconds: int) -> list[Record]:
    """Return the counters of 15 VMs at a time. The VM with number n writes n MiB each ten seconds; VM 15 restarts after 40 s."""
    records = []
    for vm in range(1, 16):
        written = vm * MIB * seconds // 10
        if vm == 15:
            written = 10**12 + written if seconds < 40 else written - vm * MIB * 4
        counters = {"read_bytes_total": 0, "write_bytes_total": written}
        records.append(vm_sample(f"hv{vm % 3}", vm, "block", seconds, **counters))
    return records


def pools_and_growth(seconds: int) -> list[Record]:
    """Return samples of a pool that two hosts share, and of one that belongs to a host alone, at a time."""
    time_ns = (START_SECONDS + seconds) * 10**9
    records = []
    for host, pool, kind, free in (
        ("hv0", "/srv/nfs", "nfs4", 10**9),
        ("hv1", "/srv/nfs", "nfs4", 10**9),
        ("hv1", "/var", "ext4", 1),
    ):
        data = {"pool": pool, "kind": "filesystem", "type": kind, "size_bytes": 10**12, "free_bytes": free + seconds}
        records.append(Record("qemu.sample.pool", Vm(host, "", ""), data, time_ns, pool))
    records += [
        vm_sample("hv0", 1, "block_space", seconds, pool="/srv/nfs", growth_bytes_per_second=3e6),
        vm_sample("hv1", 2, "block_space", seconds, pool="/srv/nfs", growth_bytes_per_second=20e6),
        vm_sample("hv1", 3, "block_space", seconds, pool="/srv/nfs", growth_bytes_per_second=2e6),
        vm_sample("hv1", 4, "block_space", seconds, pool="/var", growth_bytes_per_second=1e6),
    ]
    return records


def vm_state(host: str, vm: int, *, running: bool) -> tuple[str, Record]:
    """Return the key and the record of a VM's state on a host."""
    source = Vm(host, f"vm-{vm}", f"name-{vm}")
    data = {"running": running, "run_state": "running" if running else "postmigrate", "monitor_state": "up"}
    return f"/hosts/{host}/state/vms/{vm}", Record("qemu.state.vm", source, data, START_SECONDS * 10**9)


def fleet_changes() -> list[tuple[str, Record | None]]:
    """Return the states of three VMs: one has moved from hv0 to hv1 with an alert, one is still on both hosts, and one is gone."""
    alert = Record("qemu.state.alert", Vm("hv1", "vm-1", "name-1"), {"alert": "disk_full"}, START_SECONDS * 10**9)
    moved, *_ = vm_state("hv0", 1, running=True)
    gone, *_ = vm_state("hv0", 3, running=True)
    return [
        *(vm_state("hv0", vm, running=True) for vm in (1, 2, 3)),
        ("/hosts/hv1/state/alerts/f", alert),
        *(vm_state("hv1", vm, running=True) for vm in (1, 2)),
        *(vm_state("hv0", vm, running=False) for vm in (1, 2)),
        (moved, None),
        (gone, None),
    ]


async def test_the_shipped_jobs_report_the_fleet(stream: Stream) -> None:
    await stream.send_states(fleet_changes())
    samples = [sample for seconds in range(0, 190, 10) for sample in disk_counters(seconds)]
    samples += [sample for seconds in range(0, 190, 30) for sample in pools_and_growth(seconds)]
    await stream.send("qemu.samples", sorted(samples, key=lambda sample: sample.time_ns))
    beats = [("hv1", 0, 240), ("hv2", 0, 90), ("hv3", 0, 120)]
    lives = [life(host, "heartbeat", seconds) for host, begin, end in beats for seconds in range(begin, end, 30)]
    lives += [life("hv3", "stopping", 125), life("last", "heartbeat", 205)]
    await stream.send("qemu.events", sorted(lives, key=lambda change: change.time_ns))

    await stream.wait_for_results("fleet.silent_hosts", 1)
    later = [life("hv2", "started", 240), life("hv1", "heartbeat", 270), life("hv1", "heartbeat", 300)]
    await stream.send("qemu.events", later)
    results = await stream.wait_for_results("fleet.silent_hosts", 3)
    # Flink keeps the order of one host's results, not that of several hosts.
    assert [result for result in results if result[0] == "hv2"] == [
        ("hv2", {"host": "hv2", "last_heartbeat": "2026-11-25 10:01:00Z"}),
        ("hv2", None),
    ]
    assert [result for result in results if result[0] != "hv2"] == [
        ("last", {"host": "last", "last_heartbeat": "2026-11-25 10:03:25Z"})
    ]

    await stream.send_ticks((310, 400, 500))  # no host sends anything
    assert sorted((await stream.wait_for_results("fleet.silent_hosts", 5))[3:]) == [
        ("hv1", {"host": "hv1", "last_heartbeat": "2026-11-25 10:05:00Z"}),
        ("hv2", {"host": "hv2", "last_heartbeat": "2026-11-25 10:04:00Z"}),
    ]

    rows = [row for _, row in await stream.wait_for_results("fleet.top_talkers", 20)]
    first_minute = {row["place"]: row for row in rows if row["minute_start"] == rows[0]["minute_start"]}
    assert [first_minute[place]["vmname"] for place in range(1, 11)] == [f"vm-{number}" for number in range(14, 4, -1)]
    assert first_minute[1]["bytes_per_second"] == pytest.approx(14 * MIB * 5 / 60)

    pools = [row for _, row in await stream.wait_for_results("fleet.filling_pools", 2)]
    assert {row["pool"] for row in pools} == {"/srv/nfs"}
    assert (pools[0]["hosts"], pools[0]["vms"], pools[0]["fastest_vm"]) == (2, 3, "vm-2")
    assert pools[0]["growth_bytes_per_second"] == pytest.approx(25e6)
    assert pools[0]["time_to_full_seconds"] == pytest.approx(40.0)

    def has_settled() -> bool:
        vms = stream.present("fleet.vms")
        return {key: (vm["host"], vm["firing_alerts"]) for key, vm in vms.items()} == {
            "vm-1": ("hv1", 1),
            "vm-2": ("hv1", 0),
        }

    await until(has_settled, RESULT_SECONDS)
