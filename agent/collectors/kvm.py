"""KVM's statistics of the VM and of its vCPUs. QEMU reads the statistics from the kernel without interrupting a vCPU (QEMU 7.1).

The commands have their own interval, because QEMU takes longer for these commands than for others. Each command names all statistics
that it requests. On QEMU 7.2, a query for the VM's statistics keeps the main loop busy 1.4 times as long as query-status. A query for the
statistics of two vCPUs takes 2.2 times as long as query-status. On QEMU 11.1, the factors are 1.0 and 1.7.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent.collectors.base import Collector, PollIntervals, Replies, VmFacts, require_type
from agent.collectors.untrusted_json import list_of_objects_or_empty, text_or_empty
from agent.model.family import Family, FieldValues, Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.kvm import KVM, KVM_VCPU
from agent.qmp.commands import Command


def _query_stats_command(target: str, family: Family) -> Command:
    names = [field.path for field in family.fields]
    return Command("query-stats", {"target": target, "providers": [{"provider": "kvm", "names": names}]})


# In the statistics, QEMU names a vCPU by its QOM path. query-cpus-fast maps QOM paths to numbers of vCPUs.
_COMMANDS = (_query_stats_command("vm", KVM), _query_stats_command("vcpu", KVM_VCPU), Command("query-cpus-fast"))
_read = FieldReader(KVM)
_read_vcpu = FieldReader(KVM_VCPU)

_MAX_VCPUS = 4096


def _collect(replies: Replies) -> Iterable[Sample]:
    vm_stats, vcpu_stats, vcpus = (list_of_objects_or_empty(require_type(reply, list), _MAX_VCPUS) for reply in replies)
    numbers = {path: vcpu.get("cpu-index") for vcpu in vcpus if (path := text_or_empty(vcpu.get("qom-path")))}
    samples = [Sample(KVM, (), _read(_values_by_name(entry))) for entry in vm_stats[:1]]
    for entry in vcpu_stats:
        number = numbers.get(text_or_empty(entry.get("qom-path")))
        if type(number) is int:
            samples.append(Sample(KVM_VCPU, (str(number),), _read_vcpu(_values_by_name(entry))))
    return [sample for sample in samples if sample.values]


def _values_by_name(entry: Mapping[str, Any]) -> FieldValues:
    """Return the values of one entry of the reply to query-stats, by name."""
    return {text_or_empty(stat.get("name")): stat.get("value") for stat in list_of_objects_or_empty(entry.get("stats"))}


def _next_poll_delay(samples: Sequence[Sample], _facts: VmFacts, intervals: PollIntervals) -> float | None:
    return intervals.kvm if samples else None  # a VM without KVM has no statistics


COLLECTOR = Collector(
    "kvm",
    (KVM, KVM_VCPU),
    lambda facts: _COMMANDS if facts.has_command("query-stats") else (),
    _collect,
    _next_poll_delay,
)
