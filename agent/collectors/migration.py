"""Migration, polled after MIGRATION events and each second while one runs; without those events, at the poll interval."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent.collectors.base import Collector, Facts, Intervals, Poll, Replies, Transition, require_type
from agent.model.family import Sample, Values
from agent.model.metrics.migration import INACTIVE_STATUSES, MIGRATION, MIGRATION_ENDED
from agent.model.reader import Reader
from agent.model.record import Severity
from agent.qmp.commands import Command

_read = Reader(MIGRATION)

_OLD_THROTTLE = "x-cpu-throttle-percentage"
"""Name of `cpu-throttle-percentage` in QEMU 2.5 to 2.9."""


def _in_progress(values: Mapping[str, Any]) -> bool:
    """Return whether a migration is in progress.

    A completed migration with a duration of 0 counts as in progress: QEMU's migration thread sets the status before the figures.
    """
    return values["status"] not in INACTIVE_STATUSES or (
        values["status"] == "completed" and values.get("elapsed_seconds") == 0
    )


_SEVERITIES = {"completed": Severity.INFO, "cancelled": Severity.WARNING, "failed": Severity.ERROR}


def _collect(replies: Replies) -> Iterable[Sample]:
    reply = require_type(replies[0], dict)
    if _OLD_THROTTLE in reply:
        reply = reply | {_OLD_THROTTLE.removeprefix("x-"): reply[_OLD_THROTTLE]}
    values = {"status": "none"} | _read(reply)
    return (Sample(MIGRATION, (), values | _remaining(values)),)


def _remaining(values: Values) -> Values:
    """Return the time to send the remaining RAM, unless the guest dirties it as fast as QEMU sends it."""
    dirtied = values.get("ram_dirty_pages_per_second", 0) * values.get("ram_page_bytes", 4096)
    speed = values.get("throughput_bytes_per_second", 0) - dirtied
    if not _in_progress(values) or speed <= 0 or "ram_remaining_bytes" not in values:
        return {}
    return {"remaining_seconds": values["ram_remaining_bytes"] / speed}


def _next_poll_delay(samples: Sequence[Sample], facts: Facts, intervals: Intervals) -> float | None:
    if any(_in_progress(sample.values) for sample in samples):
        return intervals.migration
    return None if facts.migration_events else intervals.poll


def _transitions(before: Poll, now: Poll) -> Iterable[Transition]:
    """Yield a migration's end once: when its status changes to an end, and when a whole migration ran between two polls."""
    for previous, current in zip((s.values for s in before.samples), (s.values for s in now.samples), strict=False):
        outcome = current["status"]
        if outcome not in _SEVERITIES or _in_progress(current):
            continue
        in_progress = _in_progress(previous)
        if in_progress or _fingerprint(previous) != _fingerprint(current):
            yield Transition(
                MIGRATION_ENDED, _summary((previous if in_progress else {}) | current), _SEVERITIES[outcome]
            )


def _fingerprint(values: Mapping[str, Any]) -> list[Any]:
    """Return values that are never the same for two finished migrations."""
    return [
        values.get(key)
        for key in ("status", "elapsed_seconds", "setup_seconds", "ram_transferred_bytes_total", "error")
    ]


_COPIED = ("elapsed_seconds", "downtime_seconds", "setup_seconds", "ram_bytes", "cpu_throttle_ratio", "error")
_RENAMED = {"passes": "passes_total", "postcopy_requests": "postcopy_requests_total"}
_TRANSFERRED = ("ram_transferred_bytes_total", "disk_transferred_bytes_total", "vfio_transferred_bytes_total")


def is_source(values: Mapping[str, Any]) -> bool:
    """Return whether these values are from a source; a destination reports neither RAM nor time."""
    return "ram_transferred_bytes_total" in values or "elapsed_seconds" in values


def _summary(last: Mapping[str, Any]) -> Values:
    """Return the fields of the record about a migration's end, from its last values.

    The role is left out unless the values prove it: after a failed migration, neither end has values.
    """
    summary: Values = {"outcome": last["status"]} | ({"role": "source"} if is_source(last) else {})
    summary |= {key: last[key] for key in _COPIED if key in last}
    summary |= {name: last[key] for name, key in _RENAMED.items() if key in last}
    if "ram_transferred_bytes_total" in last:
        summary["transferred_bytes"] = sum(last.get(key, 0) for key in _TRANSFERRED)
        if last.get("elapsed_seconds", 0) > 0:
            summary["throughput_bytes_per_second"] = summary["transferred_bytes"] / last["elapsed_seconds"]
    return summary


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
