"""Size of the balloon: polled at attach, and then read from BALLOON_CHANGE events."""

from collections.abc import Iterable, Mapping
from typing import Any

from agent.collectors.base import Collector, Replies, on_event_else_poll_interval, optional_reply
from agent.model.family import Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.memory import BALLOON
from agent.qmp.commands import Command

_read = FieldReader(BALLOON)


def _collect(replies: Replies) -> Iterable[Sample]:
    info = optional_reply(replies[0], dict)
    return _read_samples(info) if info is not None else ()  # DeviceNotActive, KVMMissingCap: no balloon


def _read_samples(info: Mapping[str, Any]) -> Iterable[Sample]:
    values = _read(info)
    return (Sample(BALLOON, (), values),) if values else ()


COLLECTOR = Collector(
    "balloon",
    (BALLOON,),
    lambda facts: (Command("query-balloon"),) if facts.balloon else (),
    _collect,
    on_event_else_poll_interval,
    from_event={"BALLOON_CHANGE": _read_samples},
)
