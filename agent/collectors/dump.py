"""Dump of the guest's memory, polled when the vCPUs stop and while it runs; an event reports its end."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent.collectors.base import Collector, Facts, Intervals, Replies, require_type
from agent.model.family import Sample
from agent.model.metrics.memory import DUMP
from agent.model.reader import Reader
from agent.qmp.commands import Command

_read = Reader(DUMP)


def _collect(replies: Replies) -> Iterable[Sample]:
    return _samples({"result": require_type(replies[0], dict)})


def _samples(reply: Mapping[str, Any]) -> Iterable[Sample]:
    result = reply.get("result")
    values = _read(result) if isinstance(result, dict) else {}
    return (Sample(DUMP, (), values),) if values.get("status", "none") != "none" else ()


def _next_poll_delay(samples: Sequence[Sample], _facts: Facts, intervals: Intervals) -> float | None:
    return intervals.migration if any(sample.values["status"] == "active" for sample in samples) else None


COLLECTOR = Collector(
    "dump",
    (DUMP,),
    lambda _facts: (Command("query-dump"),),
    _collect,
    _next_poll_delay,
    from_event={"DUMP_COMPLETED": _samples},
)
