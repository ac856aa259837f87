"""The HTTP endpoint's view of the agent, as JSON-compatible values."""

from collections.abc import Iterable
from typing import Any

from agent import __version__
from agent.alerts.store import Alert
from agent.app.alert_publisher import AlertPublisher
from agent.app.health import AgentHealth
from agent.app.publisher import RecordPublisher
from agent.app.self_metrics import SelfMetrics
from agent.delivery.pipeline import DeliveryPipeline
from agent.exposition.snapshot import Snapshot
from agent.model.record import Vm

_ALERT_FIELDS = (
    "free_bytes",
    "limit_bytes",
    "used_bytes",
    "growth_bytes_per_second",
    "time_to_full_seconds",
    "detected_by",
)
"""The fields of an alert's data that the overview shows; the alert's record has all fields."""


class EndpointView:
    """The endpoint's read-only view of the agent (http.handlers.AgentView)."""

    def __init__(
        self,
        host: str,
        snapshot: Snapshot,
        publisher: RecordPublisher,
        alerts: AlertPublisher,
        metrics: SelfMetrics,
        health: AgentHealth,
    ) -> None:
        self.snapshot = snapshot
        self.broadcaster = publisher.broadcaster
        self._host = host
        self._delivery = publisher.delivery
        self._alerts = alerts.manager
        self._metrics = metrics
        self._health = health

    def render_self_metrics(self) -> bytes:
        """Return the agent's own series in the text format."""
        return self._metrics.render()

    def unready_reasons(self) -> list[str]:
        """Return why the agent does not do all of its work; empty if it does."""
        return self._health.unready_reasons()

    def warnings(self) -> list[str]:
        """Return what an operator should look at although the agent does all of its work."""
        return self._health.warnings()

    def hang_reason(self) -> str:
        """Return why the process should be restarted; empty if it makes progress."""
        return self._health.hang_reason()

    def health(self) -> dict[str, Any]:
        """Return the health of the agent."""
        return {
            "host": self._host,
            "version": __version__,
            "unready_reasons": self.unready_reasons(),
            "warnings": self.warnings(),
            **_delivery(self._delivery),
            "events_dropped": self._metrics.dropped_by_reason(),
        }

    def firing_alerts(self) -> list[dict[str, Any]]:
        """Return the firing alerts, the most severe first, then the oldest."""
        return _alerts(self._alerts.store)

    def resolved_levels(self, vm: Vm, device: str) -> list[tuple[str, int]]:
        """Return the alert levels of a disk, each as its text and its bytes."""
        return [(level.text, level.bytes) for level in self._alerts.levels(vm, device)]

    def on_scrape(self, seconds: float) -> None:
        """Record how long a scrape took."""
        self._metrics.scrape_seconds.set(seconds)


def _delivery(delivery: DeliveryPipeline) -> dict[str, Any]:
    supervisor, journal = delivery.supervisor, delivery.journal
    state: dict[str, Any] = {
        "sink": {"name": supervisor.sink.name, "error": supervisor.error if supervisor.failing else None},
        "delivered": supervisor.delivered,
        "reconnects": supervisor.reconnects,
        "queues": [
            {
                "name": queue.name,
                "records": len(queue),
                "memory_bytes": queue.memory_bytes,
                "disk_bytes": queue.backlog.stored.bytes,
                "oldest_record_age_seconds": round(queue.oldest_age_seconds(), 1),
            }
            for queue in delivery.queues
        ],
        "dropped": [
            {"queue": queue, "reason": reason, "records": count}
            for (queue, reason), count in delivery.drops.totals.items()
        ],
    }
    if journal is not None:
        state["journal"] = {"error": journal.error, "quarantined": journal.quarantined}
    return state


def _alerts(store: Iterable[Alert]) -> list[dict[str, Any]]:
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
        for alert in sorted(store, key=lambda alert: (-alert.severity, alert.since_ns))
    ]
