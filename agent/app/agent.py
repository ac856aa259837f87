"""The agent: builds every part from the config, connects the parts, and runs them."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable

from agent.alerts.alertmanager import AlertmanagerClient
from agent.alerts.pool_usage import PoolRegistry
from agent.app.agent_lifecycle import AgentLifecycle, HeartbeatMetrics
from agent.app.alert_publisher import AlertPublisher
from agent.app.builders import (
    StartError,
    build_discoverers,
    build_endpoint,
    build_sink,
    delivery_settings,
    session_settings,
)
from agent.app.dispatcher import SessionReportDispatcher
from agent.app.endpoint_source import AgentEndpointSource
from agent.app.guest_dispatcher import GuestDispatcher
from agent.app.hang_detector import HangDetector
from agent.app.health import AgentHealth, HealthLimits
from agent.app.host_resource_poller import HostResourcePoller
from agent.app.io_stall_watcher import IoStallWatcher
from agent.app.latency_histogram_controller import LatencyHistogramController, LatencyHistogramStateMetrics
from agent.app.pool_poller import PoolPoller
from agent.app.publisher import RecordPublisher
from agent.app.self_metrics import (
    AlertmanagerMetrics,
    AlertMetrics,
    ConfigReloadMetrics,
    DeliveryMetrics,
    HttpEndpointMetrics,
    MonitorMetrics,
    PublishedRecordsMetrics,
    SelfMetrics,
)
from agent.app.state_publisher import StatePublisher, StateSources, StateTopicMetrics
from agent.app.write_threshold_controller import WriteThresholdController
from agent.config.model import Config
from agent.config.reload import ConfigReloader
from agent.delivery.sinks.base import Sink
from agent.exposition.series_limits import SeriesLimits
from agent.exposition.snapshot import Snapshot
from agent.guest.manager import GuestAgentManager
from agent.host.pools.libvirt import LibvirtPoolSource, LibvirtStoragePool
from agent.host.pools.lvm_thin import LvmThinPoolSource
from agent.host.pools.storage_report import StorageReportFile
from agent.host.pools.zfs import ZfsPoolSource
from agent.http.web_config import EndpointSetupError
from agent.runtime.gc import scheduled_garbage_collection
from agent.runtime.logging import configure_logging
from agent.runtime.systemd import SystemdNotifier
from agent.session.discovery_manager import DiscoveryManager
from agent.session.shared_types import SessionContext
from agent.session.supervisor_group import SupervisorGroup

_log = logging.getLogger("agent")

STATE_STOP_SHARE = 0.2
"""Maximum time to write the host's last state to the state topic, as a share of `timeouts.shutdown`."""


class Agent:
    """The agent with all its parts, such as sessions, alerts, delivery and the HTTP endpoint.

    Args:
        config: the config to start with.
        sink: where records are delivered; None builds the sink that the config describes.
        limits: when the agent counts as hung and a session as stuck; None for the defaults.
    """

    def __init__(self, config: Config, sink: Sink | None = None, limits: HealthLimits | None = None) -> None:
        self.config = config
        self._limits = limits or HealthLimits()
        self.snapshot = Snapshot(SeriesLimits(**config.limits.model_dump()), config.web.history_memory)
        self.publisher = RecordPublisher(
            config.host, sink or build_sink(config), delivery_settings(config), config.configured_sink_section.topic_for
        )
        pools = PoolRegistry()
        self.alerts = AlertPublisher(config.host, config.alerts, self.publisher, pools)
        self.storage = self._build_storage_poller(config, pools)
        self.thresholds = WriteThresholdController(self.alerts.engine, self.publisher)
        self.histograms = LatencyHistogramController(config.allow.latency_histograms, self.publisher)
        self.host_resources = HostResourcePoller(
            config.host, self.publisher.publish, self.snapshot, config.intervals.host
        )
        self.metrics = SelfMetrics()
        self.lifecycle = AgentLifecycle(
            lambda: self.config, self.publisher, self.snapshot, self.alerts.engine.store, self.metrics
        )
        self.state_publisher = self._build_state_publisher(config, pools)
        self.reloader = ConfigReloader()
        self.hang_detector = HangDetector()
        self.guests = GuestAgentManager(
            config.guest_agent, GuestDispatcher(self.publisher, self.snapshot, self.alerts, self.metrics)
        )
        self.io_stalls = IoStallWatcher(self.snapshot)
        self.observer = self._build_observer()
        self.health = self._build_health()
        self.endpoint_source = AgentEndpointSource(
            config.host,
            self.snapshot,
            self.publisher,
            self.alerts,
            self.metrics,
            self.health,
            self.state_publisher,
            self.histograms.histograms,
        )
        self.endpoint = self.health.endpoint = build_endpoint(self.endpoint_source, config)
        self._register_metrics()
        self.watch_task: asyncio.Task[None]
        """The task that watches VMs until it is cancelled or fails."""
        self._context = self._build_context(config)
        self._supervisors: SupervisorGroup
        self._discovery: DiscoveryManager
        self._tasks: asyncio.TaskGroup
        self._alertmanager: asyncio.Task[None] | None = None

    def _build_observer(self) -> SessionReportDispatcher:
        return SessionReportDispatcher(
            self.publisher,
            self.snapshot,
            self.alerts,
            self.storage,
            self.metrics,
            self.hang_detector,
            self.guests,
            self.io_stalls,
            self.state_publisher,
            self.histograms,
        )

    def _build_health(self) -> AgentHealth:
        return AgentHealth(
            lambda: self.config,
            self.snapshot,
            self.publisher.delivery,
            self.reloader,
            self.hang_detector,
            self.alerts.engine.store,
            self._limits,
        )

    def _build_storage_poller(self, config: Config, pools: PoolRegistry) -> PoolPoller:
        report = StorageReportFile()
        thin_pools = LvmThinPoolSource(report)
        return PoolPoller(
            config.host,
            self.publisher.publish,
            self.snapshot,
            pools,
            self.alerts,
            sources=(thin_pools, ZfsPoolSource(report)),
            fallback=LibvirtPoolSource(self._storage_pools),
            thin_pool_free=thin_pools.thin_pool_free,
            interval=config.intervals.storage,
        )

    def _build_context(self, config: Config) -> SessionContext:
        gate, io_stalls = self.storage.gate, self.io_stalls
        context = SessionContext(session_settings(config), thresholds=self.thresholds, storage=gate)
        context.histograms = self.histograms.controller_if_allowed
        gate.schedule_collectors = io_stalls.schedule_collectors = context.schedule_vm_collectors_now
        gate.is_io_suspect, io_stalls.on_change = io_stalls.is_suspect, gate.schedule_deferred_collectors
        return context

    def _register_metrics(self) -> None:
        self.metrics.register(
            PublishedRecordsMetrics(self.publisher.published),
            DeliveryMetrics(self.publisher.delivery),
            MonitorMetrics(self.snapshot),
            AlertMetrics(self.alerts.engine.store),
            LatencyHistogramStateMetrics(self.histograms),
            AlertmanagerMetrics(lambda: self.health.alertmanager),
            ConfigReloadMetrics(self.reloader),
            HttpEndpointMetrics(self.endpoint),
            HeartbeatMetrics(self.lifecycle),
        )
        if self.state_publisher is not None:
            self.metrics.register(StateTopicMetrics(self.state_publisher))

    def _build_state_publisher(self, config: Config, pools: PoolRegistry) -> StatePublisher | None:
        """Return the publisher of the state topic; None if the config has no state topic."""
        if config.kafka is None or config.kafka.topics.state is None:
            return None
        sources = StateSources(config.host, self.snapshot, self.alerts.engine.store, pools, self.lifecycle.run_fields)
        states = StatePublisher(sources, self.publisher)
        self.alerts.on_record = states.on_alert
        self.snapshot.on_samples_replaced = states.on_samples
        return states

    @contextlib.asynccontextmanager
    async def run_in_background(self, read: Callable[[], Config] | None = None) -> AsyncIterator[str]:
        """Run the agent while the `with` block runs, and yield the endpoint's URL.

        At the end of the block, deliver the remaining records within `timeouts.shutdown`.

        Args:
            read: reads the config for a reload; None disables reloads.

        Raises:
            StartError: the endpoint cannot listen on its address.
        """
        async with (
            self._serving_endpoint() as url,
            self.publisher.delivery.run_in_background(self.config.timeouts.shutdown),
        ):
            self.publisher.continue_after_last_run()
            self.lifecycle.on_started()
            self.alerts.restore()
            self.histograms.restore()
            self.watch_task = asyncio.create_task(self._run_tasks(read or (lambda: self.config)), name="watch")
            try:
                yield url
            finally:
                has_failed = self.watch_task.done()
                await _cancel(self.watch_task)  # each session publishes a `detached` record when it ends
                if not has_failed:
                    self.lifecycle.on_stopping()
                    self.publisher.store_sample_sequences()
                    await self._stop_state_publisher()

    async def _run_tasks(self, read: Callable[[], Config]) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self.guests.set_task_group(tasks)
            self._supervisors = SupervisorGroup(self._context, self.observer, tasks)
            self.health.supervisors = self._supervisors
            self._discovery = DiscoveryManager(self._supervisors, tasks)
            self._discovery.set_discoverers(build_discoverers(self.config))
            tasks.create_task(self._run_alert_loop(), name="alert loop")
            tasks.create_task(self.lifecycle.publish_heartbeats(), name="heartbeat")
            tasks.create_task(self.publisher.store_run_id(), name="run id")
            if self.state_publisher is not None:
                self.state_publisher.restore(self.publisher.delivery.stored_persistent_entries)
                tasks.create_task(self.state_publisher.run(), name="states")
            tasks.create_task(self.storage.run(), name="storage")
            tasks.create_task(self.host_resources.run(), name="host")
            tasks.create_task(
                self._context.virtual_function_counters.run(lambda: self.config.intervals.poll), name="VF counters"
            )
            tasks.create_task(self.reloader.run(self, read), name="reload")
            self._replace_alertmanager_task()

    async def _stop_state_publisher(self) -> None:
        if self.state_publisher is not None and not self.publisher.delivery.supervisor.is_failing:
            await self.state_publisher.write_host_stopped_state(self.config.timeouts.shutdown * STATE_STOP_SHARE)

    def _replace_alertmanager_task(self) -> None:
        """Stop the Alertmanager client, and start a new client if the current config has an Alertmanager."""
        if self._alertmanager is not None:
            self._alertmanager.cancel()
        client = self._alertmanager = None
        config = self.config.alerts.alertmanager
        self.alerts.requests.settings = config.settings() if config is not None else None
        if config is not None:
            client = AlertmanagerClient(config, self.alerts.requests)
            run = client.run(self.alerts.engine.store, self.alerts.changed)
            self._alertmanager = self._tasks.create_task(run, name="alertmanager")
        self.health.alertmanager = client

    def apply_config(self, config: Config) -> None:
        """Apply the sections of a new config that can change while the agent runs: `LIVE_SECTIONS` in agent/config/reload.py."""
        before, self.config = self.config, config
        configure_logging(config.log.level, config.log.format)
        self._context.replace_settings(session_settings(config))
        self.histograms.histograms.boundaries = config.allow.latency_histograms
        self._context.histograms = self.histograms.controller_if_allowed
        self.storage.interval = config.intervals.storage
        self.host_resources.interval = config.intervals.host
        self.snapshot.limits = SeriesLimits(**config.limits.model_dump())
        if before.alerts != config.alerts:
            self.alerts.apply_config(config.alerts)
        if before.guest_agent != config.guest_agent:
            self.guests.apply_config(config.guest_agent)
        if before.alerts.pools != config.alerts.pools:
            self.storage.pool_alerts.apply_config(config.alerts.pools)
        if before.alerts.alertmanager != config.alerts.alertmanager:
            self._replace_alertmanager_task()
        self._discovery.set_discoverers(build_discoverers(config))
        polled = ("intervals", "allow", "alerts", "labels", "guest_agent")
        if any(getattr(before, name) != getattr(config, name) for name in polled):
            self._supervisors.resync()

    async def _storage_pools(self) -> list[LibvirtStoragePool]:
        return await self._discovery.storage_pools()

    async def _run_alert_loop(self) -> None:
        while True:
            await asyncio.sleep(self._limits.tick_seconds)
            await self.alerts.tick()
            await self.histograms.delete_entries_of_detached_vms()
            self.hang_detector.on_alert_loop_iteration()

    @contextlib.asynccontextmanager
    async def _serving_endpoint(self) -> AsyncIterator[str]:
        try:
            async with self.endpoint.serve_in_background() as url:
                yield url
        except EndpointSetupError as error:
            raise StartError(str(error)) from error


async def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    await asyncio.wait({task})


async def run(config: Config, read: Callable[[], Config]) -> None:
    """Run an agent until SIGTERM or SIGINT. SIGHUP reloads the config.

    Args:
        config: the config to start with.
        read: reads the config for a reload.

    Raises:
        StartError: the agent cannot start.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    agent = Agent(config)
    loop.add_signal_handler(signal.SIGHUP, agent.reloader.reload_requested.set)
    with scheduled_garbage_collection():
        await _run_until(stop, agent, read)


async def _run_until(stop: asyncio.Event, agent: Agent, read: Callable[[], Config]) -> None:
    notifier = SystemdNotifier()
    async with agent.run_in_background(read) as url:
        _log.info("endpoint: serving /metrics and the web page at %s", url)
        notifier.notify(READY="1")
        watchdog = notifier.keep_notifying(agent.health.hang_reason, agent.health.one_line_summary)
        notifying = asyncio.create_task(watchdog, name="systemd notifications")
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({stopped, agent.watch_task}, return_when=asyncio.FIRST_COMPLETED)
        await _cancel(notifying)
        notifier.notify(STOPPING="1")
        if not stopped.cancel():
            _log.info("agent: stopping")
        else:
            agent.watch_task.result()  # raise the task's error: only a bug ends this task, so the process must end
