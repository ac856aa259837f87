"""Alerts sent to Alertmanager: the request bodies, and a real Alertmanager's state."""

import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import aiohttp
import pytest

from agent.alerts.alertmanager import ENDS_AFTER_INTERVALS, RESOLVED_SECONDS, AlertmanagerClient
from agent.alerts.store import Alert
from agent.app.agent import Agent
from agent.cli.demo.guest import until
from agent.config.model import Config
from agent.model.record import Severity, Vm
from tests.lab.alertmanager import Alertmanager
from tests.lab.fake_qemu import FakeQemu
from tests.lab.thin_guests import ListSink

NOW = 1_700_000_000.0
RESEND = 60.0


def alert_of(level: str = "80%", since: float = NOW, **data: object) -> Alert:
    vm = Vm("hv7", "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1", "web-3", "/run/web.qmp")
    return Alert("write_threshold", vm, "disk0", level, Severity.WARNING, int(since * 1e9), {"used_bytes": 5, **data})


def parse_time(text: str) -> float:
    assert text.endswith("Z")
    return datetime.fromisoformat(text).timestamp()


# --- Request bodies ---


def test_labels_are_stable_and_annotations_have_the_figures() -> None:
    (body,) = AlertmanagerClient("http://am:9093/", RESEND, {"cluster": "eu1"}).compose_request(
        [alert_of(since=NOW - 5)], NOW
    )
    assert body["labels"] == {
        "alertname": "write_threshold",
        "severity": "warning",
        "host": "hv7",
        "vm": "web-3",
        "vm_uuid": "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1",
        "device": "disk0",
        "level": "80%",
        "cluster": "eu1",
    }
    summary = "web-3 disk0: write threshold 80%"
    assert body["annotations"] == {"used_bytes": "5", "summary": summary, "fingerprint": alert_of().fingerprint}
    assert parse_time(body["startsAt"]) == NOW - 5


def test_the_summary_has_the_size_of_a_foreign_threshold() -> None:
    (body,) = AlertmanagerClient("http://am:9093/", RESEND, {}).compose_request(
        [alert_of(level="threshold 1441792")], NOW
    )
    assert body["annotations"]["summary"] == "web-3 disk0: write threshold of 1.38 MiB"


def test_empty_labels_are_left_out() -> None:
    (body,) = AlertmanagerClient("http://am", RESEND, {"cluster": ""}).compose_request([alert_of(level="")], NOW)
    assert {"level", "cluster"}.isdisjoint(body["labels"])


def test_a_firing_alert_ends_some_intervals_after_each_request() -> None:
    client = AlertmanagerClient("http://am", RESEND, {})
    for now in (NOW, NOW + RESEND, NOW + 9 * RESEND):
        (body,) = client.compose_request([alert_of()], now)
        assert parse_time(body["endsAt"]) == now + ENDS_AFTER_INTERVALS * RESEND
        assert parse_time(body["startsAt"]) == NOW


def test_a_resolved_alert_is_sent_for_a_limited_time() -> None:
    client = AlertmanagerClient("http://am", RESEND, {})
    client.compose_request([alert_of("80%"), alert_of("90%")], NOW)
    for now in (NOW + 1, NOW + RESOLVED_SECONDS):
        firing, resolved = client.compose_request([alert_of("90%")], now)
        assert (firing["labels"]["level"], resolved["labels"]["level"]) == ("90%", "80%")
        assert parse_time(resolved["endsAt"]) == NOW + 1
    assert len(client.compose_request([alert_of("90%")], NOW + RESOLVED_SECONDS + 1)) == 1


def test_an_alert_that_fires_again_is_not_resolved() -> None:
    client = AlertmanagerClient("http://am", RESEND, {})
    client.compose_request([alert_of()], NOW)
    client.compose_request([], NOW + 1)
    (body,) = client.compose_request([alert_of(since=NOW + 2)], NOW + 2)
    assert parse_time(body["endsAt"]) > parse_time(body["startsAt"]) == NOW + 2


def test_no_alert_ends_before_it_starts_when_clocks_differ() -> None:
    # Alertmanager rejects such an alert. QEMU's clock, which gives the start, may have been set back since.
    client = AlertmanagerClient("http://am", RESEND, {})
    client.compose_request([alert_of(since=NOW + 1000)], NOW)
    (body,) = client.compose_request([], NOW + 1)
    assert body["endsAt"] == body["startsAt"]


# --- A real Alertmanager ---


class MonitoringAgent:
    """An agent that monitors a scripted VM and sends alerts to an Alertmanager."""

    def __init__(self, fake: FakeQemu, app: Agent, url: str) -> None:
        self.fake = fake
        self.app = app
        self.url = url

    async def readiness(self) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/readyz") as response:
            return response.status, await response.text()


@contextlib.asynccontextmanager
async def monitored(fake: FakeQemu, url: str) -> AsyncIterator[MonitoringAgent]:
    config = {
        "monitors": [{"dial": str(fake.path)}],
        "host": "hv7",
        "web": {"listen_address": "127.0.0.1:0"},
        "alerts": {"alertmanager": {"url": url, "resend_interval": 1, "labels": {"cluster": "eu1"}}},
    }
    app = Agent(Config.model_validate(config), ListSink())
    async with app.running() as own:
        await until(lambda: any(s.state.value == "up" for s in app.snapshot.monitors.values()), 60)
        yield MonitoringAgent(fake, app, own)


@pytest.fixture
async def alertmanager(folder: Path) -> AsyncIterator[Alertmanager]:
    async with Alertmanager(folder / "alertmanager") as running:
        yield running


async def test_an_alert_is_sent_kept_alive_grouped_and_resolved(fake: FakeQemu, alertmanager: Alertmanager) -> None:
    async with monitored(fake, alertmanager.url) as agent:
        fake.emit("GUEST_PANICKED", {"action": "pause"})
        await until(lambda: alertmanager.notifications, 60)
        (alert,) = alertmanager.notifications[0]["alerts"]
        expected = {"alertname": "guest_panicked", "severity": "critical", "host": "hv7", "cluster": "eu1"}
        assert expected.items() <= alert["labels"].items()
        assert alert["annotations"]["help"] == "The guest's kernel panicked."
        first = (await alertmanager.alerts())[0]["endsAt"]
        fake.emit("WATCHDOG", {"action": "none"})

        async def outlived_its_first_end() -> bool:
            (group,) = await alertmanager.groups()
            assert group["labels"] == {"vm": alert["labels"]["vm"]}
            ends = {a["labels"]["alertname"]: a["endsAt"] for a in group["alerts"]}
            assert "guest_panicked" in ends
            return len(ends) == 2 and parse_time(ends["guest_panicked"]) > parse_time(first) + 2

        await until(outlived_its_first_end, 60)
        assert "resolved" not in alertmanager.statuses()
        fake.emit("RESUME")

        async def is_over() -> bool:
            return [a["labels"]["alertname"] for a in await alertmanager.alerts()] == ["watchdog"]

        await until(is_over, 60)

        def resolved_names() -> set[str]:
            alerts = [alert for notification in alertmanager.notifications for alert in notification["alerts"]]
            return {a["labels"]["alertname"] for a in alerts if a["status"] == "resolved"}

        await until(resolved_names, 60)
        assert resolved_names() == {"guest_panicked"}
        assert (await agent.readiness())[0] == 200

    async def is_silent() -> bool:
        return await alertmanager.alerts() == []

    await until(is_silent, 60)  # an agent that ended leaves no alert firing


async def test_an_unreachable_alertmanager_is_reported_and_retried(fake: FakeQemu, alertmanager: Alertmanager) -> None:
    await alertmanager.stop()
    async with monitored(fake, alertmanager.url) as agent:
        assert (await agent.readiness())[0] == 200, "nothing has to be sent yet"
        fake.emit("GUEST_PANICKED", {"action": "pause"})

        async def reports_the_error() -> bool:
            status, text = await agent.readiness()
            return status == 503 and f"alerts cannot be sent to Alertmanager at {alertmanager.url}" in text

        await until(reports_the_error, 60)
        await alertmanager.start()
        await until(lambda: alertmanager.notifications, 60)

        async def is_ready() -> bool:
            return (await agent.readiness())[0] == 200

        await until(is_ready, 60)


async def test_the_error_clears_although_the_alert_was_resolved_meanwhile(
    fake: FakeQemu, alertmanager: Alertmanager
) -> None:
    await alertmanager.stop()
    async with monitored(fake, alertmanager.url) as agent:
        fake.emit("GUEST_PANICKED", {"action": "pause"})
        client = agent.app.health.alertmanager
        assert client is not None
        client.resolved_seconds = 0.0
        await until(lambda: client.error is not None, 60)
        fake.emit("RESUME")
        await until(lambda: len(agent.app.alerts.manager.store) == 0, 60)
        await alertmanager.start()
        await until(lambda: client.error is None, 60)
