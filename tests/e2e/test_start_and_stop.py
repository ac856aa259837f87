"""Start and stop of the agent, and its records without Kafka."""

import json
import signal
from pathlib import Path

import pytest
from cloudevents.core.formats.json import JSONFormat

from agent.cli.demo.guest import GuestKind
from agent.schemas.record import record_schema
from tests.lab.agent_process import AgentProcess
from tests.lab.fixtures import StartGuest
from tests.lab.record_checks import record_number, sort_events, validate_record, validator
from tests.lab.waiting import until


def files_of(records: Path) -> list[Path]:
    """Return the file of records and the rotated files, newest first."""
    rotated = {int(path.suffix[1:]): path for path in records.parent.glob(f"{records.name}.*")}
    return [records, *(rotated[number] for number in sorted(rotated))]


async def test_without_a_sink_only_records_go_to_standard_output(start_guest: StartGuest, folder: Path) -> None:
    guest = await start_guest()
    async with AgentProcess(folder, {"monitors": [{"dial": str(guest.monitor)}], "jsonl": None}) as agent:
        await until(lambda: '"qemu.vm.attached"' in agent.out)
        ended = await agent.stop()
    assert ended.status == 0
    schema = validator(record_schema())
    events = sort_events([validate_record(line, schema) for line in ended.out.splitlines()])
    types = [event.get_type() for event in events]
    # A heartbeat may be due at any time.
    assert [name for name in types if name != "qemu.agent.heartbeat"][-2:] == [
        "qemu.vm.detached",
        "qemu.agent.stopping",
    ]
    entries = [json.loads(line) for line in ended.log.splitlines()]
    assert any(entry["message"] == f"vm1 at {guest.monitor}: up" for entry in entries)
    assert all(entry["level"] == "info" for entry in entries)


async def test_rotation_loses_and_tears_no_line(start_guest: StartGuest, folder: Path) -> None:
    guest = await start_guest(kind=GuestKind.WRITER)
    records = folder / "records.jsonl"
    config = {
        "monitors": [{"dial": str(guest.monitor)}],
        "intervals": {"poll": "100ms"},
        "jsonl": {"path": str(records), "max_size": "4KiB", "max_files": 1000},
    }
    async with AgentProcess(folder, config) as agent:
        await until(lambda: records.with_name("records.jsonl.8").exists())
        assert (await agent.stop()).status == 0
    current, *rotated = files_of(records)
    assert all(path.stat().st_size >= 4096 for path in rotated)
    whole = b"".join(path.read_bytes() for path in (*reversed(rotated), current))
    events = sort_events([JSONFormat().read(None, line) for line in whole.splitlines()])
    assert events[-1].get_type() == "qemu.agent.stopping"


async def test_only_max_files_rotated_files_are_kept(start_guest: StartGuest, folder: Path) -> None:
    guest = await start_guest(kind=GuestKind.WRITER)
    records = folder / "records.jsonl"
    config = {
        "monitors": [{"dial": str(guest.monitor)}],
        "intervals": {"poll": "100ms"},
        "jsonl": {"path": str(records), "max_size": "4KiB", "max_files": 2},
    }
    async with AgentProcess(folder, config) as agent:
        oldest = records.with_name("records.jsonl.2")

        def starts_at() -> int:
            return record_number(json.loads(oldest.read_bytes().partition(b"\n")[0])["id"]) if oldest.exists() else 1

        await until(lambda: starts_at() > 1)
        await agent.stop()
    assert [path.name for path in files_of(records)] == ["records.jsonl", "records.jsonl.1", "records.jsonl.2"]


async def test_a_line_that_a_crash_left_incomplete_is_removed(start_guest: StartGuest, folder: Path) -> None:
    guest = await start_guest()
    agent = AgentProcess(folder, {"monitors": [{"dial": str(guest.monitor)}]})
    agent.sink.write_text('{"specversion": "1.0", "ty')
    async with agent:
        await until(lambda: agent.sink.read_bytes().count(b"\n") >= 2)
        await agent.stop()
    assert sort_events([JSONFormat().read(None, line) for line in agent.sink.read_bytes().splitlines()])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_agent_that_has_delivered_all_stops_at_a_signal_without_a_wait(
    number: signal.Signals, start_guest: StartGuest, folder: Path
) -> None:
    guest = await start_guest()
    config = {"monitors": [{"dial": f"{folder}/*.qmp"}], "timeouts": {"shutdown": "1h"}}
    async with AgentProcess(folder, config) as agent:
        await agent.wait_for_record("vm.attached", vm=guest.uuid)
        ended = await agent.stop(number)
    assert ended.status == 0
    assert "Traceback" not in ended.log
    last = max(agent.records(), key=lambda record: record_number(record["id"]))
    assert last["type"] == "qemu.agent.stopping"
