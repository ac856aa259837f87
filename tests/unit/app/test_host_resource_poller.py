"""The poller of the host: records, series and what happens if the host's files cannot be read."""

import threading
from typing import Any

import pytest

from agent.app.host_resource_poller import HostResourcePoller
from agent.exposition.prometheus import render_metrics
from agent.exposition.snapshot import Snapshot
from agent.host.host_resources import HostReading
from agent.http.overview import host_resources_json
from agent.model.metrics.memory import MEMORY
from agent.model.metrics.runstate import RUNSTATE
from agent.model.metrics.vm_process_and_interfaces import VCPU
from agent.model.record import Record, RecordEncoder
from agent.schemas.record import record_schema
from tests.lab.record_checks import validate_record, validator
from tests.lab.snapshots import put, status, vm

GIB = 1 << 30
FILES: dict[str, Any] = {"memory_bytes": 4 * GIB, "online_cpus": 2, "load_1m": 0.5}
POOLS = {"2M": {"pool_bytes": 8, "free_bytes": 4, "reserved_bytes": 0}}


class Host:
    """A host whose files the test chooses, and the records that its poller publishes."""

    def __init__(self, snapshot: Snapshot | None = None, read_seconds: float = 30.0) -> None:
        self.reading: HostReading | Exception = HostReading(FILES, POOLS)
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.reads = 0
        self.records: list[Record] = []
        self.snapshot = snapshot or Snapshot()
        self.poller = HostResourcePoller(
            "hv7", self._publish, self.snapshot, read=self._read, read_seconds=read_seconds
        )

    def _publish(self, record: Record) -> str:
        self.records.append(record)
        return ""

    def _read(self) -> HostReading:
        self.reads += 1
        self.may_answer.wait(60)
        if isinstance(self.reading, Exception):
            raise self.reading
        return self.reading

    def attach(self) -> None:
        self.snapshot.update_monitor_status(status(vm()))
        put(self.snapshot, vm(), RUNSTATE, ((), {"running": True}))
        put(self.snapshot, vm(), VCPU, *(((str(index),), {"cpu_seconds_total": 1.0}) for index in range(6)))
        put(self.snapshot, vm(), MEMORY, ((), {"base_bytes": 6 * GIB}))


async def test_a_record_and_series_have_the_files_and_the_sums() -> None:
    host = Host()
    host.attach()
    await host.poller.poll()
    own, pool = host.records
    assert (own.type, own.vm.uuid, pool.type, pool.subject) == (
        "qemu.sample.host",
        "",
        "qemu.sample.host_hugepages",
        "2M",
    )
    assert own.data == FILES | {
        "running_vms": 1,
        "unknown_vms": 0,
        "vcpus": 6,
        "guest_memory_bytes": 6 * GIB,
        "vcpu_commitment_ratio": 3,
        "memory_commitment_ratio": 1.5,
    }
    series = render_metrics(host.snapshot)
    assert "\nqemu_host_vcpu_commitment_ratio{} 3.0\n" in series
    assert '\nqemu_host_hugepages_free_bytes{size="2M"} 4\n' in series
    assert "qemu_host_ksm_saved_bytes" not in series
    schema, encode = validator(record_schema()), RecordEncoder()
    for record in host.records:
        validate_record(encode(record).body.decode(), schema)


async def test_a_counter_has_a_rate_after_two_reads() -> None:
    host = Host()
    for total in (5.0, 8.0):
        host.reading = HostReading(FILES | {"pressure_cpu_waiting_seconds_total": total}, {})
        await host.poller.poll()
        host.snapshot.host_polls.time_ns -= 10_000_000_000 if total == 5.0 else 0
    assert host_resources_json(host.snapshot)["waiting_for_cpu_ratio"] == pytest.approx(0.3, rel=0.2)
    assert "waiting_for_io_ratio" not in host_resources_json(host.snapshot)


async def test_a_pool_of_huge_pages_that_is_gone_has_no_series() -> None:
    host = Host()
    await host.poller.poll()
    host.reading = HostReading(FILES, {})
    await host.poller.poll()
    assert "qemu_host_hugepages" not in render_metrics(host.snapshot)
    assert "qemu_host_online_cpus" in render_metrics(host.snapshot)


async def test_a_read_that_hangs_leaves_no_old_values_and_starts_no_second_read() -> None:
    quick = Host()
    await quick.poller.poll()
    hung = Host(quick.snapshot, read_seconds=0.01)
    hung.may_answer.clear()
    for _ in range(3):
        await hung.poller.poll()
    assert (hung.reads, hung.records) == (1, [])
    assert "qemu_host" not in render_metrics(hung.snapshot)
    assert host_resources_json(hung.snapshot) == {}
    hung.may_answer.set()


async def test_an_unexpected_error_is_logged_once_and_the_next_read_works(caplog: pytest.LogCaptureFixture) -> None:
    host = Host()
    host.reading = ValueError("x")
    await host.poller.poll()
    await host.poller.poll()
    assert [record.getMessage() for record in caplog.records] == [
        "cannot read the CPU and memory statistics of the host: ValueError: x"
    ]
    host.reading = HostReading(FILES, {})
    await host.poller.poll()
    assert host.records[0].data["online_cpus"] == 2
