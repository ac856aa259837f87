"""Client of Prometheus' Alertmanager, API v2. It sends as Prometheus does: firing alerts repeatedly, resolved ones for a while.

Alertmanager resolves an alert that is not sent again before its `endsAt`. So the alerts of an agent that dies do not fire for ever.
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
RESOLVED_SECONDS = 900.0
"""How long a resolved alert is sent; Prometheus uses the same time (rules/alerting.go: resolvedRetention)."""
ENDS_AFTER_INTERVALS = 4
"""A firing alert's `endsAt` is this many resend intervals in the future."""


class AlertmanagerClient:
    """Sends the firing and the recently resolved alerts of a store to one Alertmanager.

    Attributes:
        name: The URL for messages, without the password that it may contain.
        error: Why the last request failed; None after a success.
        resolved_seconds: How long a resolved alert is sent.
    """

    def __init__(self, url: str, resend_seconds: float, labels: Mapping[str, str]) -> None:
        """Create a client.

        Args:
            url: Base URL of the Alertmanager.
            resend_seconds: Interval between two requests without a change.
            labels: Labels that every alert gets.
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
        """Send the alerts after each change and after each resend interval, until cancelled."""
        failures = 0
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                changed.clear()
                alerts = self.compose(store, time.time())
                if (
                    alerts or self.error is not None
                ):  # after a failure, an empty request shows whether Alertmanager works again
                    failures = 0 if await self._send(session, alerts) else failures + 1
                wait = back_off(failures, 1.0, self._resend_seconds) if failures else self._resend_seconds
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await changed.wait()

    def compose(self, alerts: Iterable[Alert], now: float) -> list[dict[str, Any]]:
        """Return the body of a request at the time `now`, in seconds since the epoch.

        It holds every firing alert, and each alert that was resolved within the last `resolved_seconds`.
        """
        firing = {alert.fingerprint: alert for alert in alerts}
        for fingerprint, alert in self._firing.items():
            if fingerprint not in firing:
                self._resolved[fingerprint] = (alert, now)
        self._firing = firing
        self._resolved = {
            fingerprint: (alert, at)
            for fingerprint, (alert, at) in self._resolved.items()
            if fingerprint not in firing and now - at < self.resolved_seconds
        }
        ends = now + ENDS_AFTER_INTERVALS * self._resend_seconds
        return [
            *(self._to_json(alert, ends) for alert in firing.values()),
            *(self._to_json(alert, at) for alert, at in self._resolved.values()),
        ]

    def _to_json(self, alert: Alert, ends: float) -> dict[str, Any]:
        labels = {"alertname": alert.name, "severity": alert.severity.label, "host": alert.vm.host, "vm": alert.vm.name}
        labels |= {"vm_uuid": alert.vm.uuid, "device": alert.subject, "level": alert.level, "monitor": alert.instance}
        labels |= self._labels
        annotations = {key: str(value) for key, value in alert.data.items()} | {"summary": _summary(alert)}
        started = alert.since_ns / 1e9
        return {
            "labels": {key: value for key, value in labels.items() if value},
            "annotations": annotations | {"fingerprint": alert.fingerprint},
            "startsAt": _rfc3339(started),
            "endsAt": _rfc3339(max(ends, started)),  # Alertmanager rejects an alert that ends before it starts
        }

    async def _send(self, session: aiohttp.ClientSession, alerts: list[dict[str, Any]]) -> bool:
        """Send a request; return whether Alertmanager accepted it."""
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
    """Return an alert in one line, such as `web-3 disk0: write threshold 80%`."""
    source = " ".join(filter(None, (alert.vm.name, alert.subject)))
    # A threshold that another client set has no level of the config: show its bytes.
    level = re.sub(r"^threshold (\d+)$", lambda match: f"of {format_bytes(int(match[1]))}", alert.level)
    return " ".join(filter(None, (f"{source}:", alert.name.replace("_", " "), level)))


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
