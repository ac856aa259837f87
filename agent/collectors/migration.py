"""Migration: asked when MIGRATION events say so, each second while one runs, and on a timer only where those events are off."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent.collectors.base import Collector, Facts, Intervals, Poll, Replies, Transition, require_type
from agent.model.family import Sample, Values
from agent.model.metrics.migration import INACTIVE_STATUSES, MIGRATION, MIGRATION_ENDED
from agent.model.reader import Reader
from agent.model.record import Severity
from agent.qmp.commands import Command

_read = Reader(MIGRATION)

_EXPERIMENT = "x-cpu-throttle-percentage"
"""As QEMU called it when it was new (2.5 to 2.9)."""


def _moves(values: Mapping[str, Any]) -> bool:
    """Return whether a migration is under way.

    One that is said to be completed and took no time has its figures yet to be made: QEMU's migration thread sets the state first.
    """
    return values["status"] not in INACTIVE_STATUSES or (
        values["status"] == "completed" and values.get("elapsed_seconds") == 0
    )


_SEVERITIES = {"completed": Severity.INFO, "cancelled": Severity.WARNING, "failed": Severity.ERROR}


def _collect(replies: Replies) -> Iterable[Sample]:
    reply = require_type(replies[0], dict)
    if _EXPERIMENT in reply:
        reply = reply | {_EXPERIMENT.removeprefix("x-"): reply[_EXPERIMENT]}
    values = {"status": "none"} | _read(reply)
    return (Sample(MIGRATION, (), values | _left(values)),)


def _left(values: Values) -> Values:
    """Return how long the RAM that remains takes, where the guest does not dirty it as fast as it is sent."""
    dirtied = values.get("ram_dirty_pages_per_second", 0) * values.get("ram_page_bytes", 4096)
    speed = values.get("throughput_bytes_per_second", 0) - dirtied
    if not _moves(values) or speed <= 0 or "ram_remaining_bytes" not in values:
        return {}
    return {"remaining_seconds": values["ram_remaining_bytes"] / speed}


def _next_poll_delay(samples: Sequence[Sample], facts: Facts, intervals: Intervals) -> float | None:
    if any(_moves(sample.values) for sample in samples):
        return intervals.migration
    return None if facts.migration_events else intervals.poll


def _transitions(before: Poll, now: Poll) -> Iterable[Transition]:
    """Tell of a migration's end once: where it is seen to end, and where one began and ended between two polls."""
    for was, now_is in zip((s.values for s in before.samples), (s.values for s in now.samples), strict=False):
        outcome = now_is["status"]
        if outcome not in _SEVERITIES or _moves(now_is):
            continue
        seen = _moves(was)
        if seen or _told(was) != _told(now_is):
            yield Transition(MIGRATION_ENDED, _summary((was if seen else {}) | now_is), _SEVERITIES[outcome])


def _told(values: Mapping[str, Any]) -> list[Any]:
    """Return what is never the same for two migrations that ended."""
    return [
        values.get(key)
        for key in ("status", "elapsed_seconds", "setup_seconds", "ram_transferred_bytes_total", "error")
    ]


_AS_THEY_ARE = ("elapsed_seconds", "downtime_seconds", "setup_seconds", "ram_bytes", "cpu_throttle_ratio", "error")
_COUNTED = {"passes": "passes_total", "postcopy_requests": "postcopy_requests_total"}
_SENT = ("ram_transferred_bytes_total", "disk_transferred_bytes_total", "vfio_transferred_bytes_total")


def is_source(values: Mapping[str, Any]) -> bool:
    """Return whether these figures are of the end that sends: the other one counts no RAM and no time."""
    return "ram_transferred_bytes_total" in values or "elapsed_seconds" in values


def _summary(last: Mapping[str, Any]) -> Values:
    """Return what there is to say of a migration, given the last figures of it."""
    told: Values = {"outcome": last["status"], "role": "source" if is_source(last) else "destination"}
    told |= {key: last[key] for key in _AS_THEY_ARE if key in last}
    told |= {name: last[key] for name, key in _COUNTED.items() if key in last}
    if "ram_transferred_bytes_total" in last:
        told["transferred_bytes"] = sum(last.get(key, 0) for key in _SENT)
        if last.get("elapsed_seconds", 0) > 0:
            told["throughput_bytes_per_second"] = told["transferred_bytes"] / last["elapsed_seconds"]
    return told


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
