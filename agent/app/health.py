"""Reports the health of the agent for /readyz, /healthz, the page and systemd's status line."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from agent.alerts.alertmanager import AlertmanagerClient
from agent.alerts.store import MAX_SUBJECT_ALERTS, AlertStore
from agent.app.hang_detector import HangDetector
from agent.config.model import Config
from agent.config.reload import ConfigReloader
from agent.delivery.pipeline import DeliveryPipeline
from agent.exposition.snapshot import Snapshot
from agent.http.server import HttpEndpoint
from agent.model.record import sanitize
from agent.session.shared_types import MonitorState
from agent.session.supervisor_group import SupervisorGroup

HANG_POLLS = 3
"""The agent counts as hung after this number of poll intervals without progress.

`AgentHealth.hang_reason` adds the response timeout and `HealthLimits.hang_seconds`.
"""
MAX_NAMED_MONITORS = 5
MAX_NAMED_COLLECTORS = 5


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """The times after which the agent counts as hung, and a session as stuck.

    Attributes:
        tick_seconds: interval of the alert loop.
        hang_seconds: maximum time without a poll of any VM, and without an iteration of the alert loop. Then the agent counts as hung.
            `AgentHealth.hang_reason` adds three poll intervals and one response timeout.
        stuck_seconds: a VM's session counts as stuck if a poll is overdue by more than this time. The cause is a bug or an overloaded
            host.
    """

    tick_seconds: float = 1.0
    hang_seconds: float = 30.0
    stuck_seconds: float = 60.0


@dataclass(slots=True)
class AgentHealth:
    """Derives the health of the agent from the states of its parts.

    Attributes:
        config: returns the config in use.
        snapshot: has the state of each monitor.
        delivery: has the state of the sink and the journal.
        reloader: has the outcome of the latest config reload.
        hang_detector: has the times of the latest progress.
        alerts: the firing alerts.
        limits: when the agent counts as hung, and a session as stuck.
        supervisors: the supervisors of all monitors; None before the agent starts them.
        endpoint: the HTTP endpoint; None before it is built.
        alertmanager: the client of the configured Alertmanager, or None.
    """

    config: Callable[[], Config]
    snapshot: Snapshot
    delivery: DeliveryPipeline
    reloader: ConfigReloader
    hang_detector: HangDetector
    alerts: AlertStore
    limits: HealthLimits
    supervisors: SupervisorGroup | None = None
    endpoint: HttpEndpoint | None = None
    alertmanager: AlertmanagerClient | None = None

    def unready_reasons(self) -> list[str]:
        """Return why the agent is not ready, one text for each reason; empty if the agent is ready."""
        reasons = []
        # A socket without a listener (GONE) is no failure: the VM may have ended and left its socket behind.
        states = Counter(
            status.state for status in self.snapshot.monitors.values() if status.state is not MonitorState.GONE
        )
        if states and not states[MonitorState.UP]:
            counts = ", ".join(f"{number} {state.value}" for state, number in states.items())
            reasons.append(f"none of {states.total()} monitors is up: {counts}")
        overdue = self.supervisors.overdue_seconds_by_monitor(time.monotonic()) if self.supervisors is not None else {}
        stuck = [name for name, seconds in overdue.items() if seconds > self.limits.stuck_seconds]
        reasons += [f"{name} is up, but its polls are overdue" for name in stuck[:MAX_NAMED_MONITORS]]
        if self.alertmanager is not None:
            reasons += self.alertmanager.unready_reasons()
        return reasons + self.delivery.unready_reasons()

    def warnings(self) -> list[str]:
        """Return problems that need attention although the agent is ready."""
        config_error = self.endpoint.config_error if self.endpoint is not None else None
        return [
            *self._no_monitor_warnings(),
            *self.reloader.warnings(),
            *filter(None, [config_error]),
            *self.delivery.warnings(),
            *(self.alertmanager.warnings() if self.alertmanager is not None else ()),
            *self._collector_warnings(),
            *self._uuid_clash_warnings(),
            *self._alert_warnings(),
        ]

    def _no_monitor_warnings(self) -> list[str]:
        """Return a warning if the agent has found no monitor. The agent is ready nevertheless, because a host may have no VM."""
        addresses = [address for entry in self.config().monitors for address in entry.addresses]
        if self.snapshot.monitors or not addresses:
            return []
        return [f"no monitor found yet at {', '.join(addresses)}: see `qmp-agent doctor` if VMs run on this host"]

    def _collector_warnings(self) -> list[str]:
        """Return a warning for each collector that is off because the agent cannot parse QEMU's replies."""
        warnings = [
            f"{sanitize(status.vm.name if status.vm is not None else status.monitor.name)}: collector {name} is off: {cause}"
            for status in self.snapshot.monitors.values()
            for name, cause in status.degraded
        ]
        return _shorten(warnings, MAX_NAMED_COLLECTORS, "more collectors are off")

    def _uuid_clash_warnings(self) -> list[str]:
        """Return a warning for each UUID that several running VMs have, with their monitors."""
        warnings = [
            f"UUID clash: {alert.data['monitors']}: several VMs run with UUID {alert.vm.uuid}"
            for alert in self.alerts
            if alert.name == "uuid_clash"
        ]
        return _shorten(warnings, MAX_NAMED_MONITORS, "more UUID clashes")

    def _alert_warnings(self) -> list[str]:
        """Return a warning for each VM that has reached the maximum number of firing alerts."""
        warnings = [
            f"{vm.name}: the maximum of {MAX_SUBJECT_ALERTS} alerts fire: the agent suppresses alerts of further devices"
            for vm in self.alerts.vms_at_limit()
        ]
        return _shorten(warnings, MAX_NAMED_MONITORS, "more VMs with too many alerts")

    def hang_reason(self) -> str:
        """Return why the agent hangs and should be restarted; empty if the agent makes progress."""
        config = self.config()
        hang_seconds = HANG_POLLS * config.intervals.poll + config.timeouts.response + self.limits.hang_seconds
        return self.hang_detector.hang_reason(
            vms_up=self.count_monitors_by_state()[MonitorState.UP], hang_seconds=hang_seconds
        )

    def one_line_summary(self) -> str:
        """Return one line with the number of monitors in each state, and the reasons why the agent is not ready."""
        states = ", ".join(f"{number} {state.value}" for state, number in self.count_monitors_by_state().items())
        return "; ".join([f"monitors: {states or 'none'}", *self.unready_reasons()])

    def count_monitors_by_state(self) -> Counter[MonitorState]:
        """Return the number of monitors in each state."""
        return Counter(status.state for status in self.snapshot.monitors.values())


def _shorten(warnings: list[str], maximum: int, ending: str) -> list[str]:
    """Return the first `maximum` warnings. If there are more, add a text with the number of omitted warnings and `ending`."""
    excess = len(warnings) - maximum
    return [*warnings[:maximum], f"{excess} {ending}"] if excess > 0 else warnings
