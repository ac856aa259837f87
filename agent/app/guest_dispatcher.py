"""Passes samples from the sessions with guest agents to delivery, the snapshot, the alerts and the agent's own metrics."""

from collections.abc import Sequence

from agent.app.alert_publisher import AlertPublisher
from agent.app.dispatcher import update_snapshot_and_publish_samples
from agent.app.publisher import RecordPublisher
from agent.app.self_metrics import SelfMetrics
from agent.exposition.snapshot import Snapshot
from agent.guest.shared_types import GuestCommandOutcome
from agent.model.family import Family, Sample
from agent.model.record import Vm


class GuestDispatcher:
    """Receives what all sessions with guest agents report: implements `GuestObserver`."""

    def __init__(
        self, publisher: RecordPublisher, snapshot: Snapshot, alerts: AlertPublisher, metrics: SelfMetrics
    ) -> None:
        self._publisher = publisher
        self._snapshot = snapshot
        self._alerts = alerts
        self._metrics = metrics

    def on_guest_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample], time_ns: int) -> None:
        """Publish samples, and update the snapshot and the alerts."""
        published = update_snapshot_and_publish_samples(self._snapshot, self._publisher, vm, families, samples, time_ns)
        with self._alerts.setting_causation_id_of_alerts(published.causation_id_of_alert):
            self._alerts.on_guest_samples(vm, families, samples, time_ns)

    def on_guest_samples_outdated(self, vm: Vm, families: Sequence[Family], time_ns: int) -> None:
        """Remove the VM's values of `families` from the snapshot. Alerts keep firing, because the causes of the alerts may still exist."""
        self._snapshot.replace_samples(vm, families, (), time_ns)

    def on_guest_queries_disabled(self, vm: Vm, time_ns: int) -> None:
        """Resolve the guest-agent alerts, because no further values will arrive."""
        self._alerts.on_guest_queries_disabled(vm, time_ns)

    def on_guest_command(self, command: str, outcome: GuestCommandOutcome) -> None:
        """Count a command to a guest agent by its outcome."""
        self._metrics.guest_commands[command, outcome.value] += 1
