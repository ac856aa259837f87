"""Sums of vCPUs and memory over the VMs of a host, and commitment ratios. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.exposition.snapshot import VmView
from agent.model.family import Family, FieldValues
from agent.model.metrics.memory import MEMORY
from agent.model.metrics.runstate import RUNSTATE
from agent.model.metrics.vm_process_and_interfaces import PROCESS, VCPU
from agent.model.record import Vm


def sum_vms(views: Iterable[tuple[Vm, VmView]]) -> FieldValues:
    """Return the fields of the family `host` that are sums over the host's VMs. A sum is left out if the values of all VMs are unknown.

    A VM with a monitor on TCP may run on another host, and counts only if the VM's process is known on this host.
    """
    running = unknown = 0
    sums = {name: _Sum() for name in ("vcpus", "guest_memory_bytes", "vm_hugetlb_bytes", "vm_swap_bytes")}
    for vm, view in views:
        process = _vm_level_values(view, PROCESS)
        if vm.has_tcp_monitor and not process:
            continue
        is_running = _vm_level_values(view, RUNSTATE).get("running") is True
        vcpus = len(view.polls[VCPU.name].current) if VCPU.name in view.polls else 0
        memory = _guest_memory(view)
        running += is_running
        unknown += memory is None or (is_running and not vcpus)
        sums["vcpus"].add((vcpus or None) if is_running else 0)
        sums["guest_memory_bytes"].add(memory)
        sums["vm_hugetlb_bytes"].add(process.get("hugetlb_bytes"))
        sums["vm_swap_bytes"].add(process.get("swap_bytes"))
    known = {name: each.total for name, each in sums.items() if each.is_known}
    return {"running_vms": running, "unknown_vms": unknown} | known


@dataclass(slots=True)
class _Sum:
    """A sum of values that may be unknown. The sum leaves out unknown values, and is unknown if all values are unknown."""

    total: float = 0
    has_known: bool = False
    has_unknown: bool = False

    def add(self, part: float | None) -> None:
        if part is None:
            self.has_unknown = True
        else:
            self.total += part
            self.has_known = True

    @property
    def is_known(self) -> bool:
        return self.has_known or not self.has_unknown


def add_commitment_ratios(values: FieldValues) -> None:
    """Add the commitment ratios: vCPUs to online CPUs, and guest memory to host memory. Leave out unknown ratios."""
    for name, part, whole in (
        ("vcpu_commitment_ratio", "vcpus", "online_cpus"),
        ("memory_commitment_ratio", "guest_memory_bytes", "memory_bytes"),
    ):
        if part in values and values.get(whole):
            values[name] = values[part] / values[whole]


def _guest_memory(view: VmView) -> int | None:
    """Return the size of a guest's memory in bytes; None if unknown."""
    memory = _vm_level_values(view, MEMORY)
    base, plugged = memory.get("base_bytes"), memory.get("plugged_bytes", 0)
    return base + plugged if base is not None else None


def _vm_level_values(view: VmView, family: Family) -> Mapping[str, Any]:
    polls = view.polls.get(family.name)
    return polls.current.get((), {}) if polls is not None else {}
