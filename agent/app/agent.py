"""The one place that wires: monitors to sessions, sessions to records, records to the snapshot, the alerts and the way out."""

import asyncio
import contextlib
import logging
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from agent.alerts.alertmanager import AlertmanagerClient
from agent.alerts.manager import NOTE_PREFIX, AlertManager, PendingAlert
from agent.app import health
from agent.app.builders import (
    StartError,
    build_endpoint,
    build_sink,
    delivery_settings,
    device_size_of,
    discoverers,
    session_settings,
    threshold_policy,
)
from agent.app.self_metrics import SelfMetrics
from agent.config.model import Config
from agent.config.reload import Reload
from agent.delivery.drops import DropReport
from agent.delivery.entry import StateNote
from agent.delivery.pipeline import DeliveryPipeline
from agent.delivery.sinks.base import Sink
from agent.exposition.series_limits import SeriesLimits
from agent.exposition.snapshot import Snapshot
from agent.http.record_stream import RecordBroadcaster
from agent.http.web_config import EndpointError
from agent.model.family import Family, Sample
from agent.model.metrics.block import BLOCK_SPACE
from agent.model.metrics.runstate import RUNSTATE
from agent.model.record import Record, RecordEncoder, Severity, Vm
from agent.monitors import Monitor
from agent.qmp.commands import Command
from agent.runtime.gc import scheduled_collection
from agent.runtime.logging import set_up
from agent.runtime.systemd import Progress, SystemdNotifier
from agent.session.api import MonitorState, MonitorStatus, PollOutcome, SessionContext, VmChange
from agent.session.discovery import DiscoveryManager
from agent.session.supervisor import SupervisorGroup

_log = logging.getLogger("agent")


_LEVELS = {
    MonitorState.CONNECTING: logging.DEBUG,
    MonitorState.NEGOTIATING: logging.DEBUG,
    MonitorState.BUSY: logging.WARNING,
    MonitorState.DENIED: logging.WARNING,
    MonitorState.STALLED: logging.WARNING,
}


KEEP_SECONDS = 2.0
"""How long setting a threshold waits for what is about to be set to be on disk."""
TICK_SECONDS = 1.0
IDLE_POLLS = 3
PATIENCE_SECONDS = 30.0
"""How long nobody may be asked anything before the service manager is told of no progress: so many polls and so many seconds."""
MOST_NAMED = 5
STUCK_SECONDS = 60.0
"""How late anything may be that has a deadline of its own, before it counts as stuck: a bug, or a host without time for us."""


class Agent:
    """One running agent. What sessions tell goes through here to all who want it, in one direction."""

    def __init__(self, config: Config, to: Sink | None = None) -> None:
        self.config = config
        self.snapshot = Snapshot(SeriesLimits(**config.limits.model_dump()))
        self.broadcaster = RecordBroadcaster()
        self.metrics = SelfMetrics()
        self._stamp = RecordEncoder()
        self.alerts = AlertManager(
            config.host, partial(threshold_policy, config.alerts.write_threshold), device_size_of
        )
        self.delivery = DeliveryPipeline(to or build_sink(config), delivery_settings(config), self._lost)
        self.alertmanager: AlertmanagerClient | None = None
        self._alerts_changed = asyncio.Event()
        self.reload = Reload()
        self.progress = Progress()
        self.build_endpoint = build_endpoint(self, config)
        self.watching: asyncio.Task[None]
        self._context = SessionContext(session_settings(config), thresholds=self)
        self._fleet: SupervisorGroup | None = None
        self._ways: DiscoveryManager
        self._tasks: asyncio.TaskGroup
        self._telling: asyncio.Task[None] | None = None

    # What sessions tell: vm.status.Out.

    def on_event(self, record: Record) -> None:
        """Export an event, show it and let it change alerts."""
        self._send(record)
        self.snapshot.event(record)
        if told := self.alerts.on_event(record, record.data["event"], time.time_ns()):
            self._tell(told)

    def on_lifecycle(self, change: VmChange, record: Record) -> None:
        """Export a lifecycle change and let it change alerts."""
        self._send(record)
        if change is VmChange.ATTACHED:
            self._tell(self.alerts.on_attached(record.vm, record.time_ns))
        elif change in (VmChange.GONE, VmChange.DETACHED, VmChange.MIGRATED_OUT):
            for_good = "shutdown_reason" in record.data or change is VmChange.MIGRATED_OUT
            self.alerts.on_gone(record.vm, time.monotonic(), for_good=for_good)

    def on_transition(self, record: Record) -> None:
        """Export a transition."""
        self._send(record)

    def on_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample], time_ns: int) -> None:
        """Take all that a VM has of these families."""
        news = [s for s in samples if not (s.family.on_change and self.snapshot.values(vm, s) == s.values)]
        self.snapshot.samples(vm, families, samples, time_ns)
        for sample in news:
            self._send(Record(sample.family.type, vm, sample.data, time_ns, sample.subject))
        if families[0].name.startswith("block"):
            told, spaces = self.alerts.on_samples(vm, samples, time.monotonic(), time_ns, families=families)
            self.snapshot.samples(vm, (BLOCK_SPACE,), spaces, time_ns)
            self._tell(told)
        for sample in samples if RUNSTATE in families else ():
            if type(running := sample.values.get("running")) is bool:
                status = str(sample.values.get("status", ""))
                self._tell(self.alerts.on_run_state(vm, time_ns, running=running, status=status))

    def _tell(self, told: Sequence[PendingAlert]) -> None:
        """Send alerts, each in one transaction with what has to be remembered of it."""
        for one in told:
            self._send(one.record, StateNote(*one.note))
            record = one.record
            _log.warning(
                "%s: alert %s %s %s", record.vm.name, record.data["alert"], record.subject, record.data["state"]
            )
        if told:
            self._alerts_changed.set()

    def on_status(self, status: MonitorStatus) -> None:
        """Take a change of state."""
        self.snapshot.status(status)
        name = f"{status.vm.name} at {status.monitor.name}" if status.vm else status.monitor.name
        level = _LEVELS.get(status.state, logging.INFO)
        _log.log(level, "%s: %s%s", name, status.state.value, f" ({status.reason})" if status.reason else "")

    def on_monitor_removed(self, monitor: Monitor) -> None:
        """Forget a monitor."""
        self.snapshot.ended(monitor.key)

    def on_connection_refused(self, address: str, reason: str) -> None:
        """Count a connection to us that was not let in."""
        self.metrics.refused.labels(address, reason).inc()

    def on_response(self, seconds: float) -> None:
        """Take note of how long QEMU took to answer."""
        self.metrics.reply.observe(seconds)

    def on_collector_run(self, collector: str, outcome: PollOutcome) -> None:
        """Count a question."""
        self.progress.asked_at = time.monotonic()
        self.metrics.questions[collector, outcome.value] += 1

    def on_events_dropped(self, vm: Vm, reason: str, events: int) -> None:
        """Count events that were lost before they were records."""
        _log.warning("%s: %d events lost (%s)", vm.name, events, reason)
        self.metrics.dropped.labels(reason).inc(events)

    # Whom sessions obey: vm.status.Commander.

    def refreshes_due(self, vm: Vm) -> frozenset[str]:
        """Return the collectors that should be asked again now."""
        return self.alerts.refreshes_due(vm)

    async def pending_commands(self, vm: Vm) -> Sequence[tuple[str, Command]]:
        """Return the thresholds to be set now. What is about to be set is remembered first."""
        orders = self.alerts.pending_commands(vm)
        if orders:
            await self.delivery.keep(StateNote(*self.alerts.state_note(vm.uuid)), KEEP_SECONDS)
        return orders

    def on_command_done(self, vm: Vm, disk: str, *, done: bool) -> None:
        """Take note whether a threshold was set."""
        self.alerts.on_command_done(vm, disk, done=done)

    # The way out.

    def _send(self, record: Record, note: StateNote | None = None) -> None:
        stamped = self._stamp(record)
        self.metrics.records[record.kind] += 1
        self.delivery.put(stamped, note)
        self.broadcaster.publish(stamped)

    def _lost(self, loss: DropReport) -> None:
        """Tell downstream what it will not get."""
        self._send(
            Record(
                "qemu.agent.records_dropped",
                Vm(self.config.host, "", ""),
                loss.data(),
                time.time_ns(),
                loss.lane,
                Severity.ERROR,
            )
        )

    # What the endpoint shows: web.server.Sight.

    def render_self_metrics(self) -> bytes:
        """Return the text of the agent's own series, gauges read from the truth at this moment."""
        states = self._states()
        for state in MonitorState:
            self.metrics.monitors.labels(state.value).set(states[state])
        self.metrics.dropped_subjects.set(sum(view.dropped_subjects.total() for _, view in self.snapshot.views()))
        self.metrics.tasks.set(len(asyncio.all_tasks()))
        self.metrics.read_reload(self.reload)
        self.metrics.read_endpoint(self.build_endpoint.refused_connections)
        self.metrics.read_delivery(self.delivery)
        self.metrics.read_alerts(self.alerts.store)
        return self.metrics.render()

    def unready_reasons(self) -> list[str]:
        """Return why the agent does not do all of its work."""
        troubles = []
        # One that nobody listens on is a socket that a VM left behind: there is nothing to be told.
        states = Counter(
            status.state for status in self.snapshot.monitors.values() if status.state is not MonitorState.GONE
        )
        if states and not states[MonitorState.UP]:
            troubles.append(
                f"none of {states.total()} monitors is up: " + ", ".join(f"{n} {s.value}" for s, n in states.items())
            )
        late = self._fleet.overdue_by(time.monotonic()) if self._fleet is not None else {}
        stuck = [name for name, seconds in late.items() if seconds > STUCK_SECONDS]
        troubles += [f"{name} is up and has not been asked what it should be" for name in stuck[:MOST_NAMED]]
        if self.alertmanager is not None and self.alertmanager.error is not None:
            troubles.append(
                f"Alertmanager at {self.alertmanager.name}: sending alerts failed: {self.alertmanager.error}"
            )
        return troubles + self.delivery.troubles()

    def warnings(self) -> list[str]:
        """Return what a person should look at some time."""
        door = [self.build_endpoint.config_error] if self.build_endpoint.config_error is not None else []
        return self.reload.notes() + door + self.delivery.notes()

    def health(self) -> dict[str, Any]:
        """Return how the agent does, as JSON can say it."""
        lost = self.metrics.events_lost()
        return health.agent(self.config.host, self.delivery, lost, self.unready_reasons(), self.warnings())

    def firing_alerts(self) -> list[dict[str, Any]]:
        """Return what fires, as JSON can say it."""
        return health.alerts(self.alerts.store)

    def resolved_levels(self, vm: Vm, device: str) -> list[tuple[str, int]]:
        """Return a disk's levels."""
        return [(level.text, level.bytes) for level in self.alerts.levels(vm, device)]

    def on_scrape(self, seconds: float) -> None:
        """Take note of a scrape."""
        self.metrics.scrape_seconds.set(seconds)

    # Its life.

    @contextlib.asynccontextmanager
    async def running(self, read: Callable[[], Config] | None = None) -> AsyncIterator[str]:
        """Run for as long as the block does; yields the endpoint's URL. What is left is delivered at the end, within the deadline.

        Args:
            read: reads the config anew when a reload is asked for; None: it never is.

        Raises:
            StartError: the endpoint's address cannot be had.
        """
        async with self._endpoint() as url, self.delivery.running(self.config.timeouts.shutdown):
            self.alerts.restore(
                {k: v for k, v in self.delivery.kept.items() if k.startswith(NOTE_PREFIX)}, time.monotonic()
            )
            self.watching = asyncio.create_task(self._watch(read or (lambda: self.config)), name="watch")
            try:
                yield url
            finally:
                await _end(self.watching)  # each session says that it leaves

    async def _watch(self, read: Callable[[], Config]) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._fleet = fleet = SupervisorGroup(self._context, self, tasks)
            self._ways = DiscoveryManager(fleet, tasks)
            self._ways.set(discoverers(self.config))
            tasks.create_task(self._tick(), name="tick")
            tasks.create_task(self.reload.run(self, read), name="reload")
            self._tell_alertmanager()

    def _tell_alertmanager(self) -> None:
        """Have the Alertmanager told that the config names now, and no other."""
        if self._telling is not None:
            self._telling.cancel()
        self.alertmanager = self._telling = None
        if (to := self.config.alerts.alertmanager) is not None:
            self.alertmanager = AlertmanagerClient(to.url, to.resend_interval, to.labels)
            run = self.alertmanager.run(self.alerts.store, self._alerts_changed)
            self._telling = self._tasks.create_task(run, name="alertmanager")

    def apply(self, config: Config) -> None:
        """Run by another config from here on, as far as its sections are those of `reload.LIVE`."""
        before, self.config = self.config, config
        set_up(config.log.level, config.log.format)
        self._context.apply(session_settings(config))
        self.snapshot.limits = SeriesLimits(**config.limits.model_dump())
        if before.alerts.write_threshold != config.alerts.write_threshold:
            self.alerts.set_policy(partial(threshold_policy, config.alerts.write_threshold))
        if before.alerts.alertmanager != config.alerts.alertmanager:
            self._tell_alertmanager()
        self._ways.set(discoverers(config))
        if any(getattr(before, name) != getattr(config, name) for name in ("intervals", "allow", "alerts", "labels")):
            assert self._fleet is not None, "a config is taken while VMs are watched"
            self._fleet.resync()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._tell(self.alerts.tick(time.monotonic(), time.time_ns()))
            notes = [StateNote(*self.alerts.state_note(uuid)) for uuid in self.alerts.stale_notes()]
            await asyncio.gather(*(self.delivery.keep(note, KEEP_SECONDS) for note in notes))  # all in one commit
            self.progress.ticked_at = time.monotonic()

    # What the service manager is told.

    def hang_reason(self) -> str:
        """Return what the agent does not get on with, though nobody keeps it from that; empty where there is nothing."""
        patience = IDLE_POLLS * self.config.intervals.poll + self.config.timeouts.response + PATIENCE_SECONDS
        return self.progress.stuck(up=self._states()[MonitorState.UP], patience=patience)

    def summary(self) -> str:
        """Return how the agent does, in a line."""
        states = ", ".join(f"{number} {state.value}" for state, number in self._states().items())
        return "; ".join([f"monitors: {states or 'none'}", *self.unready_reasons()])

    def _states(self) -> Counter[MonitorState]:
        return Counter(status.state for status in self.snapshot.monitors.values())

    @contextlib.asynccontextmanager
    async def _endpoint(self) -> AsyncIterator[str]:
        try:
            async with self.build_endpoint.serving() as url:
                yield url
        except EndpointError as error:
            raise StartError(str(error)) from error


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    await asyncio.wait({task})


async def run(config: Config, read: Callable[[], Config]) -> None:
    """Run until SIGTERM or SIGINT; at SIGHUP, go on by the config that `read` returns.

    Raises:
        StartError: it cannot start.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    app = Agent(config)
    loop.add_signal_handler(signal.SIGHUP, app.reload.asked.set)
    with scheduled_collection():
        await _run(app, read, stop)


async def _run(app: Agent, read: Callable[[], Config], stop: asyncio.Event) -> None:
    manager = SystemdNotifier()
    async with app.running(read) as url:
        _log.info("metrics and page on %s", url)
        manager.tell(READY="1")
        telling = asyncio.create_task(manager.watch(app.hang_reason, app.summary), name="service manager")
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({stopped, app.watching}, return_when=asyncio.FIRST_COMPLETED)
        await _end(telling)
        manager.tell(STOPPING="1")
        if not stopped.cancel():
            _log.info("stopping")
        else:
            app.watching.result()  # ends by itself only with an error: a bug, which must not look like work
