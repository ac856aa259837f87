"""CPU time that the guest's kernel counts, summed over all vCPUs. The host's kernel counts the time of each vCPU."""

from collections.abc import Iterable, Sequence

from agent.collectors.guest.base import GuestCollector, TimedGuestReply, require_value
from agent.collectors.untrusted_json import list_of_objects_or_empty
from agent.model.family import COUNTER, Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.guest import GUEST_CPU

_read = FieldReader(GUEST_CPU)
_CPU_STATES = [field.path for field in GUEST_CPU.fields if field.kind is COUNTER]
_MAX_CPUS = 4096


def _collect(exchanges: Sequence[TimedGuestReply]) -> Iterable[Sample]:
    cpus = list_of_objects_or_empty(require_value(exchanges[0], list), _MAX_CPUS)
    totals: dict[str, int] = {}
    for state in _CPU_STATES:
        numbers = [cpu.get(state) for cpu in cpus]
        if numbers and all(type(number) is int and 0 <= number < 1 << 53 for number in numbers):
            totals[state] = sum(number for number in numbers if number is not None)
    return (Sample(GUEST_CPU, (), _read({"cpus": len(cpus), **totals})),) if totals else ()


COLLECTOR = GuestCollector("cpu", (GUEST_CPU,), ("guest-get-cpustats",), _collect)
