"""Explanations: a provoked cause is the first one, with its figures, and healthy VMs have none."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.exposition.explain.cause_table import CAUSES, MAX_FINDINGS, OTHER_ALERT, find_causes
from agent.exposition.explain.evidence import Evidence
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK, BLOCK_DEVICE
from agent.model.metrics.block_stall import BLOCK_STALL
from agent.model.metrics.guest import GUEST_FILESYSTEM, GUEST_FREEZE
from agent.model.metrics.host_resources import HOST
from agent.model.metrics.jobs import JOB
from agent.model.metrics.memory import BALLOON, DUMP, GUEST_MEMORY, MEMORY, VCPU_DIRTY
from agent.model.metrics.migration import MIGRATION
from agent.model.metrics.runstate import RUNSTATE
from agent.model.metrics.storage_pool import BLOCK_STORAGE, POOL
from agent.model.metrics.vm_process_and_interfaces import CGROUP, IOTHREAD, PROCESS, VCPU
from agent.session.shared_types import MonitorState
from tests.lab.snapshots import OneVmSource, status, vm

NOW = 10_000.0
GIB, MIB = 1 << 30, 1 << 20
Values = Mapping[str, Any]


class OneVm(OneVmSource):
    """A VM whose last two polls are ten seconds apart, and its firing alerts."""

    def __init__(self) -> None:
        super().__init__()
        self.alerts: list[dict[str, Any]] = []
        running = {"status": "running", "running": True, "since_timestamp_seconds": NOW - 900}
        self.put(RUNSTATE, NOW - 100, ((), running))

    def rates(self, family: Any, labels: tuple[str, ...] = (), gauges: Values | None = None, **rates: float) -> None:
        """Put two polls of one subject whose counters rise at these rates per second."""
        for at in (NOW - 12, NOW - 2):
            counters = {f"{name}_total": 1000.0 + rate * (at - NOW + 12) for name, rate in rates.items()}
            self.put(family, at, (labels, counters | dict(gauges or {})))

    def alert(self, name: str, subject: str = "", severity: str = "critical", seconds: float = 60) -> None:
        row = {"alert": name, "subject": subject, "severity": severity, "since": NOW - seconds, "uuid": vm().uuid}
        self.alerts.append(row)

    def pool(self, **values: Any) -> None:
        self.put(BLOCK_STORAGE, NOW - 5, (("disk0", "storage"), {"pool": "/pool", "kind": "filesystem"}))
        self.snapshot.replace_host_sample(Sample(POOL, ("/pool", "filesystem"), values))

    def find_causes(self, now: float = NOW) -> list[dict[str, Any]]:
        ((_, view),) = self.snapshot.one_view_per_uuid()
        return find_causes(Evidence.from_samples(self.snapshot, view, self.alerts, now))


def stalled_io(machine: OneVm) -> None:
    stalled = {
        "state": "stalled",
        "seconds": 40.0,
        "signs": "queues, threads",
        "waiting_threads": 2,
        "requests_in_flight": 3,
    }
    machine.put(BLOCK_STALL, NOW - 2, (("disk0",), stalled), (("disk1",), {"state": "moving", "seconds": 0.0}))


def paused(machine: OneVm) -> None:
    machine.put(RUNSTATE, NOW - 3, ((), {"status": "paused", "running": False, "since_timestamp_seconds": NOW - 180}))


def io_error(machine: OneVm) -> None:
    stopped = {"status": "io-error", "running": False, "since_timestamp_seconds": NOW - 30}
    machine.put(RUNSTATE, NOW - 3, ((), stopped))
    machine.put(BLOCK_DEVICE, NOW - 3, (("disk0",), {"io_status": "ok"}), (("disk1",), {"io_status": "nospace"}))
    machine.alert("disk_full", "disk1")


def stopped_process(machine: OneVm) -> None:
    machine.put(PROCESS, NOW - 3, ((), {"state": "stopped"}))
    machine.snapshot.update_monitor_status(status(vm(), MonitorState.STALLED))


def stalled(machine: OneVm) -> None:
    machine.snapshot.update_monitor_status(status(vm(), MonitorState.STALLED, reason="no reply to query-blockstats"))


def hung_pool(machine: OneVm) -> None:
    machine.pool(responsive=False, error="statvfs has not returned for 12 s")
    stalled(machine)
    machine.alert("pool_unresponsive", "/pool", "error")


def full_pool(machine: OneVm) -> None:
    machine.pool(responsive=True, free_bytes=4 * MIB, size_bytes=10 * GIB)


def frozen(machine: OneVm) -> None:
    machine.put(GUEST_FREEZE, NOW - 5, ((), {"frozen": True}))


def oom(machine: OneVm) -> None:
    machine.put(GUEST_MEMORY, NOW - 5, ((), {"oom_kills_total": 3, "available_bytes": GIB, "total_bytes": 4 * GIB}))
    machine.alert("guest_oom", severity="error", seconds=600)


def full_filesystem(machine: OneVm) -> None:
    machine.put(
        GUEST_FILESYSTEM, NOW - 40, (("/var", "vda1", "ext4"), {"used_bytes": 99 * MIB, "size_bytes": 100 * MIB})
    )


def cpu_quota(machine: OneVm) -> None:
    machine.rates(CGROUP, gauges={"path": "/vm1"}, cpu_periods=10, cpu_throttled_periods=6, cpu_throttled_seconds=0.9)
    machine.rates(VCPU, ("0",), cpu_seconds=0.2, run_delay_seconds=0.7)


def throttled(machine: OneVm) -> None:
    limits = {"throttle_bytes_per_second": 0, "throttle_write_bytes_per_second": MIB, "throttle_group": "disk0"}
    machine.put(BLOCK_DEVICE, NOW - 900, (("disk0",), limits))
    busy = {"reads": 0.0, "writes": 16.0, "read_bytes": 0.0, "write_bytes": 0.98 * MIB}
    machine.rates(BLOCK, ("disk0",), None, read_seconds=0, write_seconds=32.0, **busy)


def starved(machine: OneVm) -> None:
    machine.rates(VCPU, ("0",), cpu_seconds=0.5, run_delay_seconds=0.5)


def swapped(machine: OneVm) -> None:
    machine.rates(PROCESS, gauges={"swap_bytes": GIB, "resident_bytes": GIB, "state": "sleeping"}, major_faults=200)


def ballooned(machine: OneVm) -> None:
    machine.put(MEMORY, NOW - 900, ((), {"base_bytes": 4 * GIB}))
    machine.put(BALLOON, NOW - 900, ((), {"actual_bytes": GIB}))
    machine.put(GUEST_MEMORY, NOW - 5, ((), {"available_bytes": 20 * MIB, "total_bytes": GIB}))


def memory_limit(machine: OneVm) -> None:
    gauges = {"path": "/vm1", "memory_bytes": GIB, "memory_limit_bytes": GIB}
    machine.rates(CGROUP, gauges=gauges, pressure_memory_stalled_seconds=0.4)


def swapping_guest(machine: OneVm) -> None:
    machine.rates(GUEST_MEMORY, swap_in_bytes=2 * MIB, swap_out_bytes=MIB)


def limited_dirty_rate(machine: OneVm) -> None:
    rates = {"limit_bytes_per_second": 10 * MIB, "current_bytes_per_second": 11 * MIB}
    machine.put(VCPU_DIRTY, NOW - 5, (("0",), rates))


def migration(machine: OneVm) -> None:
    values = {"status": "active", "ram_remaining_bytes": GIB, "ram_bytes": 4 * GIB, "cpu_throttle_ratio": 0.4}
    pages = {"ram_dirty_pages_per_second": 25_600, "ram_page_bytes": 4096, "throughput_bytes_per_second": 80 * MIB}
    machine.put(MIGRATION, NOW - 1, ((), values | pages))


def busy_neighbours(machine: OneVm) -> None:
    starved(machine)
    taking = [{"uuid": f"other-{cpus}", "vm": name, "cpus": cpus} for name, cpus in (("batch-1", 2.5), ("web-2", 0.5))]
    taking.append({"uuid": vm().uuid, "vm": "vm1", "cpus": 0.5})
    found = {"resource": "cpu", "pool": "", "kind": "", "total": {"cpus": 3.5}, "taking": taking, "waiting": []}
    machine.snapshot.replace_host_sample(Sample(HOST, (), {"online_cpus": 4, "contention": [found]}))


def backup(machine: OneVm) -> None:
    running = {"status": "running", "progress_ratio": 0.3, "progress_per_second": 20 * MIB, "paused": False}
    machine.put(JOB, NOW - 1, (("job0", "backup"), running), (("old", "mirror"), {"status": "concluded"}))


def slow_disk(machine: OneVm) -> None:
    machine.rates(BLOCK, ("disk0",), reads=10, read_seconds=1.2, writes=0, write_seconds=0)


def long_queue(machine: OneVm) -> None:
    machine.rates(BLOCK, ("disk0",), reads=1000, read_seconds=30.0, writes=0, write_seconds=0)


def busy_iothread(machine: OneVm) -> None:
    machine.rates(IOTHREAD, ("io0",), cpu_seconds=0.97)


def dump(machine: OneVm) -> None:
    machine.put(DUMP, NOW - 1, ((), {"status": "active", "written_bytes": MIB, "size_bytes": GIB}))


def busy_guest(machine: OneVm) -> None:
    machine.rates(VCPU, ("0",), cpu_seconds=0.99, run_delay_seconds=0.01)


PROVOKED: dict[str, tuple[Callable[[OneVm], None], str]] = {
    "process_stopped": (stopped_process, "SIGSTOP"),
    "storage_unresponsive": (hung_pool, "/pool (filesystem) of disk0 does not answer: statvfs"),
    "monitor_stalled": (stalled, "no reply to query-blockstats"),
    "not_running": (paused, "for 3 min or longer (`paused`): a client of its monitor"),
    "io_stalled": (
        stalled_io,
        "completed none for 40 s (threads of QEMU that wait in the kernel for storage: 2; requests in its virtio queues: 3).",
    ),
    "guest_frozen": (frozen, "every write in the guest waits"),
    "pool_full": (full_pool, "4 MiB of 10 GiB are free"),
    "out_of_memory": (oom, "10 min ago; 3 in all"),
    "guest_filesystem_full": (
        full_filesystem,
        "/var in the guest is full: 99 MiB of 100 MiB are used (99 %), as of 40 s ago",
    ),
    "cpu_quota": (cpu_quota, "60 % of the periods, in sum 0.9 s in each second"),
    "disk_throttled": (throttled, "1004 KiB/s of 1 MiB/s that the limit of write bytes permits (98 %)"),
    "swapped": (swapped, "swapped out 1 GiB of the VM's memory (50 %)"),
    "memory_limited": (memory_limit, "wait for memory 40 % of the time; it uses 1 GiB of 1 GiB"),
    "guest_memory_low": (ballooned, "20 MiB of 1 GiB memory left (2 %), while its balloon holds 3 GiB"),
    "guest_swapping": (swapping_guest, "3 MiB/s"),
    "dirty_limited": (limited_dirty_rate, "vCPU 0: it dirties 11 MiB/s, and its limit is 10 MiB/s"),
    "migration_running": (
        migration,
        "1 GiB of 4 GiB are left, the guest dirties 100 MiB/s, 80 MiB/s are sent, QEMU slows the vCPUs by 40 %",
    ),
    "neighbours": (
        busy_neighbours,
        "Other VMs take 75 % of the host's CPUs while this VM waits for them: batch-1 (2.5 CPUs), web-2",
    ),
    "cpu_waiting": (starved, "0.5 s in each second, 50 % of the time"),
    "job_running": (backup, "A backup job (job0) is running, 30 % done, 20 MiB/s"),
    "disk_slow": (slow_disk, "A read of disk0 takes 120 ms on average, at 10 reads/s"),
    "disk_queue": (long_queue, "disk0 has 30 requests in flight on average, and completes 1000 requests/s"),
    "thread_busy": (busy_iothread, "io0 uses 97 %"),
    "dump_running": (dump, "1 MiB of 1 GiB are written"),
    "guest_cpu_busy": (busy_guest, "0.99 of its 1 vCPUs"),
}


@pytest.mark.parametrize("cause", PROVOKED)
def test_a_provoked_cause_is_named_first_with_its_figures(cause: str) -> None:
    machine = OneVm()
    provoke, figures = PROVOKED[cause]
    provoke(machine)
    first = machine.find_causes()[0]
    assert first["cause"] == cause
    assert figures in first["sentence"]


def test_every_row_of_the_table_is_provoked_above() -> None:
    assert [cause.name for cause in CAUSES] == list(PROVOKED)


def test_an_error_that_stopped_the_guest_names_its_disk() -> None:
    machine = OneVm()
    io_error(machine)
    (cause,) = machine.find_causes()
    assert (cause["cause"], cause["subject"], cause["figures"]["io_status"]) == ("not_running", "disk1", "nospace")
    assert "a write found no space on disk1" in cause["sentence"]


def test_latency_is_compared_with_the_own_last_hour() -> None:
    machine = OneVm()
    reads, seconds = 0, 0.0
    for step in range(90):
        at = NOW - 900 + 10 * step
        per_read = 0.012 if at >= NOW - 30 else 0.001
        reads, seconds = reads + 100, seconds + 100 * per_read
        machine.put(
            BLOCK,
            at,
            (
                ("disk0",),
                {"reads_total": reads, "writes_total": 0, "read_seconds_total": seconds, "write_seconds_total": 0.0},
            ),
        )
    (slow,) = machine.find_causes()
    assert (slow["cause"], slow["subject"]) == ("disk_slow", "disk0")
    assert "takes 12 ms on average, 12 times the 1 ms of the last hour" in slow["sentence"]
    assert slow["figures"]["usual_seconds"] == pytest.approx(0.001)


def test_disks_of_a_throttle_group_share_its_limit() -> None:
    machine = OneVm()
    limits = {"throttle_operations_per_second": 100, "throttle_group": "all"}
    machine.put(BLOCK_DEVICE, NOW - 900, (("disk0",), limits), (("disk1",), limits))
    for at, count in ((NOW - 12, 0), (NOW - 2, 480)):
        counters = {"reads_total": count, "writes_total": 0, "read_bytes_total": 0, "write_bytes_total": 0}
        machine.put(BLOCK, at, (("disk0",), counters), (("disk1",), counters))
    (cause,) = machine.find_causes()
    assert cause["figures"]["devices"] == ["disk0", "disk1"]
    assert "96 operations/s of 100 operations/s" in cause["sentence"]
    assert "shared by throttle group all" in cause["sentence"]


def test_a_dump_of_unknown_size_has_no_figures() -> None:
    machine = OneVm()
    machine.put(DUMP, NOW - 1, ((), {"status": "active"}))
    assert [(cause["cause"], cause["figures"]) for cause in machine.find_causes()] == [("dump_running", {})]


def test_rates_of_old_polls_explain_nothing() -> None:
    machine = OneVm()
    starved(machine)
    assert machine.find_causes(NOW + 30)
    assert machine.find_causes(NOW + 61) == []


def test_a_serious_alert_without_a_row_is_reported_last_and_others_are_not_repeated() -> None:
    machine = OneVm()
    paused(machine)
    machine.alert("memory_failure", severity="error", seconds=7200)
    machine.alert("shutdown_stuck", severity="error")
    machine.alert("snapshot_old", "disk0", severity="warning")
    causes = machine.find_causes()
    assert [cause["cause"] for cause in causes] == ["not_running", OTHER_ALERT]
    assert causes[1]["sentence"] == "The alert memory_failure has been firing for 2 h."


def test_a_qemu_with_many_jobs_has_few_findings() -> None:
    machine = OneVm()
    machine.put(JOB, NOW - 1, *(((f"job{i}", "backup"), {"status": "running"}) for i in range(100)))
    assert len(machine.find_causes()) == MAX_FINDINGS


def unknown(_: OneVm) -> None:
    """Leave a VM without any sample but its run state."""


def idle(machine: OneVm) -> None:
    machine.rates(VCPU, ("0",), cpu_seconds=0.01, run_delay_seconds=0.001)
    machine.rates(BLOCK, ("disk0",), reads=0, read_seconds=0, writes=0.1, write_seconds=0.02)


def writer(machine: OneVm) -> None:
    limits = {"throttle_write_bytes_per_second": 100 * MIB, "throttle_bytes_per_second": 0}
    machine.put(BLOCK_DEVICE, NOW - 900, (("disk0",), limits))
    machine.rates(
        BLOCK, ("disk0",), write_bytes=50 * MIB, read_bytes=0, reads=0, read_seconds=0, writes=800, write_seconds=4
    )


def deep_queue_on_fast_storage(machine: OneVm) -> None:
    machine.rates(BLOCK, ("disk0",), reads=200_000, read_seconds=40, writes=0, write_seconds=0)


def waiting_briefly(machine: OneVm) -> None:
    machine.put(PROCESS, NOW - 2, ((), {"state": "disk-sleep"}))
    machine.put(BLOCK, NOW - 2, (("disk0",), {"idle_seconds": 0.2}), (("disk1",), {"idle_seconds": 900.0}))


def busy_with_reserve(machine: OneVm) -> None:
    machine.rates(VCPU, ("0",), cpu_seconds=0.8, run_delay_seconds=0.05)


def inflated_balloon(machine: OneVm) -> None:
    machine.put(MEMORY, NOW - 900, ((), {"base_bytes": 4 * GIB}))
    machine.put(BALLOON, NOW - 900, ((), {"actual_bytes": 2 * GIB}))
    machine.put(GUEST_MEMORY, NOW - 5, ((), {"available_bytes": GIB, "total_bytes": 2 * GIB, "oom_kills_total": 5}))


def rarely_faulting(machine: OneVm) -> None:
    machine.rates(PROCESS, gauges={"swap_bytes": GIB, "resident_bytes": GIB, "state": "sleeping"}, major_faults=0.1)


def quota_with_reserve(machine: OneVm) -> None:
    machine.rates(CGROUP, cpu_periods=10, cpu_throttled_periods=0.5, cpu_throttled_seconds=0.01)


def filled(machine: OneVm) -> None:
    machine.pool(responsive=True, free_bytes=500 * GIB, size_bytes=50_000 * GIB)
    machine.put(GUEST_FILESYSTEM, NOW - 40, (("/", "vda1", "ext4"), {"used_bytes": 90, "size_bytes": 100}))


def after_migration_and_jobs(machine: OneVm) -> None:
    machine.put(MIGRATION, NOW - 1, ((), {"status": "completed", "cpu_throttle_ratio": 0.2}))
    machine.put(JOB, NOW - 1, (("job0", "mirror"), {"status": "concluded"}), (("b", "backup"), {"paused": True}))
    machine.put(GUEST_FREEZE, NOW - 1, ((), {"frozen": False}))


HEALTHY = (
    *(
        unknown,
        idle,
        writer,
        deep_queue_on_fast_storage,
        busy_with_reserve,
        waiting_briefly,
        inflated_balloon,
        rarely_faulting,
    ),
    *(quota_with_reserve, filled, after_migration_and_jobs),
)


@pytest.mark.parametrize("make", HEALTHY, ids=lambda make: make.__name__)
def test_a_healthy_vm_has_no_cause(make: Callable[[OneVm], None]) -> None:
    machine = OneVm()
    make(machine)
    assert machine.find_causes() == []


def test_the_documentation_has_every_cause_in_order() -> None:
    page = (Path(__file__).parents[3] / "docs/reference/explain.md").read_text()
    assert re.findall(r"^\| `(\w+)` \| [^T]", page.partition("## Causes")[2], re.MULTILINE) == [*PROVOKED, OTHER_ALERT]
