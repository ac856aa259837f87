"""Alerts to Prometheus' Alertmanager, by its v2 API, as Prometheus itself sends them: firing ones again and again, resolved ones a while.

Alertmanager ends an alert by itself when it is not sent again before its `endsAt`; so an agent that dies leaves nothing firing for ever.
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
"""How long resolved alerts are sent, as Prometheus does (rules/alerting.go: resolvedRetention)."""
BEATS = 4
"""For how many sendings a firing alert is said to last."""


class AlertmanagerClient:
    """Keeps one Alertmanager told of a book of alerts."""

    def __init__(self, url: str, resend_seconds: float, labels: Mapping[str, str]) -> None:
        self.name = re.sub(r"//[^/@]*@", "//", url)
        """Its address for people: without the password that may stand in it."""
        self._url = url.rstrip("/")
        self.trouble: str | None = None
        """Why the last sending failed, or None."""
        self._resend = resend_seconds
        self._labels = labels
        self._firing: dict[str, Alert] = {}
        self._resolved: dict[str, tuple[Alert, float]] = {}

    async def run(self, book: AlertStore, changed: asyncio.Event) -> None:
        """Send the book when it has changed and every so often, until cancelled."""
        failures = 0
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                changed.clear()
                alerts = self.compose(book, time.time())
                if (
                    alerts or self.trouble is not None
                ):  # nothing at all can be sent too, and tells whether the trouble is over
                    failures = 0 if await self._send(session, alerts) else failures + 1
                wait = back_off(failures, 1.0, self._resend) if failures else self._resend
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await changed.wait()

    def compose(self, book: Iterable[Alert], now: float) -> list[dict[str, Any]]:
        """Return what is to be sent at that time, seconds since the epoch: all that fires, and what was resolved not long ago."""
        firing = {alert.fingerprint: alert for alert in book}
        for fingerprint, alert in self._firing.items():
            if fingerprint not in firing:
                self._resolved[fingerprint] = (alert, now)
        self._firing = firing
        self._resolved = {
            f: (a, at) for f, (a, at) in self._resolved.items() if f not in firing and now - at < RESOLVED_SECONDS
        }
        lasting = now + BEATS * self._resend
        return [
            *(self._alert(a, lasting) for a in firing.values()),
            *(self._alert(a, at) for a, at in self._resolved.values()),
        ]

    def _alert(self, alert: Alert, ends: float) -> dict[str, Any]:
        labels = {"alertname": alert.name, "severity": alert.severity.label, "host": alert.vm.host, "vm": alert.vm.name}
        labels |= {"vm_uuid": alert.vm.uuid, "device": alert.subject, "level": alert.level, **self._labels}
        annotations = {key: str(value) for key, value in alert.data.items()} | {"summary": _summary(alert)}
        return {
            "labels": {key: value for key, value in labels.items() if value},
            "annotations": annotations | {"fingerprint": alert.fingerprint},
            "startsAt": _instant(alert.since_ns / 1e9),
            "endsAt": _instant(max(ends, alert.since_ns / 1e9)),  # one that ended before it began is refused
        }

    async def _send(self, session: aiohttp.ClientSession, alerts: list[dict[str, Any]]) -> bool:
        try:
            async with session.post(f"{self._url}/api/v2/alerts", json=alerts) as response:
                said = (await response.text())[:300]
                trouble = None if response.status == 200 else f"{response.status}: {said}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            trouble = str(error).replace(self._url, self.name) or "no answer in time"
        if trouble is not None and trouble != self.trouble:
            _log.warning("Alertmanager at %s cannot be told: %s", self.name, trouble)
        self.trouble = trouble
        return trouble is None


def _summary(alert: Alert) -> str:
    """Return an alert in a line: `web-3 disk0: write threshold 80%`."""
    whose = " ".join(filter(None, (alert.vm.name, alert.subject)))
    # Somebody else's threshold has no level of ours: its bytes.
    level = re.sub(r"^threshold (\d+)$", lambda found: f"of {format_bytes(int(found[1]))}", alert.level)
    return " ".join(filter(None, (f"{whose}:", alert.name.replace("_", " "), level)))


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
