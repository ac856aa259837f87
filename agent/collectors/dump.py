"""Dump of the guest's memory to a file: polled after STOP events and while a dump runs. DUMP_COMPLETED reports the dump's end."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent.collectors.base import Collector, PollIntervals, Replies, VmFacts, require_type
from agent.model.family import Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.memory import DUMP
from agent.qmp.commands import Command

_read = FieldReader(DUMP)


def _collect(replies: Replies) -> Iterable[Sample]:
    return _read_samples({"result": require_type(replies[0], dict)})


def _read_samples(event_data: Mapping[str, Any]) -> Iterable[Sample]:
    result = event_data.get("result")
    values = _read(result) if isinstance(result, dict) else {}
    return (Sample(DUMP, (), values),) if values.get("status", "none") != "none" else ()


def _next_poll_delay(samples: Sequence[Sample], _facts: VmFacts, intervals: PollIntervals) -> float | None:
    return intervals.migrations_and_jobs if any(sample.values["status"] == "active" for sample in samples) else None


COLLECTOR = Collector(
    "dump",
    (DUMP,),
    lambda _facts: (Command("query-dump"),),
    _collect,
    _next_poll_delay,
    from_event={"DUMP_COMPLETED": _read_samples},
)
