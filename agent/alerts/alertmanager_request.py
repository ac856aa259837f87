"""Bodies of requests to Prometheus' Alertmanager, API v2. Pure: the caller passes the time.

Like Prometheus, the agent repeats each firing alert, and repeats each resolved alert for `RESOLVED_SECONDS`. If the agent dies,
Alertmanager resolves the agent's alerts when their `endsAt` has passed. The annotation `resolved_by` shows why an alert was resolved.
The agent sends each firing alert with the annotation `resolved_by: agent lost`. Alertmanager keeps that annotation if the agent dies.
When the agent resolves an alert, the annotation has the true cause instead.

The watchdog is a pair of alerts about the host: `agent_running` and `agent_lost`. Inhibition rules in Alertmanager mute each of the two
alerts while the other fires. After the agent's last request, `agent_running` ends soon, and `agent_lost` ends much later. So Alertmanager
notifies about `agent_lost` after the requests stop.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from agent.alerts.store import Alert
from agent.common.durations_and_sizes import format_bytes

RESOLVED_SECONDS = 900.0
"""How long a resolved alert is repeated. Prometheus uses the same time (rules/alerting.go: resolvedRetention)."""
ENDS_AFTER_INTERVALS = 4
"""Number of resend intervals after which Alertmanager resolves a firing alert that is not sent again."""
RUNNING_INTERVALS = 3
"""Number of resend intervals after which `agent_running` ends.

`RUNNING_INTERVALS` is lower than `ENDS_AFTER_INTERVALS`, so that `agent_lost` fires before the other alerts end.
"""
RESOLVED_BY_AGENT_LOST = "agent lost"
"""Value of the annotation `resolved_by` of each firing alert. The value is true if the agent dies and Alertmanager ends the alert."""
AGENT_LOST = "agent_lost"
AGENT_RUNNING = "agent_running"


@dataclass(frozen=True, slots=True)
class AlertmanagerSettings:
    """Settings of the requests to Alertmanager.

    Attributes:
        resend_seconds: seconds between two requests while nothing changes.
        labels: labels to add to every alert.
        watchdog_seconds: how long `agent_lost` may fire after the agent's last request; None for no watchdog.
    """

    resend_seconds: float = 60.0
    labels: Mapping[str, str] = field(default_factory=dict)
    watchdog_seconds: float | None = None


class AlertmanagerRequests:
    """Composes the requests that one run of the agent sends to Alertmanager.

    Attributes:
        settings: settings of the requests; None if no Alertmanager is configured.
        resolved_seconds: how long a resolved alert is repeated, in seconds.
    """

    def __init__(self, host: str, started: float, settings: AlertmanagerSettings | None = None) -> None:
        """Create an object without alerts.

        Args:
            host: name of this host.
            started: when this run of the agent started, in seconds since the epoch.
            settings: settings of the requests; None if no Alertmanager is configured.
        """
        self.settings = settings
        self.resolved_seconds = RESOLVED_SECONDS
        self._host = host
        self._started = started
        self._run = _format_rfc3339(started)
        self._firing: dict[str, Alert] = {}
        self._resolved: dict[
            str, tuple[Alert, float, str]
        ] = {}  # by fingerprint: the alert, when it was resolved, and why
        self._causes: dict[str, str] = {}

    def on_resolved(self, fingerprint: str, cause: str) -> None:
        """Store the cause of a resolved alert, for the next request."""
        if self.settings is not None:
            self._causes[fingerprint] = cause

    def compose(self, alerts: Iterable[Alert], now: float) -> list[dict[str, Any]]:
        """Return the body of a request: the firing alerts, the recently resolved alerts and the watchdog's alerts.

        Args:
            alerts: the firing alerts.
            now: the current time in seconds since the epoch.
        """
        settings = self.settings or AlertmanagerSettings()
        self._update_alerts(alerts, now)
        ends_at = now + ENDS_AFTER_INTERVALS * settings.resend_seconds
        return [
            *self._watchdog_alerts(settings, now),
            *(_to_json(alert, ends_at, RESOLVED_BY_AGENT_LOST, settings.labels) for alert in self._firing.values()),
            *(_to_json(alert, ended, cause, settings.labels) for alert, ended, cause in self._resolved.values()),
        ]

    def _update_alerts(self, alerts: Iterable[Alert], now: float) -> None:
        firing = {alert.fingerprint: alert for alert in alerts}
        for fingerprint, alert in self._firing.items():
            if fingerprint not in firing:
                self._resolved[fingerprint] = (alert, now, self._causes.get(fingerprint, ""))
        self._firing = firing
        self._causes.clear()
        self._resolved = {
            fingerprint: (alert, ended, cause)
            for fingerprint, (alert, ended, cause) in self._resolved.items()
            if fingerprint not in firing and now - ended < self.resolved_seconds
        }

    def _watchdog_alerts(self, settings: AlertmanagerSettings, now: float) -> Iterator[dict[str, Any]]:
        """Yield the two alerts of the setting `watchdog`.

        `agent_running` comes first, so that `agent_running` inhibits `agent_lost` from the start.
        """
        if settings.watchdog_seconds is None:
            return
        for name, severity, seconds, summary in (
            (AGENT_RUNNING, "none", RUNNING_INTERVALS * settings.resend_seconds, "the agent sends alerts"),
            (AGENT_LOST, "critical", settings.watchdog_seconds, "the agent stopped sending alerts"),
        ):
            labels = {"alertname": name, "severity": severity, "host": self._host, "run": self._run}
            yield {
                "labels": labels | dict(settings.labels),
                "annotations": {"summary": f"{self._host}: {summary}"},
                "startsAt": _format_rfc3339(self._started),
                "endsAt": _format_rfc3339(max(now, self._started) + seconds),
            }

    def agent_lost_query_parameters(self) -> list[tuple[str, str]]:
        """Return the query parameters that select the `agent_lost` alerts of this host in Alertmanager."""
        host = self._host.replace("\\", "\\\\").replace('"', '\\"')
        return [("filter", f'alertname="{AGENT_LOST}"'), ("filter", f'host="{host}"')]

    def compose_agent_lost_resolution(self, alerts: object, now: float) -> list[dict[str, Any]]:
        """Return the body of a request that resolves the `agent_lost` alerts of the agent's earlier runs.

        Args:
            alerts: the JSON value that Alertmanager returned. Values of unexpected types are ignored.
            now: the current time in seconds since the epoch.
        """
        ended = []
        for alert in alerts if isinstance(alerts, list) else ():
            labels = alert.get("labels") if isinstance(alert, dict) else None
            if isinstance(labels, dict) and labels.get("alertname") == AGENT_LOST and labels.get("run") != self._run:
                begin = {"startsAt": alert["startsAt"]} if isinstance(alert.get("startsAt"), str) else {}
                annotations = {"summary": f"{self._host}: the agent runs again", "resolved_by": "agent started"}
                ended.append({"labels": labels, "annotations": annotations, **begin, "endsAt": _format_rfc3339(now)})
        return ended


def _to_json(alert: Alert, ends_at: float, resolved_by: str, extra_labels: Mapping[str, str]) -> dict[str, Any]:
    labels = {"alertname": alert.name, "severity": alert.severity.label, "host": alert.vm.host, "vm": alert.vm.name}
    labels |= {
        "vm_uuid": alert.vm.uuid,
        "device": alert.device,
        "pool": alert.pool,
        "level": alert.level,
        "monitor": alert.instance,
    }
    labels |= extra_labels
    annotations = {key: str(value) for key, value in alert.data.items()} | {"summary": _summarize(alert)}
    annotations |= {"fingerprint": alert.fingerprint, "resolved_by": resolved_by}
    started = alert.since_ns / 1e9
    return {
        "labels": {key: value for key, value in labels.items() if value},
        "annotations": {key: value for key, value in annotations.items() if value},
        "startsAt": _format_rfc3339(started),
        "endsAt": _format_rfc3339(max(ends_at, started)),  # Alertmanager rejects an alert that ends before its start
    }


def _summarize(alert: Alert) -> str:
    """Return a summary of an alert in one line, such as `web-3 disk0: write threshold 80%`."""
    source = " ".join(filter(None, (alert.vm.name, alert.subject)))
    # A threshold that another QMP client set has no level in the config. The alert's level is then `threshold BYTES`.
    level = re.sub(r"^threshold (\d+)$", lambda match: f"of {format_bytes(int(match[1]))}", alert.level)
    return " ".join(filter(None, (f"{source}:", alert.name.replace("_", " "), level)))


def _format_rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
