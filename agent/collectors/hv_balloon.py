"""Memory status of a Windows guest with a Hyper-V balloon: polled at attach, and then read from HV_BALLOON_STATUS_REPORT events."""

from collections.abc import Iterable, Mapping
from typing import Any

from agent.collectors.base import Collector, Replies, on_event_else_poll_interval, optional_reply
from agent.model.family import Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.memory import HV_BALLOON
from agent.qmp.commands import Command

_read = FieldReader(HV_BALLOON)


def _collect(replies: Replies) -> Iterable[Sample]:
    report = optional_reply(replies[0], dict)
    return _read_samples(report) if report is not None else ()  # GenericError: the guest has not sent a report yet


def _read_samples(report: Mapping[str, Any]) -> Iterable[Sample]:
    values = _read(report)
    return (Sample(HV_BALLOON, (), values),) if values else ()


COLLECTOR = Collector(
    "hv_balloon",
    (HV_BALLOON,),
    lambda facts: (Command("query-hv-balloon-status-report"),) if facts.hv_balloon else (),
    _collect,
    on_event_else_poll_interval,
    from_event={"HV_BALLOON_STATUS_REPORT": _read_samples},
)
