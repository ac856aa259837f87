"""The one place that wires: monitors to sessions, sessions to records, records to the snapshot, the alerts and the way out."""

import asyncio
import contextlib
import logging
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence

from aiohttp import web

from agent.alerts.threshold import WriteThresholds
from agent.catalogue.model import Family, Sample
from agent.collectors import Intervals
from agent.config import Config
from agent.delivery.jsonl import JsonLines
from agent.delivery.kafka import Kafka, KafkaTerms, Topics
from agent.delivery.lane import Drop, MemoryLane
from agent.delivery.sink import Outlet, Sink, pump
from agent.monitors import Dial, Monitor, Way
from agent.qmp.commands import AllowList, Change
from agent.record import Record, Stamp, Stamped, Vm
from agent.selfmetrics import SelfMetrics
from agent.vm.status import Outcome, State, Status, Terms
from agent.vm.watch import Fleet
from agent.web.live import Live
from agent.web.server import application
from agent.web.snapshot import Snapshot

_log = logging.getLogger("agent")


_LEVELS = {
    State.CONNECTING: logging.DEBUG,
    State.NEGOTIATING: logging.DEBUG,
    State.BUSY: logging.WARNING,
    State.STALLED: logging.WARNING,
}


class StartError(Exception):
    """The agent cannot start; the text says why, for people."""


def terms(config: Config) -> Terms:
    """Return what the config says of every session."""
    changes = set()
    if config.allow.guest_stats_interval is not None:
        changes.add(Change.GUEST_STATS_INTERVAL)
    if config.allow.migration_events:
        changes.add(Change.MIGRATION_EVENTS)
    return Terms(
        host=config.host,
        allow=AllowList(changes),
        changes=frozenset(changes),
        intervals=Intervals(**config.intervals.model_dump()),
        reply_seconds=config.timeouts.reply,
        greeting_seconds=config.timeouts.greeting,
        retry_seconds=config.timeouts.retry,
        guest_stats_seconds=round(config.allow.guest_stats_interval or 0),
    )


def ways(config: Config) -> list[Way]:
    """Return the ways of reaching monitors that the config names."""
    return [Dial(entry.dial) for entry in config.monitors]


def sink(config: Config) -> Sink:
    """Return where the config sends records."""
    if config.kafka is None:
        return JsonLines(config.jsonl.file, config.jsonl.rotate, config.jsonl.keep)
    kafka = config.kafka
    return Kafka(
        KafkaTerms(tuple(kafka.servers), Topics(**kafka.topics.model_dump()), kafka.client_id, kafka.request_timeout)
    )


class App:
    """One running agent. What sessions tell goes through here to all who want it, in one direction."""

    def __init__(self, config: Config, to: Sink | None = None) -> None:
        self.config = config
        self.snapshot = Snapshot()
        self.live = Live()
        self.metrics = SelfMetrics()
        self._stamp = Stamp()
        self._alerts = WriteThresholds()
        self._outlet = Outlet(to or sink(config), self._dropped)
        half = config.memory_budget // 2
        self._events = MemoryLane("events", half, self._dropped)
        self._samples = MemoryLane("samples", half, self._dropped)
        self._lanes = (self._events, self._samples)
        self.watching: asyncio.Task[None]

    # What sessions tell: vm.status.Out.

    def record(self, record: Record) -> None:
        """Take an event or a change in a VM's life."""
        self._send(record)
        if record.type.startswith("qemu.event."):
            self.snapshot.event(record)
            if record.type == "qemu.event.block_write_threshold":
                alert, sample = self._alerts.exceeded(record)
                self._send(alert)
                self.snapshot.add(record.vm, sample)

    def samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample], time_ns: int) -> None:
        """Take all that a VM has of these families."""
        news = [s for s in samples if not (s.family.on_change and self.snapshot.values(vm, s) == s.values)]
        self.snapshot.samples(vm, families, samples, time_ns)
        if any(family.name == "block" for family in families):
            self._alerts.learn(vm, samples)
        for sample in news:
            self._send(Record(f"qemu.sample.{sample.family.name}", vm, sample.data, time_ns, sample.subject))

    def status(self, status: Status) -> None:
        """Take a change of state."""
        self.snapshot.status(status)
        name = f"{status.vm.name} at {status.monitor.name}" if status.vm else status.monitor.name
        level = _LEVELS.get(status.state, logging.INFO)
        _log.log(level, "%s: %s%s", name, status.state.value, f" ({status.reason})" if status.reason else "")
        if status.vm is not None and status.state is State.GONE:
            self._alerts.forget(status.vm)

    def ended(self, monitor: Monitor) -> None:
        """Forget a monitor."""
        self.snapshot.ended(monitor.key)

    def collected(self, collector: str, outcome: Outcome, seconds: float) -> None:
        """Count a question."""
        self.metrics.questions.labels(collector, outcome.value).inc()
        self.metrics.replies.labels(collector).observe(seconds)

    def lost(self, vm: Vm, reason: str, events: int) -> None:
        """Count events that were lost before they were records."""
        _log.warning("%s: %d events lost (%s)", vm.name, events, reason)
        self.metrics.dropped.labels(reason).inc(events)

    # The way out.

    def _send(self, record: Record) -> None:
        stamped = self._stamp(record)
        self.metrics.records.labels(record.type.split(".", 2)[1]).inc()
        (self._samples if record.is_sample else self._events).put(stamped)
        self.live.put(stamped)

    def _dropped(self, reason: Drop, records: Sequence[Stamped]) -> None:
        self.metrics.dropped.labels(reason.value).inc(len(records))
        _log.warning("%d records dropped: %s", len(records), reason.value)

    # What the endpoint shows: web.server.Sight.

    def own_metrics(self) -> bytes:
        """Return the text of the agent's own series, gauges read from the truth at this moment."""
        states = Counter(status.state for status in self.snapshot.monitors.values())
        for state in State:
            self.metrics.monitors.labels(state.value).set(states[state])
        self.metrics.monitor_state.clear()
        for status in self.snapshot.monitors.values():
            self.metrics.monitor_state.labels(status.monitor.name, status.state.value).set(1)
        for lane in self._lanes:
            self.metrics.lane_records.labels(lane.name).set(len(lane))
            self.metrics.lane_bytes.labels(lane.name).set(lane.bytes)
        self.metrics.sink_up.set(self._outlet.trouble is None)
        return self.metrics.render()

    def troubles(self) -> list[str]:
        """Return why the agent does not do all of its work."""
        troubles = []
        states = Counter(status.state for status in self.snapshot.monitors.values())
        if states and not states[State.UP]:
            troubles.append(
                f"none of {states.total()} monitors is up: " + ", ".join(f"{n} {s.value}" for s, n in states.items())
            )
        if self._outlet.trouble is not None and any(len(lane) for lane in self._lanes):
            troubles.append(f"nothing is delivered to {self._outlet.sink.name}: {self._outlet.trouble}")
        return troubles

    def scraped(self, seconds: float) -> None:
        """Take note of a scrape."""
        self.metrics.scrape_seconds.set(seconds)

    # Its life.

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Run for as long as the block does; yields the endpoint's URL. What is left is delivered at the end, within the deadline.

        Raises:
            StartError: the endpoint's address cannot be had.
        """
        async with self._endpoint() as url:
            pumps = [asyncio.create_task(pump(lane, self._outlet), name=f"pump {lane.name}") for lane in self._lanes]
            self.watching = asyncio.create_task(self._watch(), name="watch")
            try:
                yield url
                await _end(self.watching)  # each session says that it leaves
                await self._drain()
            finally:
                await _end(self.watching, *pumps)
                for lane in self._lanes:
                    lane.abandon()
                await self._outlet.close()

    async def _watch(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            fleet = Fleet(terms(self.config), self, tasks)
            for way in ways(self.config):
                tasks.create_task(way.watch(fleet), name=repr(way))

    async def _drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.timeouts.stop):
                for lane in self._lanes:
                    await lane.drained()

    @contextlib.asynccontextmanager
    async def _endpoint(self) -> AsyncIterator[str]:
        host, _, port = self.config.prometheus.listen.rpartition(":")
        runner = web.AppRunner(application(self), access_log=None, shutdown_timeout=1.0, handle_signals=False)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host.strip("[]"), int(port))
            try:
                await site.start()
            except OSError as error:
                cure = "choose another prometheus.listen"
                raise StartError(
                    f"cannot listen on {self.config.prometheus.listen}: {error.strerror}; {cure}"
                ) from error
            bound = runner.addresses[0]
            yield f"http://{host}:{bound[1]}"
        finally:
            await runner.cleanup()


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks and wait for their ends."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def run(config: Config) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        StartError: it cannot start.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    app = App(config)
    async with app.running() as url:
        _log.info("metrics and page on %s", url)
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({stopped, app.watching}, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.cancel():
            _log.info("stopping")
        else:
            app.watching.result()  # ends by itself only with an error: a bug, which must not look like work
