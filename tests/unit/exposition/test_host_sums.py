"""Sums over the VMs of a host: what counts, and what is unknown."""

from dataclasses import replace
from typing import Any

import pytest

from agent.exposition.host_sums import add_commitment_ratios, sum_vms
from agent.exposition.snapshot import Snapshot
from agent.model.metrics.memory import MEMORY
from agent.model.metrics.runstate import RUNSTATE
from agent.model.metrics.vm_process_and_interfaces import PROCESS, VCPU
from agent.model.record import Vm
from tests.lab.snapshots import put, status, vm

GIB = 1 << 30


@pytest.fixture
def snapshot() -> Snapshot:
    return Snapshot()


def attach(
    snapshot: Snapshot,
    number: int = 0,
    vcpus: int = 0,
    memory: dict[str, Any] | None = None,
    process: dict[str, Any] | None = None,
    monitor: str = "/run/vm.qmp",
    running: bool = True,  # noqa: FBT001, FBT002 - a case of a table
) -> Vm:
    added = replace(vm(number, f"vm{number}"), monitor=f"{monitor}{number}")
    snapshot.update_monitor_status(status(added, key=number))
    put(snapshot, added, RUNSTATE, ((), {"running": running}))
    put(snapshot, added, VCPU, *(((str(index),), {"cpu_seconds_total": 1.0}) for index in range(vcpus)))
    if memory is not None:
        put(snapshot, added, MEMORY, ((), memory))
    if process is not None:
        put(snapshot, added, PROCESS, ((), process))
    return added


def test_vcpus_and_memory_of_two_vms_are_added(snapshot: Snapshot) -> None:
    attach(snapshot, 0, 4, {"base_bytes": 2 * GIB}, {"hugetlb_bytes": GIB, "swap_bytes": 5})
    attach(snapshot, 1, 8, {"base_bytes": GIB, "plugged_bytes": GIB}, {"hugetlb_bytes": 0, "swap_bytes": 7})
    values = sum_vms(snapshot.one_view_per_uuid()) | {"online_cpus": 6, "memory_bytes": 8 * GIB}
    add_commitment_ratios(values)
    assert values == {
        "running_vms": 2,
        "unknown_vms": 0,
        "vcpus": 12,
        "guest_memory_bytes": 4 * GIB,
        "vm_hugetlb_bytes": GIB,
        "vm_swap_bytes": 12,
        "online_cpus": 6,
        "memory_bytes": 8 * GIB,
        "vcpu_commitment_ratio": 2,
        "memory_commitment_ratio": 0.5,
    }


def test_a_paused_vm_keeps_its_memory_and_takes_no_cpu(snapshot: Snapshot) -> None:
    attach(snapshot, 0, 4, {"base_bytes": GIB}, {}, running=False)
    sums = sum_vms(snapshot.one_view_per_uuid())
    assert (sums["running_vms"], sums["unknown_vms"], sums["vcpus"], sums["guest_memory_bytes"]) == (0, 0, 0, GIB)


def test_a_vm_with_unknown_vcpus_makes_the_sum_a_lower_bound(snapshot: Snapshot) -> None:
    attach(snapshot, 0, 4, {"base_bytes": GIB})
    attach(snapshot, 1, 0, {"base_bytes": GIB})
    sums = sum_vms(snapshot.one_view_per_uuid())
    assert (sums["vcpus"], sums["unknown_vms"], sums["guest_memory_bytes"]) == (4, 1, 2 * GIB)


def test_a_sum_of_unknown_parts_is_absent_and_has_no_ratio(snapshot: Snapshot) -> None:
    attach(snapshot, 0)
    values = sum_vms(snapshot.one_view_per_uuid()) | {"online_cpus": 4, "memory_bytes": GIB}
    add_commitment_ratios(values)
    assert values == {"running_vms": 1, "unknown_vms": 1, "online_cpus": 4, "memory_bytes": GIB}


def test_memory_of_processes_that_cannot_be_read_is_absent_and_not_zero(snapshot: Snapshot) -> None:
    attach(snapshot, 0, 4, {"base_bytes": GIB})
    sums = sum_vms(snapshot.one_view_per_uuid())
    assert (sums["unknown_vms"], sums["guest_memory_bytes"]) == (0, GIB)
    assert not sums.keys() & {"vm_hugetlb_bytes", "vm_swap_bytes"}


def test_a_vm_on_tcp_counts_only_if_its_process_is_on_this_host(snapshot: Snapshot) -> None:
    attach(snapshot, 0, 0, {"base_bytes": GIB}, monitor="tcp:other:444")
    assert sum_vms(snapshot.one_view_per_uuid()) == sum_vms(()), "the VM may run on another host"
    attach(snapshot, 1, 2, {"base_bytes": 2 * GIB}, {"pid": 7}, monitor="tcp:localhost:444")
    sums = sum_vms(snapshot.one_view_per_uuid())
    assert (sums["running_vms"], sums["vcpus"], sums["unknown_vms"], sums["guest_memory_bytes"]) == (1, 2, 0, 2 * GIB)


def test_a_host_without_vms_has_sums_of_zero(snapshot: Snapshot) -> None:
    values = sum_vms(snapshot.one_view_per_uuid()) | {"online_cpus": 4}
    add_commitment_ratios(values)
    assert (values["vcpus"], values["guest_memory_bytes"], values["vcpu_commitment_ratio"]) == (0, 0, 0)


def test_a_host_of_unknown_size_has_no_ratio(snapshot: Snapshot) -> None:
    attach(snapshot, 0, 4, {"base_bytes": GIB})
    values = sum_vms(snapshot.one_view_per_uuid()) | {"memory_bytes": 0}
    add_commitment_ratios(values)
    assert not values.keys() & {"vcpu_commitment_ratio", "memory_commitment_ratio"}
