"""KVM's own statistics, by name. QEMU reads them out of the kernel and disturbs no vCPU (QEMU 7.1).

Dearer than other questions, since names make them long: on 7.2 the main loop spends 1.4 times (the VM's) and 2.2 times (two vCPUs')
what query-status takes, on 11.1 as much and 1.7 times (measured). So they are asked at an interval of their own.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent.collectors.base import Collector, Facts, Intervals, Replies, require_type
from agent.collectors.untrusted import as_list_of_objects, as_text
from agent.model.family import Family, Sample, Values
from agent.model.metrics.kvm import KVM, KVM_VCPU
from agent.model.reader import Reader
from agent.qmp.commands import Command


def _ask(target: str, family: Family) -> Command:
    names = [field.path for field in family.fields]
    return Command("query-stats", {"target": target, "providers": [{"provider": "kvm", "names": names}]})


# KVM's vCPUs are known by QOM path, and come in no order; query-cpus-fast says which is which.
_ASKS = (_ask("vm", KVM), _ask("vcpu", KVM_VCPU), Command("query-cpus-fast"))
_read = Reader(KVM)
_read_vcpu = Reader(KVM_VCPU)

_MAX_VCPUS = 4096


def _collect(replies: Replies) -> Iterable[Sample]:
    machine, vcpus, cpus = (as_list_of_objects(require_type(answer, list), _MAX_VCPUS) for answer in replies)
    numbers = {path: cpu.get("cpu-index") for cpu in cpus if (path := as_text(cpu.get("qom-path")))}
    samples = [Sample(KVM, (), _read(_stats(entry))) for entry in machine[:1]]
    known = ((numbers.get(as_text(entry.get("qom-path"))), entry) for entry in vcpus)
    samples += [Sample(KVM_VCPU, (str(n),), _read_vcpu(_stats(entry))) for n, entry in known if type(n) is int]
    return [sample for sample in samples if sample.values]


def _stats(entry: Mapping[str, Any]) -> Values:
    """Return the numbers that an entry holds, by name."""
    return {as_text(stat.get("name")): stat.get("value") for stat in as_list_of_objects(entry.get("stats"))}


def _next_poll_delay(samples: Sequence[Sample], _facts: Facts, intervals: Intervals) -> float | None:
    return intervals.kvm if samples else None  # another accelerator has none


COLLECTOR = Collector(
    "kvm", (KVM, KVM_VCPU), lambda facts: _ASKS if facts.has_command("query-stats") else (), _collect, _next_poll_delay
)
