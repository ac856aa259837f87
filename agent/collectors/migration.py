"""Migration: polled after each MIGRATION event, and at a short interval while a migration runs.

If QEMU emits no MIGRATION events, the migration is polled at the poll interval.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent.collectors.base import (
    Collector,
    PollIntervals,
    PollResult,
    Replies,
    TransitionBetweenPolls,
    VmFacts,
    require_type,
)
from agent.model.family import FieldValues, Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.migration import INACTIVE_STATUSES, MIGRATION, MIGRATION_ENDED
from agent.model.record import Severity
from agent.qmp.commands import Command

_read = FieldReader(MIGRATION)

_OLD_THROTTLE = "x-cpu-throttle-percentage"
"""Name of `cpu-throttle-percentage` in QEMU 2.5 to 2.9."""


def _is_in_progress(values: Mapping[str, Any]) -> bool:
    """Return whether a migration is in progress.

    QEMU sets the status `completed` before the figures. So a completed migration counts as in progress while its duration is 0.
    """
    return values["status"] not in INACTIVE_STATUSES or (
        values["status"] == "completed" and values.get("elapsed_seconds") == 0
    )


_SEVERITIES = {"completed": Severity.INFO, "cancelled": Severity.WARNING, "failed": Severity.ERROR}
"""Severity of the record of a migration's end, by status."""


def _collect(replies: Replies) -> Iterable[Sample]:
    reply = require_type(replies[0], dict)
    if _OLD_THROTTLE in reply:
        reply = reply | {_OLD_THROTTLE.removeprefix("x-"): reply[_OLD_THROTTLE]}
    values = {"status": "none"} | _read(reply)
    return (Sample(MIGRATION, (), values | _remaining_time(values)),)


def _remaining_time(values: FieldValues) -> FieldValues:
    """Return the field with the time until the remaining RAM is sent.

    Return no field if the guest dirties RAM at least as fast as QEMU sends it.
    """
    dirtied = values.get("ram_dirty_pages_per_second", 0) * values.get("ram_page_bytes", 4096)
    speed = values.get("throughput_bytes_per_second", 0) - dirtied
    if not _is_in_progress(values) or speed <= 0 or "ram_remaining_bytes" not in values:
        return {}
    return {"remaining_seconds": values["ram_remaining_bytes"] / speed}


def _next_poll_delay(samples: Sequence[Sample], facts: VmFacts, intervals: PollIntervals) -> float | None:
    if any(_is_in_progress(sample.values) for sample in samples):
        return intervals.migrations_and_jobs
    return None if facts.migration_events else intervals.poll


def _transitions(before: PollResult, now: PollResult) -> Iterable[TransitionBetweenPolls]:
    """Yield the end of a migration that has ended since the previous poll. The migration may also have begun after the previous poll."""
    for previous, current in zip((s.values for s in before.samples), (s.values for s in now.samples), strict=False):
        outcome = current["status"]
        if outcome not in _SEVERITIES or _is_in_progress(current):
            continue
        in_progress = _is_in_progress(previous)
        if in_progress or _distinguishing_values(previous) != _distinguishing_values(current):
            last_values = (previous if in_progress else {}) | current
            yield TransitionBetweenPolls(MIGRATION_ENDED, _migration_end_fields(last_values), _SEVERITIES[outcome])


def _distinguishing_values(values: Mapping[str, Any]) -> list[Any]:
    """Return values that almost certainly differ between two finished migrations."""
    return [
        values.get(key)
        for key in ("status", "elapsed_seconds", "setup_seconds", "ram_transferred_bytes_total", "error")
    ]


_COPIED_FIELDS = ("elapsed_seconds", "downtime_seconds", "setup_seconds", "ram_bytes", "cpu_throttle_ratio", "error")
_RENAMED_FIELDS = {"passes": "passes_total", "postcopy_requests": "postcopy_requests_total"}
_TRANSFERRED_FIELDS = ("ram_transferred_bytes_total", "disk_transferred_bytes_total", "vfio_transferred_bytes_total")


def is_from_migration_source(values: Mapping[str, Any]) -> bool:
    """Return whether the values of a migration sample are from a source. A destination reports neither sent bytes nor a duration."""
    return "ram_transferred_bytes_total" in values or "elapsed_seconds" in values


def _migration_end_fields(last: Mapping[str, Any]) -> FieldValues:
    """Return the fields of the record about a migration's end, from the migration's last values.

    Set the field `role` only if a source reported the values. After a failed migration, even the source may report no values. So missing
    values do not mean that this VM is the destination.
    """
    fields: FieldValues = {"outcome": last["status"]} | ({"role": "source"} if is_from_migration_source(last) else {})
    fields |= {key: last[key] for key in _COPIED_FIELDS if key in last}
    fields |= {name: last[key] for name, key in _RENAMED_FIELDS.items() if key in last}
    if "ram_transferred_bytes_total" in last:
        fields["transferred_bytes"] = sum(last.get(key, 0) for key in _TRANSFERRED_FIELDS)
        if last.get("elapsed_seconds", 0) > 0:
            fields["throughput_bytes_per_second"] = fields["transferred_bytes"] / last["elapsed_seconds"]
    return fields


COLLECTOR = Collector(
    "migration",
    (MIGRATION,),
    lambda _facts: (Command("query-migrate"),),
    _collect,
    _next_poll_delay,
    topology=lambda samples: [sample.values["status"] for sample in samples],
    invalidates=("runstate",),
    transitions=_transitions,
)
