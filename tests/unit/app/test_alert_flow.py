"""Alert records that an event of QEMU causes: their order, and their log lines."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.app.agent import Agent
from agent.collectors.disk_names import stable_disk_name
from agent.config.model import Config
from tests.lab.fake_qemu import FakeQemu
from tests.lab.thin_guests import ListSink
from tests.lab.waiting import until

NOSPACE = {"device": "", "qom-path": "/machine/peripheral/disk0", "operation": "write", "action": "stop"}


@contextlib.asynccontextmanager
async def monitored(fake: FakeQemu) -> AsyncIterator[ListSink]:
    """Run an agent that watches the scripted VM while the `with` block runs. Yield the agent's sink."""
    sink = ListSink()
    config = {"monitors": [{"dial": str(fake.path)}], "web": {"listen_address": "127.0.0.1:0"}}
    agent = Agent(Config.model_validate(config), sink)
    async with agent.run_in_background():
        await until(lambda: any(s.state.value == "up" for s in agent.snapshot.monitors.values()), 60)
        yield sink


def events(sink: ListSink) -> list[str]:
    """Return the events of I/O errors and of the run state, in the order of their records in the sink."""
    names = [record["data"]["event"] for record in sink.records if record["type"].startswith("qemu.event.")]
    return [name for name in names if name in ("BLOCK_IO_ERROR", "STOP", "RESUME")]


def states(sink: ListSink) -> list[str]:
    """Return the states of the disk_full alert, in order."""
    return [record["data"]["state"] for record in sink.records if record["type"] == "qemu.alert.disk_full"]


async def test_a_quick_resume_ends_the_alert_and_coalesced_events_leave_before_it(
    fake: FakeQemu, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agent")
    async with monitored(fake) as sink:
        now = time.time()
        for number in range(8):
            fake.emit("BLOCK_IO_ERROR", NOSPACE | {"nospace": True}, at=now + number / 1000)
        fake.emit("STOP", at=now + 0.01)
        fake.emit("RESUME", at=now + 0.02)
        await until(lambda: "resolved" in states(sink), 60)
        await asyncio.sleep(1.5)  # coalesced events are reported after a second at the latest
        assert events(sink) == ["BLOCK_IO_ERROR", "BLOCK_IO_ERROR", "STOP", "RESUME"]
        assert states(sink) == ["firing", "resolved"]
    levels = {
        record.getMessage().split()[-1]: record.levelname
        for record in caplog.records
        if "alert " in record.getMessage()
    }
    assert levels == {"firing": "WARNING", "resolved": "INFO"}


async def test_an_event_that_names_a_node_has_the_disk_as_its_subject(fake: FakeQemu) -> None:
    (disk, *_) = fake.transcript.answer("query-blockstats", {})["return"]
    top, storage = disk["node-name"], disk["parent"]["node-name"]
    threshold = {"write-threshold": 1 << 20, "amount-exceeded": 1}
    async with monitored(fake) as sink:
        await until(lambda: any(record["type"] == "qemu.sample.block_names" for record in sink.records), 60)
        fake.emit("BLOCK_WRITE_THRESHOLD", {"node-name": storage} | threshold)
        fake.emit("BLOCK_IO_ERROR", {"device": "", "node-name": top, "operation": "read", "action": "report"})
        fake.emit("BLOCK_WRITE_THRESHOLD", {"node-name": "unknown-node"} | threshold)
        await until(lambda: len(block_events(sink)) == 3, 60)
        subjects = [(record["subject"], record["data"]["qemu"]["node-name"]) for record in block_events(sink)]
        name = stable_disk_name(disk)
        assert subjects == [(name, storage), (name, top), ("unknown-node", "unknown-node")]


def block_events(sink: ListSink) -> list[dict[str, Any]]:
    return [record for record in sink.records if record["type"].startswith("qemu.event.block_")]
