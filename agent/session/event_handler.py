"""What a QEMU says unasked, made into records: kept until it is known whose it is, and in a storm told once a second."""

import asyncio
import time
from collections.abc import Callable, Iterable
from math import inf
from typing import Any

from agent.model.events import EventRow, row_of
from agent.model.record import Record, Vm
from agent.qmp.protocol import Event
from agent.session.api import SessionObserver
from agent.session.event_coalescer import CoalescedEvent, EventCoalescer

EARLY_EVENTS = 1024
"""How many events are kept while it is not known yet whose they are."""


class EventHandler:
    """Hears one connection's events; `end` it."""

    def __init__(self, out: SessionObserver, then: Callable[[Vm, Event, int], None]) -> None:
        """Tell `out` of events, and `then` of each one, with its time in nanoseconds since the epoch."""
        self._out = out
        self._then = then
        self._vm: Vm | None = None
        self._early: list[Event] = []
        self._early_lost = 0
        self._storms = EventCoalescer()
        self._calm: asyncio.TimerHandle | None = None

    def hear(self, event: Event) -> None:
        """Take an event at the moment it is read."""
        if self._vm is not None:
            self._event(self._vm, event)
        elif len(self._early) < EARLY_EVENTS:
            self._early.append(event)
        else:
            self._early_lost += 1

    def forget(self) -> None:
        """Drop what was heard before `begin`: somebody else has told it."""
        self._early.clear()
        self._early_lost = 0

    def begin(self, vm: Vm) -> None:
        """Give the events, those that were heard before too, their owner."""
        self._vm = vm
        for event in self._early:
            self._event(vm, event)
        if self._early_lost:
            self._out.on_events_dropped(vm, "before_attach", self._early_lost)
        self._early.clear()

    def end(self, vm: Vm) -> None:
        """Tell what a storm still holds."""
        if self._calm is not None:
            self._calm.cancel()
        self._tell(vm, self._storms.end())
        self._then = lambda _vm, _event, _time_ns: None  # lets go of who listens, who has hold of us

    def _event(self, vm: Vm, event: Event) -> None:
        row = row_of(event.name)
        time_ns = time.time_ns() if event.time_ns is None else event.time_ns
        if row.coalesce_by is None:
            self._out.on_record(_record(vm, row, event, time_ns))
        else:
            alike = row.coalesce_key(event.data, row.coalesce_by)
            self._tell(vm, self._storms.take(alike, event, time_ns, time.monotonic()))
            self._hold(vm)
        self._then(vm, event, time_ns)

    def _tell(self, vm: Vm, told: Iterable[CoalescedEvent]) -> None:
        for one in told:
            more = {
                "count": one.count,
                "first_timestamp_seconds": one.first_ns / 1e9,
                "last_timestamp_seconds": one.last_ns / 1e9,
            }
            record = _record(vm, row_of(one.event.name), one.event, one.last_ns, **(more if one.count > 1 else {}))
            self._out.on_record(record)

    def _hold(self, vm: Vm) -> None:
        """Have what a storm holds told in time, whatever QEMU is being asked meanwhile."""
        if self._calm is None and (at := self._storms.next_at()) < inf:
            wait = max(0.0, at - time.monotonic())
            self._calm = asyncio.get_running_loop().call_later(wait, self._tell_held, vm)

    def _tell_held(self, vm: Vm) -> None:
        self._calm = None
        self._tell(vm, self._storms.due(time.monotonic()))
        self._hold(vm)


def _record(vm: Vm, row: EventRow, event: Event, time_ns: int, **more: Any) -> Record:
    data = {**row.head, "qemu": event.data, **more}
    return Record(row.record_type, vm, data, time_ns, row.subject_of(event.data), row.severity_for(event.data))
