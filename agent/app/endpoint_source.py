"""Gives the HTTP endpoint the agent's state as values that JSON can encode."""

import os
from collections.abc import Iterable
from typing import Any

from agent import __version__
from agent.alerts.catalogue import ALERT_CATALOGUE
from agent.alerts.store import Alert
from agent.app.alert_publisher import AlertPublisher
from agent.app.health import AgentHealth
from agent.app.publisher import RecordPublisher
from agent.app.self_metrics import SelfMetrics
from agent.app.state_publisher import StatePublisher
from agent.delivery.pipeline import DeliveryPipeline
from agent.exposition.snapshot import Snapshot
from agent.model.record import Vm
from agent.session.disk_histogram_state_machine import HistogramState
from agent.session.latency_histogram_tracker import LatencyHistogramTracker

_ALERT_FIELDS = (
    "free_bytes",
    "limit_bytes",
    "used_bytes",
    "growth_bytes_per_second",
    "time_to_full_seconds",
    "detected_by",
    "vms",
    "vm_names",
)
"""Fields of an alert's data that /overview contains. The alert's record has all fields."""


def describe_alerts() -> dict[str, dict[str, str]]:
    """Return each alert's meaning, usual causes and remedy in Markdown, by the alert's name."""
    return {
        info.name: {"help": info.help, "cause": info.runbook.cause, "action": info.runbook.action}
        for info in ALERT_CATALOGUE.values()
    }


class AgentEndpointSource:
    """The agent's state for the HTTP endpoint: implements `agent.http.handlers.EndpointSource`."""

    def __init__(
        self,
        host: str,
        snapshot: Snapshot,
        publisher: RecordPublisher,
        alerts: AlertPublisher,
        metrics: SelfMetrics,
        health: AgentHealth,
        states: StatePublisher | None = None,
        histograms: LatencyHistogramTracker | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.broadcaster = publisher.broadcaster
        self._host = host
        self._delivery = publisher.delivery
        self._alerts = alerts.engine
        self._metrics = metrics
        self._health = health
        self._states = states
        self._histograms = histograms or LatencyHistogramTracker()
        self._capacity = {
            "cpus": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        }

    def render_self_metrics(self) -> bytes:
        """Return the agent's metrics about itself in Prometheus' text format."""
        return self._metrics.render()

    def unready_reasons(self) -> list[str]:
        """Return why the agent is not ready, one text for each reason; empty if the agent is ready."""
        return self._health.unready_reasons()

    def warnings(self) -> list[str]:
        """Return problems that need attention although the agent is ready."""
        return self._health.warnings()

    def hang_reason(self) -> str:
        """Return why the agent hangs and should be restarted; empty if the agent makes progress."""
        return self._health.hang_reason()

    def agent_health(self) -> dict[str, Any]:
        """Return the host's capacity, the agent's problems, and the state of the sink, the queues and the journal."""
        return {
            "host": self._host,
            "version": __version__,
            **self._capacity,
            "unready_reasons": self.unready_reasons(),
            "warnings": self.warnings(),
            **_delivery_json(self._delivery),
            "events_dropped": self._metrics.events_dropped_by_reason(),
        }

    def firing_alerts(self) -> list[dict[str, Any]]:
        """Return the firing alerts by severity, the highest first, and then by age, the oldest first."""
        return _alerts_json(self._alerts.store)

    def describe_alerts(self) -> dict[str, dict[str, str]]:
        """Return each alert's meaning, usual causes and remedy in Markdown, by the alert's name."""
        return describe_alerts()

    def disk_alert_levels_in_bytes(self, vm: Vm, device: str) -> list[tuple[str, int]]:
        """Return the alert levels of a disk, each as its text in the config and as a number of bytes."""
        return [(level.text, level.bytes) for level in self._alerts.disk_lookup.levels_of_disk(vm, device)]

    def latency_histogram_owner(self, vm: Vm, device: str) -> str:
        """Return who has set a disk's latency histograms: `agent` or `other`; empty if unknown."""
        state = self._histograms.disk_state(vm, device)
        return state.value if state in (HistogramState.OURS, HistogramState.FOREIGN) else ""

    def rewrite_state_topic(self) -> int | None:
        """Schedule all states to be written to the state topic again. Return the number of states; None without a state topic."""
        return self._states.rewrite_all() if self._states is not None else None

    def set_last_scrape_duration_seconds(self, seconds: float) -> None:
        """Set the metric of the last scrape's duration in seconds."""
        self._metrics.scrape_duration_seconds.set(seconds)


def _delivery_json(delivery: DeliveryPipeline) -> dict[str, Any]:
    supervisor, journal = delivery.supervisor, delivery.journal
    state: dict[str, Any] = {
        "sink": {"name": supervisor.sink.name, "error": supervisor.error if supervisor.is_failing else None},
        "delivered": supervisor.delivered,
        "reconnects": supervisor.reconnects,
        "queues": [
            {
                "name": queue.name,
                "records": len(queue),
                "memory_bytes": queue.memory_bytes,
                "disk_bytes": queue.backlog.stored_size.bytes,
                "oldest_record_age_seconds": round(queue.oldest_record_age_seconds(), 1),
            }
            for queue in delivery.queues
        ],
        "dropped": [
            {"queue": queue, "reason": reason, "records": count}
            for (queue, reason), count in delivery.drops.totals.items()
        ],
    }
    if journal is not None:
        state["journal"] = {"error": journal.error, "quarantined": journal.quarantined_files}
    return state


def _alerts_json(alerts: Iterable[Alert]) -> list[dict[str, Any]]:
    return [
        {
            "alert": alert.name,
            "uuid": alert.vm.uuid,
            "vm": alert.vm.name,
            "subject": alert.subject,
            "level": alert.level,
            "severity": alert.severity.label,
            "since": alert.since_ns / 1e9,
            "fingerprint": alert.fingerprint,
        }
        | {name: alert.data[name] for name in _ALERT_FIELDS if name in alert.data}
        for alert in sorted(alerts, key=lambda alert: (-alert.severity, alert.since_ns))
    ]
