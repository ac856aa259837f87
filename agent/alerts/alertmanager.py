"""Client of Prometheus' Alertmanager, API v2.

The client sends alerts like Prometheus: it repeats a firing alert, and it repeats a resolved alert for `RESOLVED_SECONDS`.
Alertmanager resolves an alert if nothing repeats it before its `endsAt`. So no alert fires for ever after the agent has died.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import aiohttp

from agent.alerts.store import Alert, AlertStore
from agent.common.backoff import back_off
from agent.common.units import format_bytes

_log = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0
"""Timeout of one request."""
RESOLVED_SECONDS = 900.0
"""How long a resolved alert is repeated. Prometheus uses the same time (rules/alerting.go: resolvedRetention)."""
ENDS_AFTER_INTERVALS = 4
"""Number of resend intervals after which Alertmanager resolves a firing alert that is not sent again."""


class AlertmanagerClient:
    """Sends the firing and the recently resolved alerts to one Alertmanager.

    Attributes:
        name: The Alertmanager's URL without user and password, for messages.
        error: Why the last request failed; None if the last request succeeded or none was sent.
        resolved_seconds: How long a resolved alert is repeated.
    """

    def __init__(self, url: str, resend_seconds: float, labels: Mapping[str, str]) -> None:
        """Create a client.

        Args:
            url: URL of the Alertmanager, without /api/v2.
            resend_seconds: Seconds between two requests while no alert fires or is resolved.
            labels: Labels to add to every alert.
        """
        self.name = re.sub(r"//[^/@]*@", "//", url)
        self.error: str | None = None
        self._url = url.rstrip("/")
        self._resend_seconds = resend_seconds
        self.resolved_seconds = RESOLVED_SECONDS
        self._labels = labels
        self._firing: dict[str, Alert] = {}
        self._resolved: dict[str, tuple[Alert, float]] = {}

    async def run(self, store: AlertStore, changed: asyncio.Event) -> None:
        """Send the alerts after each change and after each resend interval, until cancelled.

        Args:
            store: The firing alerts.
            changed: Set by the caller when an alert fires or is resolved.
        """
        failures = 0
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                changed.clear()
                alerts = self.compose_request(store, time.time())
                # After a failure, a request without alerts shows whether Alertmanager accepts requests again.
                if alerts or self.error is not None:
                    failures = 0 if await self._send(session, alerts) else failures + 1
                wait = back_off(failures, 1.0, self._resend_seconds) if failures else self._resend_seconds
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await changed.wait()

    def compose_request(self, alerts: Iterable[Alert], now: float) -> list[dict[str, Any]]:
        """Return the body of a request: the firing alerts, and the alerts that were resolved within the last `resolved_seconds`.

        Args:
            alerts: The firing alerts.
            now: The current time in seconds since the epoch.
        """
        firing = {alert.fingerprint: alert for alert in alerts}
        for fingerprint, alert in self._firing.items():
            if fingerprint not in firing:
                self._resolved[fingerprint] = (alert, now)
        self._firing = firing
        self._resolved = {
            fingerprint: (alert, resolved_at)
            for fingerprint, (alert, resolved_at) in self._resolved.items()
            if fingerprint not in firing and now - resolved_at < self.resolved_seconds
        }
        ends_at = now + ENDS_AFTER_INTERVALS * self._resend_seconds
        return [
            *(self._to_json(alert, ends_at) for alert in firing.values()),
            *(self._to_json(alert, resolved_at) for alert, resolved_at in self._resolved.values()),
        ]

    def _to_json(self, alert: Alert, ends_at: float) -> dict[str, Any]:
        labels = {"alertname": alert.name, "severity": alert.severity.label, "host": alert.vm.host, "vm": alert.vm.name}
        labels |= {
            "vm_uuid": alert.vm.uuid,
            "device": alert.device,
            "pool": alert.pool,
            "level": alert.level,
            "monitor": alert.instance,
        }
        labels |= self._labels
        annotations = {key: str(value) for key, value in alert.data.items()} | {"summary": _summary(alert)}
        started = alert.since_ns / 1e9
        return {
            "labels": {key: value for key, value in labels.items() if value},
            "annotations": annotations | {"fingerprint": alert.fingerprint},
            "startsAt": _rfc3339(started),
            "endsAt": _rfc3339(max(ends_at, started)),  # Alertmanager rejects an alert that ends before it starts
        }

    async def _send(self, session: aiohttp.ClientSession, alerts: list[dict[str, Any]]) -> bool:
        """Send the alerts in one request; return whether Alertmanager accepted it."""
        try:
            async with session.post(f"{self._url}/api/v2/alerts", json=alerts) as response:
                body = (await response.text())[:300]
                error = None if response.status == 200 else f"HTTP {response.status}: {body}"
        except (aiohttp.ClientError, TimeoutError, OSError) as failure:
            error = str(failure).replace(self._url, self.name) or f"no response within {REQUEST_SECONDS:g} s"
        if error is not None and error != self.error:
            _log.warning("Alertmanager at %s: cannot send alerts: %s", self.name, error)
        self.error = error
        return error is None


def _summary(alert: Alert) -> str:
    """Return a text of one line about an alert, such as `web-3 disk0: write threshold 80%`."""
    source = " ".join(filter(None, (alert.vm.name, alert.subject)))
    # The level of another client's threshold is not from the config: it has the form `threshold BYTES`.
    level = re.sub(r"^threshold (\d+)$", lambda match: f"of {format_bytes(int(match[1]))}", alert.level)
    return " ".join(filter(None, (f"{source}:", alert.name.replace("_", " "), level)))


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
