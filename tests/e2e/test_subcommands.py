"""The subcommands of `qmp-agent`: their output and their exit status."""

import asyncio
import json
import re
import shlex
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from agent import __version__
from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from tests.lab.agent_process import COMMAND, AgentProcess, FinishedCommand, run_command
from tests.lab.machine import free_port
from tests.lab.record_checks import validate_record, validator
from tests.lab.waiting import DEADLINE_SECONDS

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHIPPED = Path(__file__).parents[2] / "config" / "agent.yaml"


@dataclass(frozen=True, slots=True)
class Environment:
    """Two guests, and an agent that watches both. All tests of this module share them."""

    writer: Guest
    idle: Guest
    agent: AgentProcess


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def environment() -> AsyncIterator[Environment]:
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        folder = Path(path)
        async with AsyncExitStack() as running:
            writer = await running.enter_async_context(Guest(folder, "writer", GuestOptions(kind=GuestKind.WRITER)))
            idle = await running.enter_async_context(Guest(folder, "idle"))
            config = {"monitors": [{"dial": f"{folder}/*.qmp"}], "intervals": {"poll": "200ms"}}
            agent = await running.enter_async_context(AgentProcess(folder, config))
            await agent.wait_for_record("sample.block", vm=writer.uuid)
            await agent.wait_for_record("vm.attached", vm=idle.uuid)
            yield Environment(writer, idle, agent)


# --- check ---


async def test_check_reports_each_monitor_the_endpoint_and_the_sink(folder: Path) -> None:
    config = folder / "agent.yaml"
    monitors = [{"dial": f"{folder}/{pattern}"} for pattern in ("*.qmp", "missing/*.qmp", "none-*.qmp")]
    records = folder / "records.jsonl"
    address = f"127.0.0.1:{free_port()}"
    content = {
        "monitors": monitors,
        "timeouts": {"greeting": "3s"},  # within which the free monitor has to greet
        "web": {"listen_address": address},
        "jsonl": {"path": str(records)},
    }
    config.write_text(yaml.safe_dump(content))
    async with Guest(folder, "free") as free, Guest(folder, "held") as held:
        with socket.socket(socket.AF_UNIX) as holder:
            holder.connect(str(held.monitor))
            ended = await run_command("check", "--config", config)
    assert (ended.status, ended.log) == (1, "")
    first, *findings = ended.out.splitlines()
    assert first == f"{config}: the config is valid"
    up, busy, missing, none, endpoint, sink = (
        line for line in findings if not line.startswith(("ok    QEMU ", "note "))
    )
    assert re.fullmatch(rf"ok    {free.monitor}: free \({free.uuid}\), QEMU \d+\.\d+\.\d+", up)
    assert busy.startswith(f"FAIL  {held.monitor}: no greeting within 3 s: another client holds this monitor")
    assert (
        missing
        == f"FAIL  {folder}/missing/*.qmp: the directory {folder}/missing cannot be searched: No such file or directory"
    )
    assert none.startswith(f"ok    {folder}/none-*.qmp: no socket exists now")
    assert endpoint == f"ok    endpoint: {address} is readable by every user of this host"
    assert sink == f"ok    sink: {records}"


async def test_check_succeeds_if_every_check_passes(folder: Path) -> None:
    config = folder / "agent.yaml"
    async with Guest(folder, "vm1") as guest:
        web, timeouts = {"listen_address": f"127.0.0.1:{free_port()}"}, {"greeting": "120s"}
        monitors = [{"dial": str(guest.monitor)}]
        config.write_text(yaml.safe_dump({"monitors": monitors, "web": web, "timeouts": timeouts}))
        ended = await run_command("check", "--config", config)
    assert (ended.status, ended.log) == (0, "")
    assert "FAIL" not in ended.out
    assert "standard output" in ended.out


async def test_check_knows_the_monitors_that_the_running_agent_holds(folder: Path) -> None:
    async with Guest(folder, "vm1") as guest:
        settings = {"monitors": [{"dial": str(guest.monitor)}], "timeouts": {"greeting": "3s"}}
        async with AgentProcess(folder, settings) as agent:
            await agent.wait_for_record("vm.attached")
            ended = await run_command("check", "--config", agent.config)
    assert f"ok    {guest.monitor}: the running agent watches it" in ended.out.splitlines()
    assert (ended.status, "FAIL" in ended.out) == (0, False)


async def test_every_command_reports_all_problems_of_the_config(folder: Path) -> None:
    config = folder / "agent.yaml"
    config.write_text("monitors:\n  - dial: relative/*.qmp\nintervals:\n  pol: 5s\n  resync: soon\nhosst: hv7\n")
    for ended in await asyncio.gather(*(run_command(name, "--config", config) for name in ("check", "run", "tail"))):
        assert (ended.status, ended.out) == (2, "")
        lines = ended.log.splitlines()
        assert [line.partition(": ")[0] for line in lines] == [f"{config}:{number}" for number in (2, 4, 5, 6)]
        assert lines[0].startswith(f"{config}:2: monitors[0].dial: should be an absolute path")
        assert lines[1] == f"{config}:4: intervals.pol: unknown key; did you mean poll?"
        assert lines[2].startswith(f"{config}:5: intervals.resync: ")
        assert lines[3] == f"{config}:6: hosst: unknown key; did you mean host?"


async def test_a_missing_config_is_reported_in_one_line(folder: Path) -> None:
    ended = await run_command("run", "--config", folder / "none.yaml")
    assert (ended.status, ended.out) == (2, "")
    assert ended.log == f"{folder}/none.yaml: cannot be read: No such file or directory\n"


# --- tail ---


class Tail:
    """A running `qmp-agent tail`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stdout is not None
        self._out = process.stdout

    @classmethod
    async def start(cls, environment: Environment, *arguments: str) -> "Tail":
        """Start `qmp-agent tail`. It prints the records from now on."""
        return cls(
            await asyncio.create_subprocess_exec(
                *(*COMMAND, "tail", "--config", str(environment.agent.config), *arguments),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        )

    async def line(self) -> str:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return (await self._out.readline()).decode().rstrip("\n")

    async def log_line(self) -> str:
        assert self._process.stderr is not None
        async with asyncio.timeout(DEADLINE_SECONDS):
            return (await self._process.stderr.readline()).decode().rstrip("\n")

    async def stop(self) -> FinishedCommand:
        self._process.send_signal(signal.SIGINT)
        async with asyncio.timeout(DEADLINE_SECONDS):
            out, log = await self._process.communicate()
        assert self._process.returncode is not None
        return FinishedCommand(self._process.returncode, out.decode(), log.decode())


async def test_tail_prints_readable_lines(environment: Environment) -> None:
    tail = await Tail.start(environment)
    lines = [await tail.line()]
    while not re.search(r" sample\.block +disk0 .*  write=\d.*  writes=\d", lines[-1]):
        lines.append(await tail.line())
    ended = await tail.stop()
    assert (ended.status, ended.log) == (130, "")
    for line in lines:
        assert re.match(r"\d\d:\d\d:\d\d\.\d\d\d  (writer|idle|hv7) +[a-z]+\.[a-z_]+ ", line), line
        assert "\x1b" not in line


async def test_tail_filters_by_vm_type_and_severity(environment: Environment) -> None:
    tails = {
        "vm": await Tail.start(environment, "--json", "--vm", "idle"),
        "uuid": await Tail.start(environment, "--json", "--vm", environment.idle.uuid),
        "type": await Tail.start(environment, "--json", "--type", "event"),
        "severity": await Tail.start(environment, "--json", "--severity", "warning"),
        "sample": await Tail.start(environment, "--json", "--type", "qemu.sample.block", "--vm", "writer"),
    }
    assert json.loads(await tails["sample"].line())["type"] == "qemu.sample.block"
    records: dict[str, Any] = {}

    async def first(name: str) -> None:
        records[name] = json.loads(await tails[name].line())

    async with asyncio.TaskGroup() as tasks:
        watching = [tasks.create_task(first(name)) for name in ("vm", "uuid", "type", "severity")]
        while not all(task.done() for task in watching):  # a tail that was not connected yet missed the first
            await environment.idle.command("stop")
            await environment.idle.wait_for_event("STOP")
            await environment.idle.command("cont")
            await environment.idle.wait_for_event("RESUME")
            await environment.writer.command("block-set-write-threshold", node_name="disk0-storage", write_threshold=1)
            await environment.writer.wait_for_event("BLOCK_WRITE_THRESHOLD")
    schema = validator(json.loads((await run_command("schema", "record")).out))
    for name, tail in tails.items():
        await tail.stop()
        if name in records:
            validate_record(json.dumps(records[name]), schema)
    assert records["vm"]["vmuuid"] == records["uuid"]["vmuuid"] == environment.idle.uuid
    assert records["type"]["type"].startswith("qemu.event.")
    assert records["severity"]["severitytext"] == "WARN"
    assert records["severity"]["vmuuid"] == environment.writer.uuid


async def test_tail_warns_that_a_vm_is_unknown_and_waits_for_it(environment: Environment) -> None:
    tail = await Tail.start(environment, "--vm", "typo")
    assert await tail.log_line() == (
        "no VM has the name or UUID typo now; waiting for its records (`qmp-agent top` lists the VMs)"
    )
    assert (await tail.stop()).status == 130


async def test_tail_exits_quietly_when_its_pipe_is_closed(environment: Environment) -> None:
    tail = shlex.join([*COMMAND, "tail", "--url", environment.agent.url])
    process = await asyncio.create_subprocess_exec(
        *("bash", "-o", "pipefail", "-c", f"{tail} | head -1"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE_SECONDS):
        out, log = await process.communicate()
    assert (process.returncode, log) == (0, b"")
    assert out.count(b"\n") == 1


async def test_tail_reports_that_no_agent_answers() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    ended = await run_command("tail", "--url", url)
    assert (ended.status, ended.out) == (1, "")
    assert ended.log.startswith(f"qmp-agent: no agent answers at {url}: ")
    assert ended.log.count("\n") == 1


# --- run ---


async def test_a_second_agent_on_the_same_port_fails_with_one_line(environment: Environment) -> None:
    ended = await run_command("run", "--config", environment.agent.config)
    assert (ended.status, ended.out) == (1, "")
    address = environment.agent.url.removeprefix("http://")
    assert ended.log.startswith(f"qmp-agent: cannot listen on {address}: ")
    assert ended.log.count("\n") == 1
    assert (await environment.agent.get("/healthz"))[0] == 200


# --- version, schema and unknown commands ---


async def test_version_is_that_of_the_package() -> None:
    assert await run_command("version") == FinishedCommand(0, f"qmp-agent {__version__}\n", "")


async def test_an_unknown_command_lists_the_known_ones() -> None:
    ended = await run_command("wacth")
    assert (ended.status, ended.out) == (2, "")
    assert "'run', 'check', 'tail'" in ended.log


async def test_the_config_schema_accepts_the_shipped_config() -> None:
    schema = validator(json.loads((await run_command("schema", "config")).out))
    shipped = yaml.safe_load(SHIPPED.read_text())
    assert [error.message for error in schema.iter_errors(shipped)] == []
    assert [error.message for error in schema.iter_errors(shipped | {"hosst": "hv7"})] != []
    assert [error.message for error in schema.iter_errors({})] != []
