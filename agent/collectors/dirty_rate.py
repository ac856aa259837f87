"""Rates at which the guest dirties its memory, if another client makes QEMU measure or limit these rates.

The agent starts no measurement, because a measurement is a change to QEMU and slows the guest.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent.collectors.base import Collector, PollIntervals, Replies, VmFacts, optional_reply, require_type
from agent.collectors.untrusted_json import list_of_objects_or_empty, text_or_empty
from agent.model.family import FieldValues, Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.memory import DIRTY_RATE, VCPU_DIRTY
from agent.qmp.commands import Command

_read = FieldReader(DIRTY_RATE)
_read_vcpu = FieldReader(VCPU_DIRTY)

_MAX_VCPUS = 4096

_UNITS_PER_SECOND = {"second": 1, "millisecond": 1000}
"""Number of time units in a second, by `calc-time-unit` (QEMU 8.2). Older versions have no unit and use seconds."""


def _commands(facts: VmFacts) -> tuple[Command, ...]:
    if not facts.has_command("query-dirty-rate"):
        return ()
    return (
        Command("query-dirty-rate"),
        *((Command("query-vcpu-dirty-limit"),) if facts.has_command("query-vcpu-dirty-limit") else ()),
    )


def _collect(replies: Replies) -> Iterable[Sample]:
    measurement = require_type(replies[0], dict)
    vcpus = _merge_by_vcpu({}, measurement.get("vcpu-dirty-rate"), "id")
    for limits in replies[1:]:  # the reply is an error if QEMU has no dirty ring
        vcpus = _merge_by_vcpu(vcpus, optional_reply(limits, list), "cpu-index")
    samples = [Sample(VCPU_DIRTY, (str(number),), values) for number, values in list(vcpus.items())[:_MAX_VCPUS]]
    if measurement.get("status") not in ("unstarted", None):
        unit = text_or_empty(measurement.get("calc-time-unit", "second"))
        seconds = measurement.get("calc-time")
        duration = (
            {"seconds": seconds / _UNITS_PER_SECOND[unit]} if type(seconds) is int and unit in _UNITS_PER_SECOND else {}
        )
        samples.append(Sample(DIRTY_RATE, (), _read(measurement | duration)))
    return samples


def _merge_by_vcpu(known: Mapping[int, FieldValues], entries: Any, key: str) -> dict[int, FieldValues]:
    """Return the known values of each vCPU, plus the values in the reply's entries. `key` names the field with an entry's vCPU number."""
    merged = dict(known)
    for entry in list_of_objects_or_empty(entries):
        if type(number := entry.get(key)) is int:
            merged[number] = merged.get(number, {}) | _read_vcpu(entry)
    return merged


def _next_poll_delay(samples: Sequence[Sample], _facts: VmFacts, intervals: PollIntervals) -> float | None:
    if any(sample.values.get("status") == "measuring" for sample in samples):
        return intervals.migrations_and_jobs
    return intervals.poll if any("limit_bytes_per_second" in sample.values for sample in samples) else None


COLLECTOR = Collector("dirty", (DIRTY_RATE, VCPU_DIRTY), _commands, _collect, _next_poll_delay)
