"""KVM's statistics, by name. QEMU reads them from the kernel without interrupting a vCPU (QEMU 7.1).

The names make these commands long. They cost more than other commands, and so have their own interval. Measured against query-status, the
main loop spends 1.4 times as long on the VM's statistics and 2.2 times on those of two vCPUs on QEMU 7.2; 1.0 and 1.7 times on 11.1.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent.collectors.base import Collector, Facts, Intervals, Replies, require_type
from agent.collectors.untrusted import as_list_of_objects, as_text
from agent.model.family import Family, Sample, Values
from agent.model.metrics.kvm import KVM, KVM_VCPU
from agent.model.reader import Reader
from agent.qmp.commands import Command


def _query_stats(target: str, family: Family) -> Command:
    names = [field.path for field in family.fields]
    return Command("query-stats", {"target": target, "providers": [{"provider": "kvm", "names": names}]})


# QEMU reports the vCPUs by QOM path and unordered; query-cpus-fast maps the paths to numbers.
_COMMANDS = (_query_stats("vm", KVM), _query_stats("vcpu", KVM_VCPU), Command("query-cpus-fast"))
_read = Reader(KVM)
_read_vcpu = Reader(KVM_VCPU)

_MAX_VCPUS = 4096


def _collect(replies: Replies) -> Iterable[Sample]:
    machine, vcpus, cpus = (as_list_of_objects(require_type(reply, list), _MAX_VCPUS) for reply in replies)
    numbers = {path: cpu.get("cpu-index") for cpu in cpus if (path := as_text(cpu.get("qom-path")))}
    samples = [Sample(KVM, (), _read(_stats(entry))) for entry in machine[:1]]
    numbered = ((numbers.get(as_text(entry.get("qom-path"))), entry) for entry in vcpus)
    samples += [Sample(KVM_VCPU, (str(n),), _read_vcpu(_stats(entry))) for n, entry in numbered if type(n) is int]
    return [sample for sample in samples if sample.values]


def _stats(entry: Mapping[str, Any]) -> Values:
    """Return an entry's numbers by name."""
    return {as_text(stat.get("name")): stat.get("value") for stat in as_list_of_objects(entry.get("stats"))}


def _next_poll_delay(samples: Sequence[Sample], _facts: Facts, intervals: Intervals) -> float | None:
    return intervals.kvm if samples else None  # other accelerators have no statistics


COLLECTOR = Collector(
    "kvm",
    (KVM, KVM_VCPU),
    lambda facts: _COMMANDS if facts.has_command("query-stats") else (),
    _collect,
    _next_poll_delay,
)
