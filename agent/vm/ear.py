"""What a QEMU says unasked, made into records: kept until it is known whose it is, and in a storm told once a second."""

import asyncio
import time
from collections.abc import Callable
from math import inf
from typing import Any

from agent.catalogue.events import row_of
from agent.qmp.protocol import Event
from agent.record import Record, Vm
from agent.vm.status import Out
from agent.vm.storm import Storms, Telling

EARLY_EVENTS = 1024
"""How many events are kept while it is not known yet whose they are."""


class Ear:
    """Hears one connection's events; `end` it."""

    def __init__(self, out: Out, then: Callable[[Vm, Event, int], None]) -> None:
        """Tell `out` of events, and `then` of each one, with its time in nanoseconds since the epoch."""
        self._out = out
        self._then = then
        self._vm: Vm | None = None
        self._early: list[Event] = []
        self._early_lost = 0
        self._storms = Storms()
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
            self._out.lost(vm, "early", self._early_lost)
        self._early.clear()

    def end(self, vm: Vm) -> None:
        """Tell what a storm still holds."""
        if self._calm is not None:
            self._calm.cancel()
        for telling in self._storms.end():
            self._record(vm, telling)
        self._then = lambda _vm, _event, _time_ns: None  # lets go of who listens, who has hold of us

    def _event(self, vm: Vm, event: Event) -> None:
        row = row_of(event.name)
        time_ns = time.time_ns() if event.time_ns is None else event.time_ns
        if row.storm is None:
            self._record(vm, Telling(event, 1, time_ns, time_ns))
        else:
            for telling in self._storms.take(row.alike(event.data, row.storm), event, time_ns, time.monotonic()):
                self._record(vm, telling)
            self._hold(vm)
        self._then(vm, event, time_ns)

    def _record(self, vm: Vm, telling: Telling) -> None:
        event = telling.event
        row = row_of(event.name)
        data: dict[str, Any] = {"event": row.name, "category": row.category.value, "qemu": event.data}
        if telling.count > 1:
            data |= {
                "count": telling.count,
                "first_timestamp_seconds": telling.first_ns / 1e9,
                "last_timestamp_seconds": telling.last_ns / 1e9,
            }
        kind, subject = f"qemu.event.{row.name.lower()}", row.subject_of(event.data)
        self._out.record(Record(kind, vm, data, telling.last_ns, subject, row.judge(event.data)))

    def _hold(self, vm: Vm) -> None:
        """Have what a storm holds told in time, whatever QEMU is being asked meanwhile."""
        if self._calm is None and (at := self._storms.next_at()) < inf:
            wait = max(0.0, at - time.monotonic())
            self._calm = asyncio.get_running_loop().call_later(wait, self._tell_held, vm)

    def _tell_held(self, vm: Vm) -> None:
        self._calm = None
        for telling in self._storms.due(time.monotonic()):
            self._record(vm, telling)
        self._hold(vm)
