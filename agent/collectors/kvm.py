"""KVM's own statistics, by name. QEMU reads them out of the kernel and disturbs no vCPU (QEMU 7.1).

Dearer than other questions, since names make them long: on 7.2 the main loop spends 1.4 times (the VM's) and 2.2 times (two vCPUs')
what query-status takes, on 11.1 as much and 1.7 times (measured). So they are asked at an interval of their own.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent.catalogue.metrics.kvm import KVM, KVM_VCPU
from agent.catalogue.model import Family, Reader, Sample, Values
from agent.collectors.base import Answers, Collector, Facts, Intervals, expect
from agent.qmp.commands import Ask


def _ask(target: str, family: Family) -> Ask:
    names = [field.path for field in family.fields]
    return Ask("query-stats", {"target": target, "providers": [{"provider": "kvm", "names": names}]})


# KVM's vCPUs are known by QOM path, and come in no order; query-cpus-fast says which is which.
_ASKS = (_ask("vm", KVM), _ask("vcpu", KVM_VCPU), Ask("query-cpus-fast"))
_read = Reader(KVM)
_read_vcpu = Reader(KVM_VCPU)

_MAX_VCPUS = 4096


def _collect(answers: Answers) -> Iterable[Sample]:
    machine, vcpus, cpus = (expect(answer, list) for answer in answers)
    known = (cpu for cpu in cpus if isinstance(cpu, dict) and isinstance(cpu.get("qom-path"), str))
    numbers = {cpu["qom-path"]: cpu.get("cpu-index") for cpu in known}
    samples = [Sample(KVM, (), _read(_stats(entry))) for entry in machine[:1]]
    for entry in vcpus[:_MAX_VCPUS]:
        path = entry.get("qom-path") if isinstance(entry, dict) else None
        if isinstance(path, str) and type(number := numbers.get(path)) is int:
            samples.append(Sample(KVM_VCPU, (str(number),), _read_vcpu(_stats(entry))))
    return [sample for sample in samples if sample.values]


def _stats(entry: Any) -> Values:
    """Return the numbers that an entry holds, by name."""
    stats = entry.get("stats") if isinstance(entry, Mapping) else None
    return {
        stat["name"]: stat.get("value")
        for stat in (stats if isinstance(stats, list) else ())
        if isinstance(stat, dict) and isinstance(stat.get("name"), str)
    }


def _again(samples: Sequence[Sample], _facts: Facts, intervals: Intervals) -> float | None:
    return intervals.kvm if samples else None  # another accelerator has none


COLLECTOR = Collector("kvm", (KVM, KVM_VCPU), lambda facts: _ASKS if facts.has("query-stats") else (), _collect, _again)
