"""Records of the agent's own life: its start, its heartbeats and its end."""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent import __version__
from agent.app.agent import Agent
from agent.config.model import Config
from agent.model.family import Sample
from agent.model.metrics.runstate import RUNSTATE
from agent.model.record import RecordEncoder, Vm
from agent.schemas.record import record_schema
from tests.lab.fake_qemu import FakeQemu
from tests.lab.record_checks import validate_record, validator
from tests.lab.scripted_sink import ScriptedSink
from tests.lab.thin_guests import ListSink
from tests.lab.waiting import until

DEADLINE_SECONDS = 60.0


def config_of(folder: Path, **sections: Any) -> Config:
    """Return a config with a journal, whose sink each test replaces."""
    return Config.model_validate(
        {
            "host": "hv7",
            "monitors": [{"dial": f"{folder}/*.qmp"}],
            "web": {"listen_address": "127.0.0.1:0"},
            "kafka": {"bootstrap_servers": ["127.0.0.1:1"], "topics": {"state": None}},
            "journal": {"directory": str(folder / "journal")},
            **sections,
        }
    )


@contextlib.asynccontextmanager
async def running_agent(config: Config, interval: float = 0.01) -> AsyncIterator[tuple[Agent, ListSink]]:
    """Run an agent with a short interval of heartbeats while the block runs. Yield the agent and its sink."""
    agent = Agent(config, sink := ListSink())
    agent.lifecycle.interval = interval
    async with agent.run_in_background():
        yield agent, sink


def life_of(sink: ListSink) -> list[dict[str, Any]]:
    return [record for record in sink.records if record["type"].startswith("qemu.agent.")]


def heartbeats(sink: ListSink) -> list[dict[str, Any]]:
    return [record["data"] for record in sink.records if record["type"] == "qemu.agent.heartbeat"]


async def test_heartbeats_begin_at_the_start_and_need_neither_vm_nor_event(tmp_path: Path) -> None:
    async with running_agent(config_of(tmp_path)) as (_, sink):
        await until(lambda: len(heartbeats(sink)) > 2, DEADLINE_SECONDS)
    records = life_of(sink)
    assert records == sink.records
    types = [record["type"].removeprefix("qemu.agent.") for record in records]
    assert types == ["started", *["heartbeat"] * (len(types) - 2), "stopping"]
    assert {(record["source"], record["partitionkey"]) for record in records} == {("/hosts/hv7", "hv7")}
    schema = validator(record_schema())
    for record in records:
        validate_record(json.dumps(record), schema)
        assert record["data"]["version"] == __version__
        assert record["id"].startswith(record["data"]["run"])
    assert {data["vms"] for data in heartbeats(sink)} == {0}


async def test_a_heartbeat_has_the_vms_by_state_and_what_each_queue_delivered(fake: FakeQemu) -> None:
    async with running_agent(config_of(fake.path.parent)) as (agent, sink):
        await until(
            lambda: heartbeats(sink) and heartbeats(sink)[-1].get("samples_last_delivered_id"), DEADLINE_SECONDS
        )
        fake.replies["query-status"] = {"running": False, "status": "paused", "singlestep": False}
        fake.emit("STOP")
        await until(lambda: heartbeats(sink)[-1]["vms_stopped"], DEADLINE_SECONDS)
        agent.publisher.delivery.drops.totals["events", "queue_full"] = 2
        agent.publisher.delivery.drops.totals["events", "rejected"] = 3
        await until(lambda: heartbeats(sink)[-1]["events_dropped_records_total"] == 5, DEADLINE_SECONDS)
    before, after = next(data for data in heartbeats(sink) if data["vms_running"]), heartbeats(sink)[-1]
    assert [before[name] for name in ("vms", "vms_running", "vms_stopped", "vms_unknown", "monitors")] == [
        1,
        1,
        0,
        0,
        1,
    ]
    assert [after[name] for name in ("vms", "vms_running", "vms_stopped", "samples_dropped_records_total")] == [
        1,
        0,
        1,
        0,
    ]
    assert "alerts_last_delivered_id" not in after
    delivered = [record["id"] for record in sink.records if record["type"].startswith("qemu.sample.")]
    assert after["samples_last_delivered_id"] in delivered


async def test_a_heartbeat_has_the_time_of_the_oldest_record_that_waits(tmp_path: Path) -> None:
    agent = Agent(config_of(tmp_path), ListSink())  # nothing sends the records, because the agent does not run
    assert "events_oldest_waiting_timestamp_seconds" not in agent.lifecycle.heartbeat_data()
    agent.lifecycle.on_started()
    agent.lifecycle.on_stopping()
    data = agent.lifecycle.heartbeat_data()
    assert data["events_waiting_records"] == 2
    oldest = agent.publisher.delivery.events.tail.records[0].time_ns
    assert data["events_oldest_waiting_timestamp_seconds"] == oldest / 1e9


async def test_the_time_of_the_last_delivered_heartbeat_stands_still_while_the_sink_fails(tmp_path: Path) -> None:
    agent = Agent(config_of(tmp_path), sink := ScriptedSink(up=False))
    agent.lifecycle.interval = 0.01
    started = agent.lifecycle.last_delivered_heartbeat_published_at()
    async with agent.run_in_background():
        await until(lambda: len(agent.publisher.delivery.events) > 5, DEADLINE_SECONDS)
        assert agent.lifecycle.last_delivered_heartbeat_published_at() == started
        (exposed,) = re.findall(r"heartbeat_delivered_timestamp_seconds ([0-9.e+]+)", agent.metrics.render().decode())
        assert float(exposed) == started
        sink.up = True
        await until(lambda: agent.lifecycle.last_delivered_heartbeat_published_at() > started, DEADLINE_SECONDS)
        delivered = [record.time_ns for record in sink.records if record.type == "qemu.agent.heartbeat"]
        assert agent.lifecycle.last_delivered_heartbeat_published_at() >= delivered[0] / 1e9


async def test_the_start_reports_that_the_previous_run_stopped(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    async with running_agent(config) as (_, first):
        await until(lambda: heartbeats(first), DEADLINE_SECONDS)
    async with running_agent(config) as (_, second):
        await until(lambda: heartbeats(second), DEADLINE_SECONDS)
    assert "previous_run" not in life_of(first)[0]["data"]
    assert life_of(second)[0]["data"]["previous_run"] == "stopped"


async def test_records_sort_after_those_of_a_run_that_had_a_later_clock(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    agent = Agent(config, before := ListSink())
    agent.publisher._encode = RecordEncoder(time.time_ns() + 10**15)
    async with agent.run_in_background():
        await agent.publisher.store_run_id()
    async with running_agent(config) as (_, after):
        await until(lambda: heartbeats(after), DEADLINE_SECONDS)
    assert min(record["sequence"] for record in after.records) > max(record["sequence"] for record in before.records)
    assert life_of(after)[0]["data"]["run"] == after.records[0]["id"].partition("-")[0]


async def test_a_sample_names_the_last_sample_of_the_run_before_that_was_stopped(tmp_path: Path) -> None:
    vm, runs = Vm("hv7", "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1", "web-1"), []
    for _ in range(2):
        async with running_agent(config_of(tmp_path)) as (agent, sink):
            agent.publisher.publish_samples(vm, [Sample(RUNSTATE, (), {})], time.time_ns())
        runs.append([record for record in sink.records if record["type"] == RUNSTATE.type])
    (first,), (second,) = runs
    assert "previoussequence" not in first
    assert second["previoussequence"] == first["sequence"]


async def test_an_agent_that_fails_does_not_report_that_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)

    async def fail() -> None:
        raise RuntimeError("a bug")

    agent = Agent(config, sink := ListSink())
    monkeypatch.setattr(agent.lifecycle, "publish_heartbeats", fail)
    async with agent.run_in_background():
        await asyncio.wait({agent.watch_task}, timeout=DEADLINE_SECONDS)
    assert [record["type"] for record in life_of(sink)] == ["qemu.agent.started"]
    async with running_agent(config) as (_, next_sink):
        await until(lambda: heartbeats(next_sink), DEADLINE_SECONDS)
    assert life_of(next_sink)[0]["data"]["previous_run"] == "died"


def test_the_config_digest_changes_with_the_config_in_use(tmp_path: Path) -> None:
    agent = Agent(config_of(tmp_path), ListSink())
    before = agent.lifecycle.heartbeat_data()["config_digest"]
    agent.config = config_of(tmp_path)
    assert agent.lifecycle.heartbeat_data()["config_digest"] == before
    agent.config = config_of(tmp_path, intervals={"poll": "20s"})
    assert agent.lifecycle.heartbeat_data()["config_digest"] != before
