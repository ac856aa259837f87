"""Client of Prometheus' Alertmanager, API v2. Like Prometheus, the client sends every alert to each member of a cluster."""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import orjson

from agent.alerts.alertmanager_config import AlertmanagerConfig
from agent.alerts.alertmanager_request import AlertmanagerRequests, AlertmanagerSettings
from agent.alerts.store import AlertStore
from agent.common.backoff import retry_delay
from agent.common.http_credentials import HttpCredentials

_log = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0
"""Timeout of one request, in seconds."""
MAX_ALERTS_PER_REQUEST = 256
"""Maximum number of alerts in a request. Prometheus uses the same number (--alertmanager.notification-batch-size)."""
MAX_RESPONSE_BYTES = 1 << 20
"""Maximum size of a response that the agent reads, in bytes."""


class AlertmanagerMember:
    """Client of one Alertmanager of the cluster.

    Attributes:
        name: the URL without user and password, for log lines.
        error: why the last request failed; None after a success, or if no request was sent yet.
        up: whether the last request succeeded; None if no request was sent yet.
        alerts_sent: number of alerts that Alertmanager accepted.
        failed_requests: number of failed attempts to send the alerts.
        wake: makes `run` send the alerts now.
    """

    def __init__(self, url: str, credentials: HttpCredentials) -> None:
        self.name = re.sub(r"//[^/@]*@", "//", url)
        self.error: str | None = None
        self.up: bool | None = None
        self.alerts_sent = 0
        self.failed_requests = 0
        self.wake = asyncio.Event()
        self._url = url.rstrip("/")
        self._credentials = credentials
        self._earlier_runs_ended = False
        # Errors that were logged since the last success. A rejected client certificate causes two alternating errors.
        self._logged_errors: set[str] = set()

    async def run(
        self,
        session: aiohttp.ClientSession,
        requests: AlertmanagerRequests,
        compose: Callable[[], list[dict[str, Any]]],
    ) -> None:
        """Send the alerts each time `wake` is set, and after each resend interval, until cancelled."""
        failures = 0
        while True:
            self.wake.clear()
            alerts = compose()
            # After a failure, a request without alerts shows whether Alertmanager accepts requests again.
            if alerts or self.error is not None:
                failures = 0 if await self.send_alerts(session, requests, alerts) else failures + 1
            resend_seconds = (requests.settings or AlertmanagerSettings()).resend_seconds
            wait = retry_delay(failures, 1.0, resend_seconds) if failures else resend_seconds
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self.wake.wait()

    async def send_alerts(
        self, session: aiohttp.ClientSession, requests: AlertmanagerRequests, alerts: list[dict[str, Any]]
    ) -> bool:
        """Send the alerts, and return whether Alertmanager accepted all alerts.

        With a watchdog, first resolve the `agent_lost` alerts of the agent's earlier runs.
        """
        error = None
        try:
            options = await self._credentials.request_options()
            watchdog = requests.settings is not None and requests.settings.watchdog_seconds is not None
            if watchdog and not self._earlier_runs_ended:
                lost_alerts = await self._send_request(
                    session, "GET", options, params=requests.agent_lost_query_parameters()
                )
                if ended := requests.compose_agent_lost_resolution(orjson.loads(lost_alerts), time.time()):
                    await self._send_request(session, "POST", options, json=ended)
                self._earlier_runs_ended = True
            for start in range(0, max(1, len(alerts)), MAX_ALERTS_PER_REQUEST):
                batch = alerts[start : start + MAX_ALERTS_PER_REQUEST]
                await self._send_request(session, "POST", options, json=batch)
                self.alerts_sent += len(batch)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as failure:
            error = self._describe_failure(failure)
        if error is not None:
            self.failed_requests += 1
            if error not in self._logged_errors:
                self._logged_errors.add(error)
                _log.warning("Alertmanager at %s: cannot send alerts: %s", self.name, error)
        elif self.error is not None:
            self._logged_errors.clear()
            _log.info("Alertmanager at %s: alerts are accepted again", self.name)
        self.error, self.up = error, error is None
        return error is None

    async def _send_request(
        self, session: aiohttp.ClientSession, method: str, options: dict[str, Any], **arguments: Any
    ) -> bytes:
        """Send one request and return the response's body.

        Raises:
            ValueError: Alertmanager rejected or redirected the request, or the response is too large.
            aiohttp.ClientError, TimeoutError, OSError: no response arrived.
        """
        url = f"{self._url}/api/v2/alerts"
        # A redirect would turn the POST into a GET. Alertmanager answers a GET, but accepts no alerts in a GET.
        async with session.request(method, url, allow_redirects=False, **options, **arguments) as response:
            body = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                body += chunk
                if len(body) > MAX_RESPONSE_BYTES:
                    raise ValueError(f"HTTP {response.status}: the response is larger than {MAX_RESPONSE_BYTES} bytes")
            if 300 <= response.status < 400:
                raise ValueError(
                    f"HTTP {response.status}: redirect to {response.headers.get('Location', 'nowhere')[:200]}"
                )
            if response.status // 100 != 2:
                raise ValueError(f"HTTP {response.status}: {body[:300].decode(errors='replace')}")
            return bytes(body)

    def _describe_failure(self, failure: Exception) -> str:
        if isinstance(failure, OSError) and failure.filename and not isinstance(failure, aiohttp.ClientError):
            return f"{failure.filename}: {failure.strerror}"
        return str(failure).replace(self._url, self.name) or f"no response within {REQUEST_SECONDS:g} s"


class AlertmanagerClient:
    """Sends the firing and the recently resolved alerts to all members of an Alertmanager cluster.

    A failed member does not delay the others.

    Attributes:
        members: clients of the members, in the order of the config.
    """

    def __init__(self, config: AlertmanagerConfig, requests: AlertmanagerRequests) -> None:
        """Create a client.

        Args:
            config: the members and their credentials.
            requests: composes the requests.
        """
        credentials = HttpCredentials(config)
        self.members: Sequence[AlertmanagerMember] = [AlertmanagerMember(url, credentials) for url in config.urls]
        self._requests = requests

    async def run(self, store: AlertStore, changed: asyncio.Event) -> None:
        """Send the alerts after each change and after each resend interval, until cancelled.

        Args:
            store: the firing alerts.
            changed: the caller sets this event when an alert fires or is resolved.
        """

        def compose() -> list[dict[str, Any]]:
            return self._requests.compose(store, time.time())

        async with _new_session() as session, asyncio.TaskGroup() as tasks:
            for member in self.members:
                tasks.create_task(member.run(session, self._requests, compose), name=f"alertmanager {member.name}")
            while True:
                await changed.wait()
                changed.clear()
                for member in self.members:
                    member.wake.set()

    async def probe(self) -> None:
        """Send a request without alerts to each member, and set the members' attributes `up` and `error` to the result."""
        async with _new_session() as session:
            await asyncio.gather(*(member.send_alerts(session, self._requests, []) for member in self.members))

    def unready_reasons(self) -> list[str]:
        """Return one error for each member if no member accepts alerts; otherwise an empty list."""
        reasons = self._member_errors()
        return reasons if len(reasons) == len(self.members) else []

    def warnings(self) -> list[str]:
        """Return one error for each failed member if another member accepts alerts; otherwise an empty list."""
        reasons = self._member_errors()
        return reasons if len(reasons) < len(self.members) else []

    def _member_errors(self) -> list[str]:
        return [
            f"alerts cannot be sent to Alertmanager at {member.name}: {member.error}"
            for member in self.members
            if member.error is not None
        ]


def _new_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS))
