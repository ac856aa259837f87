"""Contention: the VMs that wait for a resource, beside the VMs that take most of it."""

from typing import Any

from agent.exposition.explain.cause_table import find_causes
from agent.exposition.explain.contended_resource_finder import MAX_VMS, ResourceContentionFinder
from agent.exposition.explain.evidence import Evidence
from agent.exposition.snapshot import Snapshot
from agent.model.family import Family, Sample
from agent.model.metrics.block import BLOCK
from agent.model.metrics.host_resources import HOST
from agent.model.metrics.storage_pool import BLOCK_STORAGE, POOL
from agent.model.metrics.vm_process_and_interfaces import CGROUP, PROCESS, VCPU
from agent.model.record import Vm
from tests.lab.snapshots import SECOND, status

NOW = 10_000
GIB, MIB = 1 << 30, 1 << 20


class SomeVms:
    """VMs whose last two polls are ten seconds apart."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()

    def vm(self, name: str) -> Vm:
        vm = Vm("hv1", f"uuid-{name}", name, f"/run/{name}.qmp")
        if not self.snapshot.is_vm_attached(vm):
            self.snapshot.update_monitor_status(status(vm, key=name))
        return vm

    def rates(self, name: str, family: Family, labels: tuple[str, ...] = (), /, *, at: int = NOW, **rates: Any) -> None:
        """Put two polls whose counters rise at these rates per second; a name that ends in `bytes` alone is a gauge."""
        for time in (at - 12, at - 2):
            values = {
                f"{counter}_total": rate * (time - at + 12) for counter, rate in rates.items() if counter != "gauges"
            }
            sample = Sample(family, labels, values | rates.get("gauges", {}))
            self.snapshot.replace_samples(self.vm(name), (family,), [sample], time * SECOND)

    def cpu(self, name: str, used: float, waiting: float = 0.0) -> None:
        self.rates(name, VCPU, ("0",), cpu_seconds=used, run_delay_seconds=waiting)

    def disk(self, name: str, pool: str, operations: float, seconds: float) -> None:
        self.snapshot.replace_host_sample(Sample(POOL, (pool, "filesystem"), {"size_bytes": 9}))
        place = Sample(BLOCK_STORAGE, ("disk0", "storage"), {"pool": pool, "kind": "filesystem"})
        self.snapshot.replace_samples(self.vm(name), (BLOCK_STORAGE,), [place], NOW * SECOND)
        self.rates(
            name,
            BLOCK,
            ("disk0",),
            reads=operations,
            read_bytes=operations * 4096,
            read_seconds=operations * seconds,
            writes=0,
            write_bytes=0,
            write_seconds=0,
        )

    def contention(self) -> list[dict[str, Any]]:
        finder = ResourceContentionFinder(NOW, self.snapshot.host_samples.get(POOL.name, {}))
        for vm, view in self.snapshot.one_view_per_uuid():
            finder.add_vm(vm, view)
        return finder.contended_resources()

    def find_causes(self, name: str) -> list[str]:
        (view,) = [view for vm, view in self.snapshot.one_view_per_uuid() if vm.name == name]
        sample = Sample(HOST, (), {"online_cpus": 4, "contention": self.contention()})
        self.snapshot.replace_host_sample(sample, NOW)
        return [
            cause["sentence"]
            for cause in find_causes(Evidence.from_samples(self.snapshot, view, (), NOW))
            if cause["cause"] == "neighbours"
        ]


def names(vms: list[dict[str, Any]]) -> list[str]:
    return [vm["vm"] for vm in vms]


def test_vms_that_wait_for_a_cpu_are_beside_those_that_take_most() -> None:
    vms = SomeVms()
    vms.cpu("web-1", used=0.2, waiting=0.6)
    vms.cpu("web-2", used=0.5, waiting=0.9)
    vms.cpu("batch", used=3.0)
    (found,) = vms.contention()
    assert (found["resource"], found["waiting_vms"], names(found["waiting"])) == ("cpu", 2, ["web-2", "web-1"])
    assert names(found["taking"]) == ["batch", "web-2", "web-1"]
    assert round(found["total"]["cpus"], 6) == 3.7
    assert found["sentence"] == (
        "2 VMs wait for a CPU of the host: web-2 (0.9 s in each second), web-1 (0.6 s in each second). "
        "The VMs that take most: batch (3 CPUs), web-2 (0.5 CPUs), web-1 (0.2 CPUs)."
    )


def test_all_threads_of_a_process_count_as_taken() -> None:
    vms = SomeVms()
    vms.cpu("web-1", used=0.2, waiting=0.6)
    vms.cpu("router", used=0.1)
    vms.rates("router", PROCESS, user_seconds=0.3, system_seconds=1.2)
    (found,) = vms.contention()
    assert names(found["taking"]) == ["router", "web-1"]
    assert round(found["taking"][0]["cpus"], 6) == 1.5


def test_a_vm_that_its_own_quota_stops_does_not_wait_for_others() -> None:
    vms = SomeVms()
    vms.cpu("web-1", used=0.2, waiting=0.6)
    vms.rates("web-1", CGROUP, cpu_periods=10, cpu_throttled_periods=6, cpu_throttled_seconds=0.9)
    vms.cpu("batch", used=3.0)
    assert vms.contention() == []
    assert vms.find_causes("web-1") == []


def test_only_vms_on_the_same_pool_take_what_a_slow_disk_waits_for() -> None:
    vms = SomeVms()
    vms.disk("db", "/slow", operations=10, seconds=0.2)
    vms.disk("backup", "/slow", operations=900, seconds=0.001)
    vms.disk("other", "/fast", operations=9000, seconds=0.001)
    (found,) = vms.contention()
    assert (found["resource"], found["pool"], names(found["waiting"])) == ("disk", "/slow", ["db"])
    assert names(found["taking"]) == ["backup", "db"]
    assert "waits for the storage /slow: db (200 ms for a request)" in found["sentence"]
    assert "backup (900 operations/s, 3.52 MiB/s)" in found["sentence"]
    assert vms.find_causes("db") == [
        "Other VMs take 99 % of the requests to /slow while this VM waits for them: backup (900 operations/s, 3.52 MiB/s)."
    ]
    assert vms.find_causes("backup") == vms.find_causes("other") == []


def test_swapped_memory_is_beside_the_largest_vms() -> None:
    vms = SomeVms()
    for name, size, faults in (("big", 8 * GIB, 0.0), ("small", GIB, 200.0)):
        vms.rates(name, PROCESS, gauges={"resident_bytes": size, "swap_bytes": GIB}, major_faults=faults)
    (found,) = vms.contention()
    assert (found["resource"], names(found["waiting"]), names(found["taking"])) == (
        "memory",
        ["small"],
        ["big", "small"],
    )
    assert "small (200 pages/s)" in found["sentence"]
    assert "big (8 GiB)" in found["sentence"]


def test_a_host_where_no_vm_waits_has_no_contention() -> None:
    vms = SomeVms()
    vms.cpu("batch", used=3.9, waiting=0.05)
    vms.disk("db", "/data", operations=5000, seconds=0.001)
    assert vms.contention() == []


def test_old_rates_do_not_count() -> None:
    vms = SomeVms()
    vms.rates("web-1", VCPU, ("0",), at=NOW - 120, cpu_seconds=0.2, run_delay_seconds=0.9)
    vms.cpu("batch", used=3.0)
    assert vms.contention() == []


def test_the_lists_are_bounded_and_the_count_is_not() -> None:
    vms = SomeVms()
    for number in range(3 * MAX_VMS):
        vms.cpu(f"vm{number:02}", used=0.1, waiting=0.5)
    (found,) = vms.contention()
    assert (found["waiting_vms"], len(found["waiting"]), len(found["taking"])) == (3 * MAX_VMS, MAX_VMS, MAX_VMS)


def test_neighbours_that_take_less_than_half_of_the_cpus_are_not_the_cause() -> None:
    vms = SomeVms()
    vms.cpu("web-1", used=0.2, waiting=0.6)
    vms.cpu("batch", used=1.9)
    assert vms.find_causes("web-1") == []
    vms.cpu("batch-2", used=0.3)
    (sentence,) = vms.find_causes("web-1")
    assert "55 % of the host's CPUs while this VM waits for them: batch (1.9 CPUs), batch-2 (0.3 CPUs)" in sentence
