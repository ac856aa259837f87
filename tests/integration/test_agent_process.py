"""How tests read the records and the log of an agent that runs as a process."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.lab.agent_process import AgentProcess


def record(kind: str, seconds: float, **data: Any) -> str:
    """Return a line of a record at a time in seconds since 1970."""
    time = datetime.fromtimestamp(seconds, UTC).isoformat()
    return json.dumps({"type": f"qemu.{kind}", "time": time, "vmname": "vm1", "data": data}) + "\n"


def test_a_sample_of_a_poll_that_began_before_the_mark_is_skipped(folder: Path) -> None:
    agent = AgentProcess(folder, {})
    with agent.sink.open("a") as sink:
        sink.write(record("event.stop", 1.0))
        sink.flush()
        mark = agent.mark()
        # Their polls began before the mark, and their records were written after it.
        sink.write(record("sample.block", mark.time - 1, reads_total=1))
        sink.write(record("sample.runstate", mark.time - 1, status="paused"))
        sink.write(record("event.resume", mark.time - 1))
        sink.write(record("sample.block", mark.time + 1, reads_total=2))
        sink.flush()
    assert [r["data"] for r in agent.find_records("sample.block", since=mark)] == [{"reads_total": 2}]
    assert [r["data"]["reads_total"] for r in agent.find_records("sample.block", since=int(mark))] == [1, 2]
    assert [*agent.find_records("event.stop", since=mark)] == []
    # An event, and a sample that is a record only after a change, may be older than the mark. No later one would follow.
    assert len([*agent.find_records("event.resume", since=mark)]) == 1
    assert len([*agent.find_records("sample.runstate", since=mark, status="paused")]) == 1


def test_an_incomplete_line_is_not_read(folder: Path) -> None:
    agent = AgentProcess(folder, {})
    with agent.sink.open("a") as sink:
        sink.write(record("event.stop", 1.0) + '{"type": "qemu.ev')
        sink.flush()
        assert [r["type"] for r in agent.records()] == ["qemu.event.stop"]
    (folder / "agent.log").write_text('{"level": "info"}\n{"lev')
    assert agent.log == '{"level": "info"}\n'
