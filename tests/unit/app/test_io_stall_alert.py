"""Stalled guest I/O in front of an agent: the alert, its series, and the commands that wait until it moves."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from agent.app.agent import Agent
from agent.config.model import Config
from agent.exposition.prometheus import render_metrics
from agent.qmp.commands import VIRTIO_QUEUE_STATUS
from tests.lab.fake_qemu import FakeError, FakeQemu
from tests.lab.thin_guests import ListSink
from tests.lab.waiting import until

PATH = "/machine/peripheral/disk0/virtio-backend"
MINUTE_NS = 60_000_000_000
LIMIT_SECONDS = 1.0
COMPLETED_JOB = {"device": "j", "type": "backup", "len": 1, "offset": 1, "speed": 0}


class ScriptedDisk:
    """A virtio disk of a scripted QEMU that has completed no request for a minute.

    Attributes:
        fake: The QEMU.
        writes: Number of completed writes.
        requests: Number of requests in the queue.
    """

    def __init__(self, fake: FakeQemu) -> None:
        self.fake = fake
        self.writes = 7
        self.requests = 0
        fake.replies["query-blockstats"] = lambda _arguments: [self._statistics()]
        fake.replies["qom-get"] = lambda arguments: {"type": "virtio-blk-device", "num-queues": 1}.get(
            arguments["property"], FakeError()
        )
        fake.replies[VIRTIO_QUEUE_STATUS] = lambda _arguments: {"inuse": self.requests, "vring-num": 256}

    def _statistics(self) -> dict[str, Any]:
        return {"qdev": PATH, "stats": {"wr_operations": self.writes, "idle_time_ns": MINUTE_NS}}


@contextlib.asynccontextmanager
async def agent_on(fake: FakeQemu, **alerts: Any) -> AsyncIterator[tuple[Agent, ListSink]]:
    config = {
        "monitors": [{"dial": str(fake.path)}],
        "web": {"listen_address": "127.0.0.1:0"},
        "intervals": {"poll": "200ms"},
        "allow": {"virtio_queues": True},
        "alerts": {"overrides": [{"alert": "io_stalled", "limit": f"{LIMIT_SECONDS:g}s", **alerts}]},
    }
    sink = ListSink()
    agent = Agent(Config.model_validate(config), sink)
    async with agent.run_in_background():
        await until(lambda: any(s.state.value == "up" for s in agent.snapshot.monitors.values()), 60)
        yield agent, sink


def alerts_of(sink: ListSink) -> list[dict[str, Any]]:
    return [record for record in sink.records if record["type"] == "qemu.alert.io_stalled"]


async def test_a_disk_that_stalls_fires_and_its_storage_is_left_alone_until_it_moves(fake: FakeQemu) -> None:
    disk = ScriptedDisk(fake)
    disk.requests = 5
    async with agent_on(fake) as (agent, sink):
        await until(lambda: alerts_of(sink), 60)
        (fired,) = alerts_of(sink)
        assert (fired["subject"], fired["data"]["state"], fired["severitytext"]) == ("disk0", "firing", "FATAL")
        assert fired["data"]["requests_in_flight"] == 5
        assert fired["data"]["signs"] == "queues"
        assert fired["data"]["seconds"] > LIMIT_SECONDS
        series = 'qemu_block_stall_seconds{vm_uuid="'
        assert series in render_metrics(agent.snapshot)

        asked = fake.count("query-named-block-nodes"), fake.count("query-block")
        fake.emit("BLOCK_JOB_COMPLETED", COMPLETED_JOB)
        polls = fake.count("query-blockstats")
        await until(lambda: fake.count("query-blockstats") > polls + 3, 60)
        assert (fake.count("query-named-block-nodes"), fake.count("query-block")) == asked

        disk.requests, disk.writes = 0, 8
        await until(lambda: len(alerts_of(sink)) == 2, 60)
        assert alerts_of(sink)[1]["data"]["resolved_by"] == "condition"
        await until(lambda: fake.count("query-named-block-nodes") > asked[0], 60)
        await until(lambda: series not in render_metrics(agent.snapshot), 60)
    stalls = [record["data"] for record in sink.records if record["type"] == "qemu.sample.block_stall"]
    assert [stall["state"] for stall in stalls[-2:]] == ["stalled", "moving"]


async def test_an_idle_disk_neither_fires_nor_holds_back_a_command(fake: FakeQemu) -> None:
    ScriptedDisk(fake)
    async with agent_on(fake) as (agent, sink):
        await until(lambda: fake.count(VIRTIO_QUEUE_STATUS), 60)
        asked = fake.count("query-named-block-nodes")
        fake.emit("BLOCK_JOB_COMPLETED", COMPLETED_JOB)
        await until(lambda: fake.count("query-named-block-nodes") > asked, 60)
        polls = fake.count("query-blockstats")
        await until(lambda: fake.count("query-blockstats") > polls + 20, 60)
        assert "qemu_block_stall" not in render_metrics(agent.snapshot)
    assert alerts_of(sink) == []


async def test_the_alert_is_silent_for_a_disk_that_the_config_names(fake: FakeQemu) -> None:
    disk = ScriptedDisk(fake)
    disk.requests = 5
    async with agent_on(fake, device="disk*", enabled=False) as (agent, sink):
        await until(lambda: "qemu_block_stall_state{" in render_metrics(agent.snapshot), 60)
        polls = fake.count("query-blockstats")
        await until(lambda: fake.count("query-blockstats") > polls + 2 * LIMIT_SECONDS / 0.2, 60)
    assert alerts_of(sink) == []
