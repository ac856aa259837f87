"""Run state of the guest and the time of its last change: polled at attach, and after STOP, RESUME and similar events."""

from collections.abc import Iterable, Sequence

from agent.collectors.base import Collector, PollResult, Replies, on_event_else_poll_interval, require_type
from agent.model.family import Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.runstate import RUNSTATE
from agent.qmp.commands import Command

_read = FieldReader(RUNSTATE)


def _collect(replies: Replies) -> Iterable[Sample]:
    return (Sample(RUNSTATE, (), _read(require_type(replies[0], dict))),)


def _derive(before: PollResult, now: PollResult) -> Sequence[Sample]:
    return [
        Sample(
            s.family,
            s.labels,
            s.values | {"since_timestamp_seconds": _status_since(before.find_matching_sample(s), s, now)},
        )
        for s in now.samples
    ]


def _status_since(before: Sample | None, sample: Sample, now: PollResult) -> float:
    """Return when a poll first showed the current status, in seconds since the epoch. The agent polls immediately after each event."""
    if before is not None and before.values.get("status") == sample.values.get("status"):
        since: float = before.values["since_timestamp_seconds"]
        return since
    return now.time_ns / 1e9


COLLECTOR = Collector(
    "runstate",
    (RUNSTATE,),
    lambda _facts: (Command("query-status"),),
    _collect,
    on_event_else_poll_interval,
    derive=_derive,
)
