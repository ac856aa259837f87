"""Helpers for tests of sessions: an observer that records all calls, and sessions that run while a block runs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from agent.collectors import PollIntervals
from agent.model.family import Family, Sample
from agent.model.record import Record, Vm
from agent.monitors import Monitor
from agent.monitors.base import qmp_opener
from agent.monitors.dial import unix_connector
from agent.qmp.commands import OptInQemuChange
from agent.session.shared_types import (
    MonitorState,
    MonitorStatus,
    PollOutcome,
    SessionContext,
    SessionSettings,
    VmLifecycleChange,
)
from agent.session.supervisor_group import SupervisorGroup
from tests.lab.simulated_clock import longest_wait_seconds

EQUAL = PollIntervals(poll=10.0, guest_memory=10.0, migrations_and_jobs=10.0, resync=3600.0)
"""Equal intervals, so that all collectors run in each poll. No resync disturbs a test."""

QUICK = PollIntervals(poll=0.06, guest_memory=0.06, migrations_and_jobs=0.06, resync=60.0)
"""Intervals that are just too long for polls to share one write."""

_CONTEXT_OPTIONS = {"histograms", "thresholds", "collectors", "first_polls", "root", "random"}


class RecordingObserver:
    """A SessionObserver that records all calls.

    Attributes:
        calls: the method's name and its argument for each call, oldest first. Several arguments are a tuple.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self._changed = asyncio.Event()

    def _add(self, name: str, argument: Any) -> None:
        self.calls.append((name, argument))
        self._changed.set()

    def on_event(self, record: Record) -> None:
        self._add("on_record", record)

    def on_event_before_coalescing(self, event: Record) -> None:
        self._add("on_event_read", event)

    def on_lifecycle(self, change: VmLifecycleChange, record: Record) -> None:
        assert record.type == change.record_type
        self._add("on_record", record)

    def on_transition_between_polls(self, record: Record) -> None:
        self._add("on_record", record)

    def on_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample], time_ns: int) -> None:
        self._add("on_samples", (vm, families, samples, time_ns))

    def on_monitor_status(self, status: MonitorStatus) -> None:
        self._add("on_status", status)

    def on_monitor_removed(self, monitor: Monitor) -> None:
        self._add("on_monitor_removed", monitor)

    def on_agent_refused_incoming_connection(self, address: str, reason: str) -> None:
        self._add("on_connection_refused", (address, reason))

    def on_response_time(self, seconds: float) -> None:
        self._add("on_response_time", seconds)

    def on_collector_run(self, collector: str, outcome: PollOutcome) -> None:
        self._add("on_collector_run", (collector, outcome))

    def on_poll_failed(self, vm: Vm, families: Sequence[Family], time_ns: int) -> None:
        self._add("on_poll_failed", (vm, families, time_ns))

    def on_messages_skipped(self, vm: Vm, reason: str, messages: int) -> None:
        self._add("on_messages_skipped", (vm, reason, messages))

    def on_events_dropped(self, vm: Vm, reason: str, events: int) -> None:
        self._add("on_events_dropped", (vm, reason, events))

    def calls_of(self, name: str) -> list[Any]:
        """Return the arguments of all calls of a method."""
        return [argument for called, argument in self.calls if called == name]

    def records(self, kind: str = "") -> list[Record]:
        """Return the records whose type starts with `qemu.` and this prefix."""
        return [record for record in self.calls_of("on_record") if record.type.startswith(f"qemu.{kind}")]

    def types(self, kind: str = "") -> list[str]:
        """Return the types of the records that `records` returns, without `qemu.`."""
        return [record.type.removeprefix("qemu.") for record in self.records(kind)]

    def states(self) -> list[MonitorState]:
        """Return the reported states of monitors, oldest first."""
        return [status.state for status in self.calls_of("on_status")]

    def outcomes(self, collector: str) -> list[PollOutcome]:
        """Return the outcomes of a collector's runs, oldest first."""
        return [outcome for name, outcome in self.calls_of("on_collector_run") if name == collector]

    async def wait_until(self, predicate: Callable[[], object]) -> None:
        """Wait until a predicate returns a true value. It is evaluated after each call."""
        async with asyncio.timeout(longest_wait_seconds()):
            while not predicate():
                self._changed.clear()
                await self._changed.wait()

    async def wait_for_polls(self, times: int = 1, collector: str = "block") -> None:
        """Wait until a collector has run this many more times."""
        before = len(self.outcomes(collector))
        await self.wait_until(lambda: len(self.outcomes(collector)) >= before + times)


def monitor_at(path: Path) -> Monitor:
    """Return the monitor at a Unix socket."""
    return Monitor(str(path), (str(path),), qmp_opener(unix_connector(str(path))))


def session_context(*changes: OptInQemuChange, **options: Any) -> SessionContext:
    """Return a session context with the agent's own settings and the intervals `EQUAL`.

    Args:
        changes: changes to QEMU to allow.
        options: arguments of SessionSettings or of SessionContext.
    """
    settings: dict[str, Any] = {"intervals": EQUAL}
    settings |= {name: value for name, value in options.items() if name not in _CONTEXT_OPTIONS}
    shared = {name: value for name, value in options.items() if name in _CONTEXT_OPTIONS}
    return SessionContext(SessionSettings("host1", frozenset(changes), **settings), **shared)


def quick_context(*changes: OptInQemuChange, **options: Any) -> SessionContext:
    """Return a session context for tests of real QEMUs, whose time passes as fast as the test's.

    The intervals and the delays of retries are short. The timeouts are so long that no test reaches them.

    Args:
        changes: changes to QEMU to allow.
        options: arguments of SessionSettings or of SessionContext.
    """
    quick = {
        "intervals": QUICK,
        "max_retry_seconds": 0.02,
        "greeting_seconds": 60.0,
        "response_seconds": 60.0,
        "probe_seconds": 0.05,
    }
    return session_context(*changes, **{**quick, **options})


@contextlib.asynccontextmanager
async def supervised(
    observer: RecordingObserver, *paths: Path, context: SessionContext | None = None
) -> AsyncIterator[SupervisorGroup]:
    """Run sessions for the monitors at these paths while the `with` block runs."""
    started: asyncio.Future[SupervisorGroup] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            group = SupervisorGroup(context or session_context(), observer, tasks)
            for path in paths:
                group.on_monitor_added(monitor_at(path))
            started.set_result(group)
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    try:
        yield await started
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
