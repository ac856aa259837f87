"""How tests start an agent as a process, and read its records and its log."""

import contextlib
import json
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.lab.agent_process import AgentProcess
from tests.lab.command_audit import TRACE
from tests.lab.fake_qemu import FakeQemu
from tests.lab.waiting import until


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


def open_files(pid: int) -> list[str]:
    files = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed in the meantime
            files.append(str(path.readlink()))
    return files


@pytest.mark.parametrize("is_forked", [True, False])
async def test_the_end_of_an_agent_is_known_with_its_status_and_log(folder: Path, *, is_forked: bool) -> None:
    config: dict[str, Any] = {"monitors": [{"dial": f"{folder}/*.qmp"}]}
    agent = AgentProcess(folder, config, is_forked=is_forked)
    async with agent:
        assert agent.process is not None
        assert str(folder / "agent.out") in open_files(agent.process.pid)
        assert (await agent.stop()).status == 0
        await agent.start()
        assert (await agent.stop(signal.SIGKILL)).status == -signal.SIGKILL
    agent.config.write_text("monitors: wrong")
    with pytest.raises(AssertionError, match=r"(?s)the agent ended with 2: .*monitors: should be a list"):
        await agent.start()


async def test_a_fork_has_the_environment_of_its_test_and_no_file_of_another_fork(
    fake: FakeQemu, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitors = {"monitors": [{"dial": str(fake.path)}]}
    async with AgentProcess(folder, {"monitors": [{"dial": f"{folder}/none-*.qmp"}]}, name="other"):
        monkeypatch.setenv(TRACE, str(folder))
        async with AgentProcess(folder, monitors) as agent:
            assert agent.process is not None
            await until((folder / f"{agent.process.pid}.wire").exists)
            files = open_files(agent.process.pid)
            assert str(folder / "agent.jsonl") in files
            assert not [file for file in files if "/other." in file]
