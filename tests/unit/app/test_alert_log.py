"""Log lines of alerts: a warning when an alert fires, information when the alert is resolved."""

import logging

import pytest

from agent.app.agent import Agent
from agent.config.model import Config
from tests.lab.fake_qemu import FakeQemu
from tests.lab.thin_guests import ListSink
from tests.lab.waiting import until


async def test_a_resolved_alert_is_logged_as_information(fake: FakeQemu, caplog: pytest.LogCaptureFixture) -> None:
    config = {"monitors": [{"dial": str(fake.path)}], "web": {"listen_address": "127.0.0.1:0"}}
    caplog.set_level(logging.INFO, "agent")
    async with Agent(Config.model_validate(config), sink := ListSink()).run_in_background():
        await until(lambda: any(record["type"] == "qemu.vm.attached" for record in sink.records), 60)
        fake.emit("GUEST_PANICKED", {"action": "pause"})
        fake.emit("STOP")
        fake.emit("RESUME")
        await until(lambda: sum(record["type"] == "qemu.alert.guest_panicked" for record in sink.records) == 2, 60)
    lines = [line for line in caplog.records if "alert guest_panicked" in line.getMessage()]
    assert [(line.levelno, line.getMessage().split()[-1]) for line in lines] == [
        (logging.WARNING, "firing"),
        (logging.INFO, "resolved"),
    ]
