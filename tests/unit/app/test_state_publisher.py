"""When the publisher of states writes, deletes and keeps the state of a VM, an alert and the host."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from agent.app.agent import Agent
from agent.app.state_publisher import MAX_CHANGES, StatePublisher
from agent.config.model import Config
from agent.model.metrics.migration import MIGRATION_ENDED
from agent.model.record import EncodedRecord, Record
from agent.monitors import Monitor
from agent.schemas.record import record_schema
from agent.session.shared_types import MonitorState, MonitorStatus, VmLifecycleChange
from tests.lab.record_checks import validate_record, validator
from tests.lab.state_fleet import AWAY, CompactedTopic, Fleet, ScriptedHost, ScriptedVm, refuse_connection
from tests.lab.thin_guests import ListSink

WEB = ScriptedVm("00000000-0000-4000-8000-000000000001", "web-1", 0, disks=2)
WEB_KEY = f"/hosts/hv0/state/vms/{WEB.uuid}"


class Host(ScriptedHost):
    """A host with one agent, and the topic that it writes to."""

    def __init__(self, folder: Path) -> None:
        self.topic = CompactedTopic()
        super().__init__("hv0", folder, self.topic.deliver)

    @property
    def states(self) -> StatePublisher:
        assert self.agent is not None
        assert self.agent.state_publisher is not None
        return self.agent.state_publisher

    def data(self, key: str = WEB_KEY) -> dict[str, Any] | None:
        """Return the data of a key in the topic; None if the topic does not have it."""
        body = self.topic.values.get(key)
        return orjson.loads(body)["data"] if body is not None else None


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.start_agent([WEB])
    return host


async def test_the_states_follow_the_schema_of_records(host: Host) -> None:
    host.emit(WEB, "GUEST_PANICKED")
    await host.states.build_and_write_changed_states()
    schema = validator(record_schema())
    types = set()
    for key, body in host.topic.values.items():
        event = validate_record(body, schema)
        assert event.get_source() == event.get_extension("partitionkey") == key
        types.add(event.get_type())
    assert types == {"qemu.state.host", "qemu.state.vm", "qemu.state.alert"}
    data = host.data()
    assert data is not None
    assert [disk["device"] for disk in data["disks"]] == ["disk0", "disk1"]
    assert data.items() >= {"run_state": "running", "running": True, "qemu_version": "10.0.0"}.items()


async def test_nothing_is_written_while_nothing_changes(host: Host) -> None:
    await host.states.build_and_write_changed_states()
    writes = host.topic.writes
    for _ in range(3):
        host.poll(WEB)
        await host.states.build_and_write_changed_states()
    assert host.topic.writes == writes


async def test_a_vm_that_shut_down_is_deleted_at_once(host: Host) -> None:
    await host.states.build_and_write_changed_states()
    host.detach(WEB, VmLifecycleChange.GONE, shutdown_reason="guest-shutdown")
    await host.states.build_and_write_changed_states()
    assert host.data() is None
    assert not [name for name in host.entries if WEB.uuid in name and name.startswith("state/")]


async def test_a_vm_that_was_lost_is_gone_first_and_deleted_after_a_minute(host: Host) -> None:
    await host.states.build_and_write_changed_states()
    host.detach(WEB, VmLifecycleChange.GONE)
    await host.states.build_and_write_changed_states()
    data = host.data()
    assert data is not None
    assert (data["monitor_state"], data["run_state"]) == ("gone", "running")
    host.now += AWAY
    await host.states.build_and_write_changed_states()
    assert host.data() is None


async def test_a_lost_vm_whose_monitor_another_client_holds_is_kept(host: Host) -> None:
    await host.states.build_and_write_changed_states()
    host.detach(WEB, VmLifecycleChange.GONE)
    assert host.agent is not None
    monitor = Monitor("/run/web-1.qmp", (), refuse_connection)
    host.agent.observer.on_monitor_status(MonitorStatus(monitor, MonitorState.BUSY, "held", None, None, 0))
    host.now += AWAY
    await host.states.build_and_write_changed_states()
    data = host.data()
    assert data is not None
    assert data["monitor_state"] == "busy"


async def test_a_vm_that_ended_while_its_agent_was_dead_is_deleted_by_the_next_run(host: Host) -> None:
    await host.states.build_and_write_changed_states()
    host.start_agent([])
    await host.states.build_and_write_changed_states()
    assert host.data() is not None, "the agent may not have found it yet"
    host.now += AWAY
    await host.states.build_and_write_changed_states()
    assert host.data() is None


async def test_an_alert_that_is_resolved_is_deleted(host: Host) -> None:
    host.emit(WEB, "GUEST_PANICKED")
    await host.states.build_and_write_changed_states()
    (key,) = [key for key in host.topic.values if "/alerts/" in key]
    data = host.data(key)
    assert data is not None
    assert (data["alert"], data["state"]) == ("guest_panicked", "firing")
    host.emit(WEB, "RESUME")
    await host.states.build_and_write_changed_states()
    assert host.data(key) is None


async def test_the_state_has_the_last_migration_over_restarts_of_the_agent(host: Host) -> None:
    assert host.agent is not None
    data = {"outcome": "failed", "role": "source", "elapsed_seconds": 2.0, "transferred_bytes": 5}
    source = next(vm for vm, _ in host.agent.snapshot.one_view_per_uuid())
    host.agent.observer.on_transition_between_polls(Record(f"qemu.{MIGRATION_ENDED.name}", source, data, 3 * 10**9))
    await host.states.build_and_write_changed_states()
    state = host.data()
    assert state is not None
    expected = {"outcome": "failed", "role": "source", "elapsed_seconds": 2.0, "ended_timestamp_seconds": 3.0}
    assert state["last_migration"] == expected
    host.start_agent([WEB])
    host.topic.values.clear()
    await host.states.build_and_write_changed_states()
    state = host.data()
    assert state is not None
    assert state["last_migration"] == expected, "the next run knows it"


async def test_a_stop_on_request_is_in_the_hosts_state_and_keeps_the_vms(host: Host) -> None:
    await host.states.build_and_write_changed_states()
    host.detach(WEB, VmLifecycleChange.DETACHED)
    await host.states.write_host_stopped_state(5.0)
    state = host.data("/hosts/hv0/state")
    assert state is not None
    assert state["state"] == "stopped"
    vm = host.data()
    assert vm is not None
    assert vm["monitor_state"] == "up"


async def test_a_turn_writes_a_limited_number_of_states(tmp_path: Path) -> None:
    topic = CompactedTopic()
    fleet = Fleet(tmp_path, topic.deliver, hosts=1, vms=MAX_CHANGES + 50, seed=1)
    (host,) = fleet.hosts
    assert host.agent is not None
    assert host.agent.state_publisher is not None
    await host.agent.state_publisher.build_and_write_changed_states()
    assert topic.writes == MAX_CHANGES
    await host.agent.state_publisher.build_and_write_changed_states()
    assert topic.writes == MAX_CHANGES + 51  # with the host


async def test_changes_during_an_outage_are_not_queued(host: Host) -> None:
    await host.states.build_and_write_changed_states()
    works = asyncio.Event()

    async def deliver_later(records: Sequence[EncodedRecord]) -> None:
        await works.wait()
        await host.topic.deliver(records)

    host.deliver = deliver_later
    writes = host.topic.writes
    WEB.status = "paused"
    host.poll(WEB)
    turn = asyncio.create_task(host.states.build_and_write_changed_states())
    await asyncio.sleep(0)
    for _ in range(50):
        for WEB.status in ("running", "debug"):
            host.poll(WEB)
    works.set()
    await turn
    await host.states.build_and_write_changed_states()
    assert host.topic.writes == writes + 2, "the change in flight, and the last one"
    state = host.data()
    assert state is not None
    assert state["run_state"] == "debug"
    WEB.status = "running"


async def test_a_rewrite_writes_all_states_again(host: Host) -> None:
    await host.states.build_and_write_changed_states()
    host.topic.values.clear()  # as if the topic was deleted
    assert host.states.rewrite_all() == 2
    await host.states.build_and_write_changed_states()
    assert set(host.topic.values) == {WEB_KEY, "/hosts/hv0/state"}


@pytest.mark.parametrize("kafka", [None, {"bootstrap_servers": ["127.0.0.1:1"], "topics": {"state": None}}])
def test_without_a_topic_of_states_there_is_no_publisher(kafka: Any) -> None:
    agent = Agent(Config.model_validate({"monitors": [{"dial": "/nowhere"}], "kafka": kafka}), ListSink())
    assert agent.state_publisher is None
    assert agent.endpoint_source.rewrite_state_topic() is None
