"""Finds the VMs that wait for a resource of the host, and the VMs that use most of the resource. Pure.

A VM waits if `explain` finds steal, swapped-out memory or slow disks. For disks, the resource is a storage pool. The network is not
included, because the kernel does not count how long a VM waits for the network.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from agent.common.durations_and_sizes import format_bytes
from agent.exposition.explain.cpu_and_memory import find_cpu_quota, find_cpu_waiting, find_swapped
from agent.exposition.explain.disks import slow_disks_by_pool
from agent.exposition.explain.evidence import Evidence
from agent.exposition.explain.text_format import format_latency_text, format_list
from agent.exposition.rates import LabelValues, ValuesBySubject
from agent.exposition.snapshot import VmView
from agent.model.family import FieldValues
from agent.model.metrics.block import BLOCK
from agent.model.metrics.vm_process_and_interfaces import PROCESS, VCPU
from agent.model.record import Vm, sanitize

MAX_VMS = 5
"""Maximum number of VMs in each list."""
MAX_POOLS = 8
"""The result has at most `MAX_POOLS + 2` resources: room for the CPU, the memory and this number of pools."""
MAX_NAME = 64
"""Maximum length of a VM's name in a list, in characters."""


class HostResource(StrEnum):
    """A resource that VMs share."""

    CPU = "cpu"
    MEMORY = "memory"
    DISK = "disk"


@dataclass(slots=True)
class _Usage:
    """The VMs that wait for one resource, and the VMs that use the resource.

    Each dict describes a VM: its `uuid`, its name `vm`, and figures in base units. The result lists the VMs by the first figure.
    """

    waiting: list[dict[str, Any]] = field(default_factory=list)
    taking: list[dict[str, Any]] = field(default_factory=list)


class ResourceContentionFinder:
    """Collects what each VM uses and waits for, and returns the resources that VMs wait for."""

    def __init__(self, now: float, pools: ValuesBySubject) -> None:
        """Set up a finder.

        Args:
            now: the present time in seconds since the epoch.
            pools: the samples of the host's pools.
        """
        self._now = now
        self._pools = pools
        self._usage: dict[tuple[HostResource, LabelValues], _Usage] = {}

    def add_vm(self, vm: Vm, view: VmView) -> None:
        """Add the usage and the waits of a VM."""
        evidence = Evidence(view, self._now, self._pools)
        identity = {"uuid": vm.uuid, "vm": sanitize(vm.name, MAX_NAME)}
        for resource, pool, figures in _used_resources(evidence):
            self._usage_of(resource, pool).taking.append(identity | figures)
        for resource, pool, figures in _awaited_resources(evidence):
            self._usage_of(resource, pool).waiting.append(identity | figures)

    def _usage_of(self, resource: HostResource, pool: LabelValues) -> _Usage:
        return self._usage.setdefault((resource, pool), _Usage())

    def contended_resources(self) -> list[dict[str, Any]]:
        """Return each resource that VMs wait for, as JSON: `waiting` lists the VMs that wait, and `taking` the VMs that use most."""
        found = [(key, usage) for key, usage in self._usage.items() if usage.waiting and usage.taking]
        found.sort(key=lambda row: (list(HostResource).index(row[0][0]), -len(row[1].waiting)))
        return [_describe(resource, pool, usage) for (resource, pool), usage in found[: MAX_POOLS + 2]]


def _used_resources(evidence: Evidence) -> Iterator[tuple[HostResource, LabelValues, FieldValues]]:
    """Yield each resource that a VM uses, with figures: CPUs, bytes of memory, and the I/O rates on each pool."""
    cpus = _process_cpus(evidence)
    if cpus:
        yield HostResource.CPU, (), {"cpus": cpus}
    parts = [evidence.whole_vm_number(PROCESS, name) for name in ("resident_bytes", "hugetlb_bytes")]
    if known := [part for part in parts if part is not None]:
        yield HostResource.MEMORY, (), {"bytes": sum(known)}
    for pool, devices, _ in evidence.pools_of_disks():
        rates = [
            evidence.counter_rates(BLOCK, (device,), (f"{kind}_bytes_total", f"{kind}s_total"))
            for device in devices
            for kind in ("read", "write")
        ]
        operations = sum(rate for each in rates for name, rate in each.items() if not name.endswith("_bytes_total"))
        transferred = sum(rate for each in rates for name, rate in each.items() if name.endswith("_bytes_total"))
        if operations:
            yield HostResource.DISK, pool, {"operations_per_second": operations, "bytes_per_second": transferred}


def _process_cpus(evidence: Evidence) -> float | None:
    """Return how many host CPUs all threads of a VM's process use; None if unknown."""
    rates = evidence.counter_rates(PROCESS, (), ("user_seconds_total", "system_seconds_total"))
    if rates:
        return sum(rates.values())
    known = [
        evidence.counter_rate(VCPU, "cpu_seconds_total", labels) for labels in evidence.latest_values_by_subject(VCPU)
    ]
    return sum(rate for rate in known if rate is not None) if any(rate is not None for rate in known) else None


def _awaited_resources(evidence: Evidence) -> Iterator[tuple[HostResource, LabelValues, FieldValues]]:
    """Yield each resource that a VM waits for, with the pool's label values and the figures that show the wait.

    A VM does not wait for the CPU if its own CPU quota throttles it.
    """
    if not any(find_cpu_quota(evidence)):
        for found in find_cpu_waiting(evidence):
            yield HostResource.CPU, (), {"cpus": found.figures["waiting_cpus"]}
    for found in find_swapped(evidence):
        yield (
            HostResource.MEMORY,
            (),
            {"faults_per_second": found.figures["major_faults_per_second"], "bytes": found.figures["swap_bytes"]},
        )
    worst: dict[LabelValues, float] = {}
    for pool, found in slow_disks_by_pool(evidence):
        worst[pool] = max(worst.get(pool, 0.0), found.figures["latency_seconds"])
    yield from ((HostResource.DISK, pool, {"seconds": seconds}) for pool, seconds in worst.items())


def _describe(resource: HostResource, pool: LabelValues, usage: _Usage) -> dict[str, Any]:
    waiting, taking = (_sort_vms(vms) for vms in (usage.waiting, usage.taking))
    total = {name: sum(vm[name] for vm in taking) for name in taking[0] if name not in ("uuid", "vm")}
    count = len(waiting)
    what = {
        HostResource.CPU: "a CPU of the host",
        HostResource.MEMORY: "memory that the host swapped out",
        HostResource.DISK: f"the storage {pool[0]}" if pool else "",
    }[resource]
    sentence = (
        f"{count} VM{'s wait' if count > 1 else ' waits'} for {what}: {_list_vms(waiting[:MAX_VMS], resource, 'waiting')}. "
        f"The VMs that take most: {_list_vms(taking[:MAX_VMS], resource, 'taking')}."
    )
    return {
        "resource": resource.value,
        "pool": pool[0] if pool else "",
        "kind": pool[1] if pool else "",
        "sentence": sentence,
        "waiting_vms": count,
        "waiting": waiting[:MAX_VMS],
        "total": total,
        "taking": taking[:MAX_VMS],
    }


def _sort_vms(vms: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return VMs sorted by their first figure, the largest first, and then by name."""
    return sorted(vms, key=lambda vm: (-list(vm.values())[2], vm["vm"], vm["uuid"]))


_FORMATTERS = {
    (HostResource.CPU, "waiting"): lambda vm: f"{vm['cpus']:.2g} s in each second",
    (HostResource.CPU, "taking"): lambda vm: f"{vm['cpus']:.2g} CPUs",
    (HostResource.MEMORY, "waiting"): lambda vm: f"{vm['faults_per_second']:.3g} pages/s",
    (HostResource.MEMORY, "taking"): lambda vm: format_bytes(vm["bytes"]),
    (HostResource.DISK, "waiting"): lambda vm: f"{format_latency_text(vm['seconds'])} for a request",
    (HostResource.DISK, "taking"): lambda vm: (
        f"{vm['operations_per_second']:.3g} operations/s, {format_bytes(vm['bytes_per_second'])}/s"
    ),
}
"""Functions that format a VM's figures, by resource and role (`waiting` or `taking`)."""


def format_contending_vm(vm: Mapping[str, Any], resource: HostResource, role: str) -> str:
    """Return a VM's name and figures as text. `role` is `waiting` or `taking`."""
    return f"{vm['vm']} ({_FORMATTERS[resource, role](vm)})"


def _list_vms(vms: Iterable[Mapping[str, Any]], resource: HostResource, role: str) -> str:
    return format_list([format_contending_vm(vm, resource, role) for vm in vms], MAX_VMS)
