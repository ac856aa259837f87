"""Alerts sent to a real Alertmanager: grouping, resolution, outages, credentials, a high-availability set and the watchdog."""

import contextlib
import ssl
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import bcrypt
import pytest
import yaml
from aiohttp import encode_basic_auth, web
from aiohttp.test_utils import TestServer

from agent.alerts.alertmanager import AlertmanagerClient
from agent.app.agent import Agent
from agent.cli.check import run_all_checks
from agent.config.model import Config
from tests.lab.alertmanager import Alertmanager
from tests.lab.fake_qemu import FakeQemu
from tests.lab.kafka_security import Certificates
from tests.lab.machine import free_port
from tests.lab.thin_guests import ListSink
from tests.lab.waiting import until

KEPT_SECONDS = 3
"""Resend interval of an agent whose alerts must not end. They end after four intervals, if the agent gets no CPU time for so long."""


def parse_time(text: str) -> float:
    assert text.endswith("Z")
    return datetime.fromisoformat(text).timestamp()


class MonitoringAgent:
    """An agent that monitors a scripted VM and sends alerts to an Alertmanager."""

    def __init__(self, fake: FakeQemu, app: Agent, url: str) -> None:
        self.fake = fake
        self.app = app
        self.url = url

    def panic(self) -> None:
        """Let the guest panic. QEMU's run state says so, too: else the next poll would resolve the alert."""
        self.fake.replies["query-status"] = {"status": "guest-panicked", "running": False}
        self.fake.emit("GUEST_PANICKED", {"action": "pause"})

    def resume(self) -> None:
        """Let the guest continue."""
        self.fake.replies["query-status"] = {"status": "running", "running": True}
        self.fake.emit("RESUME")

    async def readiness(self) -> tuple[int, str]:
        return await self._get("/readyz")

    async def metrics(self) -> str:
        return (await self._get("/metrics"))[1]

    async def _get(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
            return response.status, await response.text()


@contextlib.asynccontextmanager
async def monitored(fake: FakeQemu, *urls: str, **options: Any) -> AsyncIterator[MonitoringAgent]:
    """Run an agent that sends alerts to these Alertmanagers. The options are keys of the config section."""
    alertmanager = {"urls": list(urls), "resend_interval": 1, "labels": {"cluster": "eu1"}} | options
    config = {
        "monitors": [{"dial": str(fake.path)}],
        "host": "hv7",
        "web": {"listen_address": "127.0.0.1:0"},
        "alerts": {"alertmanager": alertmanager},
    }
    app = Agent(Config.model_validate(config), ListSink())
    async with app.run_in_background() as own:
        await until(lambda: any(s.state.value == "up" for s in app.snapshot.monitors.values()), 180)
        yield MonitoringAgent(fake, app, own)


def resolution_causes(alertmanager: Alertmanager) -> dict[str, str]:
    """Return the annotation `resolved_by` of each alert in the receiver's notifications of resolved alerts, by alert name."""
    alerts = [alert for notification in alertmanager.notifications for alert in notification["alerts"]]
    return {a["labels"]["alertname"]: a["annotations"]["resolved_by"] for a in alerts if a["status"] == "resolved"}


@pytest.fixture
async def alertmanager(folder: Path) -> AsyncIterator[Alertmanager]:
    async with Alertmanager(folder / "alertmanager") as running:
        yield running


async def test_an_alert_is_sent_kept_alive_grouped_and_resolved(fake: FakeQemu, alertmanager: Alertmanager) -> None:
    async with monitored(fake, alertmanager.url, resend_interval=KEPT_SECONDS) as agent:
        agent.panic()
        await until(lambda: alertmanager.notifications, 180)
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

        await until(outlived_its_first_end, 180)
        assert "resolved" not in alertmanager.statuses()
        agent.resume()

        async def is_over() -> bool:
            return [a["labels"]["alertname"] for a in await alertmanager.alerts()] == ["watchdog"]

        await until(is_over, 180)

        def resolved_names() -> set[str]:
            alerts = [alert for notification in alertmanager.notifications for alert in notification["alerts"]]
            return {a["labels"]["alertname"] for a in alerts if a["status"] == "resolved"}

        await until(resolved_names, 180)
        assert resolved_names() == {"guest_panicked"}
        assert resolution_causes(alertmanager) == {"guest_panicked": "RESUME"}
        assert (await agent.readiness())[0] == 200

    async def is_silent() -> bool:
        return await alertmanager.alerts() == []

    await until(is_silent, 180)  # an agent that ended leaves no alert firing
    await until(lambda: "watchdog" in resolution_causes(alertmanager), 180)
    assert resolution_causes(alertmanager)["watchdog"] == "agent lost"


async def test_an_unreachable_alertmanager_is_reported_and_retried(fake: FakeQemu, alertmanager: Alertmanager) -> None:
    await alertmanager.stop()
    async with monitored(fake, alertmanager.url) as agent:
        assert (await agent.readiness())[0] == 200, "nothing has to be sent yet"
        agent.panic()

        async def reports_the_error() -> bool:
            status, text = await agent.readiness()
            return status == 503 and f"alerts cannot be sent to Alertmanager at {alertmanager.url}" in text

        await until(reports_the_error, 180)
        await alertmanager.start()
        await until(lambda: alertmanager.notifications, 180)

        async def is_ready() -> bool:
            return (await agent.readiness())[0] == 200

        await until(is_ready, 180)


async def test_the_error_clears_although_the_alert_was_resolved_meanwhile(
    fake: FakeQemu, alertmanager: Alertmanager
) -> None:
    await alertmanager.stop()
    async with monitored(fake, alertmanager.url) as agent:
        agent.panic()
        client = agent.app.health.alertmanager
        assert client is not None
        (member,) = client.members
        agent.app.alerts.requests.resolved_seconds = 0.0
        await until(lambda: member.error is not None, 180)
        agent.resume()
        await until(lambda: len(agent.app.alerts.engine.store) == 0, 180)
        await alertmanager.start()
        await until(lambda: member.error is None, 180)


# --- A high-availability set ---


async def test_each_member_of_a_set_receives_the_alerts_and_has_a_state(
    fake: FakeQemu, alertmanager: Alertmanager, folder: Path
) -> None:
    async with Alertmanager(folder / "second") as second:
        await second.stop()
        async with monitored(fake, alertmanager.url, second.url) as agent:
            agent.panic()
            await until(lambda: alertmanager.notifications, 180)

            async def names_the_failed_member() -> bool:
                return f"alerts cannot be sent to Alertmanager at {second.url}" in (await agent.readiness())[1]

            await until(names_the_failed_member, 180)
            assert (await agent.readiness())[0] == 200, "one member is enough"
            metrics = await agent.metrics()
            assert f'qmp_agent_alertmanager_up{{alertmanager="{alertmanager.url}"}} 1.0' in metrics
            assert f'qmp_agent_alertmanager_up{{alertmanager="{second.url}"}} 0.0' in metrics
            assert f'qmp_agent_alertmanager_alerts_sent_total{{alertmanager="{second.url}"}} 0.0' in metrics
            await second.start()
            await until(lambda: second.notifications, 180)
            await until(lambda: all(member.up for member in client_of(agent).members), 180)


async def test_a_set_notifies_once_and_goes_on_when_a_member_ends(fake: FakeQemu, folder: Path) -> None:
    async with (
        Alertmanager(folder / "first", peer="") as first,
        Alertmanager(folder / "second", peer=first.cluster_address) as second,
        monitored(fake, first.url, second.url, resend_interval=30) as agent,
    ):
        await until_connected(first, second)
        agent.panic()
        await until(lambda: first.notifications or second.notifications, 180)
        notifier, other = (first, second) if first.notifications else (second, first)
        await notifier.stop()
        fake.emit("WATCHDOG", {"action": "none"})
        await until(lambda: other.notifications, 180)
        names = [{a["labels"]["alertname"] for a in notification["alerts"]} for notification in other.notifications]
        assert names[0] == {"guest_panicked", "watchdog"}, "the panic alone was not notified a second time"
        await until(lambda: any(member.error for member in client_of(agent).members), 180)
        assert (await agent.readiness())[0] == 200


async def until_connected(*members: Alertmanager) -> None:
    """Wait until the members know each other."""

    async def connected() -> bool:
        return all([len(await member.peers()) == len(members) for member in members])

    await until(connected, 180)


def client_of(agent: MonitoringAgent) -> AlertmanagerClient:
    client = agent.app.health.alertmanager
    assert client is not None
    return client


async def test_check_reports_each_member(alertmanager: Alertmanager) -> None:
    unused = f"http://127.0.0.1:{free_port()}"
    config = {"monitors": [{"dial": "/nowhere"}], "alerts": {"alertmanager": {"urls": [alertmanager.url, unused]}}}
    findings = [finding async for finding in run_all_checks(Config.model_validate(config))]
    first, second = (finding for finding in findings if finding.text.startswith("Alertmanager: "))
    assert (first.ok, first.text) == (True, f"Alertmanager: {alertmanager.url}")
    assert not second.ok
    assert second.text.startswith(f"Alertmanager: {unused}: Cannot connect")


# --- Credentials ---


async def test_tls_a_client_certificate_and_a_password_are_read_again(fake: FakeQemu, folder: Path) -> None:
    own, foreign = Certificates.make(folder / "own"), Certificates.make(folder / "foreign")
    password = folder / "password"
    tls = {"cert_file": str(own.server), "key_file": str(own.server)}
    tls |= {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": str(own.authority)}
    users = {"hv7": bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()}
    web_config = {"tls_server_config": tls, "basic_auth_users": users}
    alertmanager = Alertmanager(folder / "secured", web_config=web_config)
    context = ssl.create_default_context(cafile=own.authority)
    context.load_cert_chain(own.client)
    alertmanager.client = {"ssl": context, "headers": {"Authorization": encode_basic_auth("hv7", "right")}}
    client, authority = folder / "client.pem", folder / "authority.pem"
    options = {
        "tls": {"ca": str(authority), "certificate": str(client)},
        "basic_auth": {"username": "hv7", "password_file": str(password)},
    }
    async with alertmanager, monitored(fake, alertmanager.url, **options) as agent:
        agent.panic()
        (member,) = client_of(agent).members

        async def error_has(text: str) -> None:
            await until(lambda: member.error is not None and text in member.error, 180)

        await error_has(f"{authority}: No such file or directory")
        authority.write_bytes(foreign.authority.read_bytes())
        client.write_bytes(foreign.client.read_bytes())
        await error_has(f"{password}: No such file or directory")
        password.write_text("wrong\n")
        await error_has("certificate verify failed")
        authority.write_bytes(own.authority.read_bytes())
        await error_has("BAD_CERTIFICATE")
        client.write_bytes(own.client.read_bytes())
        await error_has("HTTP 401")
        password.write_text("right\n")
        await until(lambda: member.error is None, 180)
        await until(lambda: alertmanager.notifications, 180)


async def test_a_bearer_token_is_read_for_each_request_and_redirects_are_errors(fake: FakeQemu, folder: Path) -> None:
    token, received = folder / "token", []
    token.write_text("first\n")

    async def receive(request: web.Request) -> web.Response:
        received.append(request.headers.get("Authorization"))
        if received[-1] == "Bearer third":
            raise web.HTTPFound("https://elsewhere/login")
        return web.Response(status=200 if received[-1] == "Bearer second" else 403, text="wrong token")

    app = web.Application()
    app.router.add_post("/am/api/v2/alerts", receive)
    async with (
        TestServer(app) as server,
        monitored(fake, str(server.make_url("/am/")), bearer_token_file=str(token)) as agent,
    ):
        agent.panic()
        (member,) = client_of(agent).members
        await until(lambda: member.error == "HTTP 403: wrong token", 180)
        token.write_text("second\n")
        await until(lambda: member.up and "Bearer second" in received, 180)
        token.write_text("third\n")
        await until(lambda: member.error == "HTTP 302: redirect to https://elsewhere/login", 180)


# --- The watchdog ---


async def test_a_dead_agent_fires_agent_lost_before_its_alerts_end(fake: FakeQemu, folder: Path) -> None:
    settings = yaml.safe_load((Path(__file__).parents[3] / "deploy/compose/alertmanager.yml").read_text())
    rules = [rule for rule in settings["inhibit_rules"] if "agent_lost" in str(rule)]
    assert len(rules) == 2
    async with Alertmanager(folder / "alertmanager", inhibit_rules=rules) as alertmanager:

        def notified() -> list[tuple[str, str]]:
            alerts = [alert for notification in alertmanager.notifications for alert in notification["alerts"]]
            return [(alert["labels"]["alertname"], alert["status"]) for alert in alerts]

        async with monitored(fake, alertmanager.url, watchdog="1d", resend_interval=KEPT_SECONDS) as agent:
            agent.panic()
            await until(lambda: ("guest_panicked", "firing") in notified(), 180)
            member = client_of(agent).members[0]
            await until(lambda: member.alerts_sent >= 9, 180)  # three requests
            assert {name for name, _ in notified()} == {"guest_panicked"}, "the watchdog's alerts inhibit each other"
        # The agent has ended: nothing repeats its alerts.
        await until(lambda: ("guest_panicked", "resolved") in notified(), 180)
        assert resolution_causes(alertmanager)["guest_panicked"] == "agent lost"
        assert ("agent_lost", "firing") in notified()
        assert notified().index(("agent_lost", "firing")) < notified().index(("guest_panicked", "resolved"))
        async with monitored(fake, alertmanager.url, watchdog="1d"):
            await until(lambda: ("agent_lost", "resolved") in notified(), 180)
            assert resolution_causes(alertmanager)["agent_lost"] == "agent started"
        assert "agent_running" not in {name for name, _ in notified()}
