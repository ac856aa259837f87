"""Publishes records about the agent itself: `started`, a heartbeat at each interval, and `stopping`.

Without heartbeats, a dead agent would look like a host without events.
"""

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent import __version__
from agent.alerts.store import AlertStore
from agent.app.publisher import RecordPublisher
from agent.app.self_metrics import SelfMetrics
from agent.config.model import Config
from agent.delivery.queue import RecordQueue
from agent.exposition.snapshot import Snapshot
from agent.model.agent_lifecycle_records import HEARTBEAT, STARTED, STOPPING
from agent.model.family import Family
from agent.model.metrics.runstate import RUNSTATE
from agent.model.persistent_entry import PersistentEntry
from agent.model.record import Record, Vm
from agent.session.shared_types import MonitorState

HEARTBEAT_SECONDS = 30.0
"""Time between two heartbeats."""

LAST_RUN_ENTRY_NAME = "agent_run"
"""Name of the persistent entry about the last run. The value of the entry is `started`, or `stopped` if the run ended on request."""

MAX_UNDELIVERED_HEARTBEATS = 120
"""Maximum number of heartbeats whose delivery is tracked: the heartbeats of the last hour."""

_PREVIOUS_RUN = {"started": "died", "stopped": "stopped"}
"""How the previous run ended, by the value of the entry `LAST_RUN_ENTRY_NAME` in the journal."""


class AgentLifecycle:
    """Publishes the records about one run of the agent.

    Attributes:
        interval: seconds between two heartbeats.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        publisher: RecordPublisher,
        snapshot: Snapshot,
        alerts: AlertStore,
        metrics: SelfMetrics,
        interval: float = HEARTBEAT_SECONDS,
    ) -> None:
        """Create the publisher without publishing a record.

        Args:
            config: returns the config in use.
            publisher: publishes the records. The heartbeats describe the publisher's queues.
            snapshot: the VMs and the monitors that the heartbeats count.
            alerts: the firing alerts that the heartbeats count.
            metrics: counts the dropped events.
            interval: seconds between two heartbeats.
        """
        self.interval = interval
        self._config = config
        self._publisher = publisher
        self._snapshot = snapshot
        self._alerts = alerts
        self._metrics = metrics
        self._started_ns = time.time_ns()
        self._digest: tuple[Config | None, str] = (None, "")
        # Record id and time of publication of each heartbeat that may not be delivered yet.
        self._undelivered: deque[tuple[str, float]] = deque(maxlen=MAX_UNDELIVERED_HEARTBEATS)
        self._delivered_at = self._started_ns / 1e9

    def on_started(self) -> None:
        """Publish `qemu.agent.started`. The journal must be open, because the journal stores how the previous run ended."""
        last_run = self._publisher.delivery.stored_persistent_entries.get(LAST_RUN_ENTRY_NAME)
        previous = _PREVIOUS_RUN.get(last_run) if isinstance(last_run, str) else None
        data = self.run_fields()
        if previous is not None:
            data["previous_run"] = previous
        self._publish_record(STARTED, data, PersistentEntry(LAST_RUN_ENTRY_NAME, "started"))

    async def publish_heartbeats(self) -> None:
        """Publish a heartbeat at once, and then every `interval` seconds until cancelled."""
        while True:
            record_id = self._publish_record(HEARTBEAT, self.heartbeat_data())
            self._undelivered.append((record_id, time.time()))
            await asyncio.sleep(self.interval)

    def on_stopping(self) -> None:
        """Publish `qemu.agent.stopping`, after the sessions have ended."""
        self._publish_record(STOPPING, self.run_fields(), PersistentEntry(LAST_RUN_ENTRY_NAME, "stopped"))

    def last_delivered_heartbeat_published_at(self) -> float:
        """Return when the last delivered heartbeat was published, in seconds since the epoch.

        Return the agent's start if no heartbeat was delivered yet.
        """
        last_delivered = _sort_key_of_id(self._publisher.delivery.events.last_delivered_id)
        while self._undelivered and _sort_key_of_id(self._undelivered[0][0]) <= last_delivered:
            self._delivered_at = self._undelivered.popleft()[1]
        return self._delivered_at

    def heartbeat_data(self) -> dict[str, Any]:
        """Return the data of a heartbeat with the current values."""
        data = self.run_fields() | self._vm_fields()
        data |= {"monitors": len(self._snapshot.monitors), "firing_alerts": len(self._alerts)}
        delivery = self._publisher.delivery
        for queue in delivery.queues:
            data |= _queue_fields(queue)
            dropped = (count for (name, _), count in delivery.drops.totals.items() if name == queue.name)
            data[f"{queue.name}_dropped_records_total"] = sum(dropped)
        data["unrecorded_events_total"] = int(sum(self._metrics.events_dropped_by_reason().values()))
        return data

    def _vm_fields(self) -> dict[str, int]:
        counts = dict.fromkeys(("vms", "vms_running", "vms_stopped", "vms_unknown", "vms_stalled"), 0)
        for _, view in self._snapshot.one_view_per_uuid():
            polls = view.polls.get(RUNSTATE.name)
            running = polls.current.get((), {}).get("running") if polls is not None else None
            counts["vms"] += 1
            counts["vms_unknown" if running is None else "vms_running" if running else "vms_stopped"] += 1
            counts["vms_stalled"] += view.status.state is MonitorState.STALLED
        return counts

    def run_fields(self) -> dict[str, Any]:
        """Return the fields that describe this run of the agent."""
        return {
            "version": __version__,
            "config_digest": self._config_digest(),
            "run": self._publisher.run_id,
            "started_timestamp_seconds": self._started_ns / 1e9,
            "heartbeat_interval_seconds": self.interval,
        }

    def _config_digest(self) -> str:
        config = self._config()
        if self._digest[0] is not config:
            self._digest = config, hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]
        return self._digest[1]

    def _publish_record(self, family: Family, data: dict[str, Any], entry: PersistentEntry | None = None) -> str:
        vm = Vm(self._config().host, "", "")
        return self._publisher.publish(Record(f"qemu.{family.name}", vm, data, time.time_ns()), entry)


class HeartbeatMetrics(Collector):
    """Prometheus collector of the time of the last delivered heartbeat."""

    def __init__(self, lifecycle: AgentLifecycle) -> None:
        self._lifecycle = lifecycle

    def collect(self) -> Iterator[Metric]:
        """Yield the metric with its current value."""
        yield GaugeMetricFamily(
            "qmp_agent_heartbeat_delivered_timestamp_seconds",
            "Time when the last delivered heartbeat was published, in seconds since the epoch; before the first one, the agent's start.",
            value=self._lifecycle.last_delivered_heartbeat_published_at(),
        )


def _sort_key_of_id(record_id: str) -> tuple[str, int]:
    """Return a key that sorts the record ids of one queue in the order of publication. An empty id comes first."""
    run, _, number = record_id.partition("-")
    return run, int(number or 0)


def _queue_fields(queue: RecordQueue) -> dict[str, Any]:
    fields: dict[str, Any] = {f"{queue.name}_waiting_records": len(queue)}
    if (oldest_ns := queue.oldest_record_time_ns()) is not None:
        fields[f"{queue.name}_oldest_waiting_timestamp_seconds"] = oldest_ns / 1e9
    if queue.last_delivered_id:
        fields[f"{queue.name}_last_delivered_id"] = queue.last_delivered_id
    return fields
