"""Failures of the host: the agent reports each failure, and recovers when the failure ends.

Other tests cover a stopped or killed QEMU (test_monitor_states.py), storage that hangs (test_unresponsive_storage.py), an invalid
config (test_config_reload.py), full or damaged disks (tests/unit/delivery), a Kafka that refuses or hangs
(tests/integration/kafka/test_diagnostics.py) and wrong clocks of QEMU (tests/unit/qmp/test_messages.py).
"""

import asyncio
import json
import random
import resource
import signal
import socket
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

from tests.bench.monitors import Monitors
from tests.chaos.issuer_process import eventually
from tests.lab.agent_process import COMMAND, AgentProcess, Record, record_time
from tests.lab.command_audit import TRACE
from tests.lab.fake_qemu import FakeQemu
from tests.lab.record_checks import record_number
from tests.lab.waiting import DEADLINE_SECONDS, until

QUICK: Final[dict[str, Any]] = {
    "intervals": {"poll": "200ms"},
    "timeouts": {"response": "1s", "greeting": "1s", "max_retry_delay": "1s", "shutdown": "2s"},
}
OTHER_UUID: Final = "00000000-1111-4111-8111-111111111111"
LONGEST_GAP_SECONDS: Final = 120.0
"""Maximum time between two polls of a VM that has no failure: far more than the interval, for a machine under load."""


def watching_agent(folder: Path, **config: Any) -> AgentProcess:
    return AgentProcess(folder, {"monitors": [{"dial": f"{folder}/*.qmp"}]} | QUICK | config)


def bystander(folder: Path) -> FakeQemu:
    """Return a scripted VM that the failure does not affect."""
    replies = {"query-uuid": {"UUID": OTHER_UUID}, "query-name": {"name": "other"}}
    return FakeQemu(folder / "bystander.qmp", replies=replies)


def poll_gaps(agent: AgentProcess, vm: str) -> list[float]:
    """Return the times between the polls of a VM, in seconds."""
    times = [record_time(record) for record in agent.find_records("sample.block", vm=vm)]
    return [after - before for before, after in pairwise(times)]


async def until_ready(agent: AgentProcess) -> None:
    """Wait until the agent is ready and has no problem."""

    async def is_ready() -> bool:
        return await agent.get("/readyz") == (200, "ready\n")

    await until(is_ready)


# --- Connections ---


async def test_a_reply_that_is_cut_off_by_qemus_end_is_discarded(folder: Path) -> None:
    async with bystander(folder), watching_agent(folder) as agent:
        fake = FakeQemu(folder / "vm1.qmp")
        async with fake:
            await fake.wait_for("query-blockstats", 2)
            uuid = (await agent.wait_for_record("vm.attached", vm="vm1"))["vmuuid"]
            begin = agent.mark()
            fake.hang("query-blockstats")
            await agent.wait_for_record("vm.stalled", vm=uuid, since=begin)
            fake.send_raw(b'{"return": [{"device": "half", "qdev": "half", "stats": {"rd_bytes": 1')
            await fake.stop(leave_socket=True)
            gone = await agent.wait_for_record("vm.gone", vm=uuid, since=begin)
            assert gone["data"]["reason"] == "QEMU closed the connection"
            assert not [*agent.find_records("sample.block", device="half")]
            assert (await agent.metrics()).names_of(uuid) == []
            fake.release("query-blockstats")
            await fake.start()
            await agent.wait_for_record("vm.attached", vm=uuid, since=begin)
            await agent.wait_for_record("sample.block", vm=uuid, since=agent.mark())
        assert max(poll_gaps(agent, OTHER_UUID)) < LONGEST_GAP_SECONDS


async def test_when_50_of_200_vms_die_at_once_all_are_reported_and_the_others_go_on(folder: Path) -> None:
    dead, all_vms = {f"vm{number}" for number in range(50)}, {f"vm{number}" for number in range(200)}
    config = {"intervals": {"poll": "2s"}, "timeouts": {"max_retry_delay": "1s"}}
    async with Monitors(folder, 200) as monitors, watching_agent(folder, **config) as agent:

        async def records_of(kind: str, vms: set[str], since: int) -> list[Record]:
            async def complete() -> bool:
                return {record["vmname"] for record in agent.find_records(kind, since=since)} >= vms

            await eventually(complete, DEADLINE_SECONDS, kind)
            return [*agent.find_records(kind, since=since)]

        await records_of("sample.block", all_vms, 0)
        begin = agent.mark()
        monitors.end(range(50))
        gone = await records_of("vm.gone", dead, begin)
        assert {record["vmname"] for record in gone} == dead
        await records_of("sample.block", all_vms - dead, agent.mark())

        async def are_up() -> bool:
            return (await agent.metrics()).value("qmp_agent_monitors", state="up") == 150

        await until(are_up)
        await monitors.listen(range(50))
        await records_of("vm.attached", dead, begin)
        assert not [r for r in agent.find_records("vm.gone") if r["vmname"] not in dead]
        assert max(max(poll_gaps(agent, vm)) for vm in all_vms - dead) < LONGEST_GAP_SECONDS


async def test_without_free_file_descriptors_attached_vms_stay_watched(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRACE)  # the audit's trace needs a file descriptor for each write
    names = {f"vm{number}" for number in range(20)}
    async with Monitors(folder, 20) as monitors, watching_agent(folder) as agent:

        def polled(since: int) -> set[str]:
            return {record["vmname"] for record in agent.find_records("sample.block", since=since)}

        await until(lambda: polled(0) == names)
        assert agent.process is not None
        pid = agent.process.pid
        # A limit below the number of open descriptors: the kernel refuses each new one, and the open ones stay.
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        async with bystander(folder) as late:
            await until(lambda: "scan for monitors skipped: Too many open files" in agent.log)
            begin = agent.mark()
            await until(lambda: polled(begin) == names)
            assert late.clients == 0
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            await agent.wait_for_record("vm.attached", vm=OTHER_UUID)
            await until_ready(agent)
        assert [record["vmname"] for record in agent.find_records("vm.gone")] in ([], ["other"])
        assert len(monitors.clients) == 20


# --- The clock ---

STEPPED: Final = """
import sys, time
from pathlib import Path
real, real_ns, step = time.time, time.time_ns, Path(sys.argv[1])
def offset(): return float(step.read_text() or 0)
time.time = lambda: real() + offset()
time.time_ns = lambda: real_ns() + int(offset() * 1e9)
from agent.cli.main import main
sys.exit(main(["run", "--config", sys.argv[2]]))
"""


@pytest.mark.parametrize("step", [-86400.0, 86400.0])
async def test_a_clock_step_of_a_day_changes_no_interval_and_no_state(folder: Path, step: float) -> None:
    """Change the clock only in the agent's process, because CLOCK_REALTIME belongs to the whole host."""
    clock = folder / "step"
    clock.write_text("0")
    agent = watching_agent(folder, timeouts={"response": "120s"})  # only the clock may be a reason for a stall
    async with bystander(folder) as fake:
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", sys.executable, "-c", STEPPED, str(clock), str(agent.config)),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            await until(lambda: fake.count("query-blockstats") > 5)
            await agent.wait_for_record("sample.block", vm=OTHER_UUID)
            (folder / "step.new").write_text(str(step))
            (folder / "step.new").replace(clock)
            begin, mark, polls = time.monotonic(), agent.mark(), fake.count("query-blockstats")
            await until(lambda: fake.count("query-blockstats") >= polls + 10)
            assert time.monotonic() - begin > 1.0, "the agent caught up on polls"

            async def has_new_time() -> bool:
                at = (await agent.metrics()).value("qemu_vm_last_response_timestamp_seconds", vm_uuid=OTHER_UUID)
                return at is not None and abs(at - (time.time() + step)) < 3600

            await until(has_new_time)
            await until_ready(agent)
            usual = ("qemu.sample.", "qemu.agent.heartbeat")
            assert [r["type"] for r in agent.records()[mark:] if not r["type"].startswith(usual)] == []
        finally:
            process.terminate()
            _, log = await process.communicate()
    assert process.returncode == 0, log.decode()


# --- Kafka and Alertmanager ---


@pytest.mark.parametrize("fault", ["dns", "black hole"])
async def test_unreachable_kafka_is_reported_and_the_vms_stay_watched(folder: Path, fault: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = "no-such-host.invalid:9092" if fault == "dns" else f"127.0.0.1:{silent.getsockname()[1]}"
        kafka = {"bootstrap_servers": [server], "request_timeout": "1s"}
        alerts = {"alertmanager": {"urls": [f"http://{server}"]}}
        async with bystander(folder) as fake, watching_agent(folder, kafka=kafka, alerts=alerts) as agent:
            cause = "name resolution fails" if fault == "dns" else "no answer in time"

            async def is_reported() -> bool:
                status, text = await agent.get("/readyz")
                return status == 503 and f"{server}: {cause}" in text

            await until(is_reported)
            polls = fake.count("query-blockstats")
            await until(lambda: fake.count("query-blockstats") > polls + 5)
            series = await agent.metrics()
            assert series.value("qemu_vm_up", vm_uuid=OTHER_UUID) == 1
            assert series.value("qmp_agent_sink_up") == 0
            assert (await agent.get("/healthz"))[0] == 200
            assert (await agent.stop()).status == 0
    assert "Traceback" not in agent.log


# --- Termination ---


@pytest.mark.parametrize("started", [False, True])
async def test_sigterm_at_any_moment_ends_the_agent_cleanly(folder: Path, started: bool) -> None:  # noqa: FBT001 - by name
    moments = random.Random(9)
    async with Monitors(folder, 20), asyncio.timeout(DEADLINE_SECONDS):
        for turn in range(2):
            runs = [
                _terminate_after(folder, f"{turn}-{number}", moments.uniform(0, 0.7), started=started)
                for number in range(3)
            ]
            for status, log in await asyncio.gather(*runs):
                # Before the agent handles the signal, it ends the interpreter as it ends any program.
                assert status == 0 or (status == -signal.SIGTERM and not log), (status, log)
                assert "Traceback" not in log


async def _terminate_after(folder: Path, name: str, delay: float, *, started: bool) -> tuple[int, str]:
    """Start an agent, send SIGTERM after a delay, and check the agent's records.

    Args:
        folder: The directory of the monitors and of the agent's files.
        name: The name of the agent's files.
        delay: Seconds from the agent's start, or from its first log line.
        started: Whether the delay begins with the agent's first log line.

    Returns:
        The agent's exit status and its log.
    """
    unhurried = {"timeouts": QUICK["timeouts"] | {"shutdown": "60s"}}  # so that a machine under load writes all records
    agent = AgentProcess(folder, {"monitors": [{"dial": f"{folder}/*.qmp"}]} | QUICK | unhurried, name=name)
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", *COMMAND, "run", "--config", str(agent.config)),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    first = await process.stderr.readline() if started else b""
    await asyncio.sleep(delay)  # the test is about this moment
    process.terminate()
    log = first + (await process.communicate())[1]
    assert process.returncode is not None
    if agent.sink.exists():
        text = agent.sink.read_bytes()
        assert text.endswith(b"\n") or not text
        records = [json.loads(line) for line in text.splitlines()]
        attached = {r["vmuuid"] for r in records if r["type"] == "qemu.vm.attached"}
        assert {r["vmuuid"] for r in records if r["type"] == "qemu.vm.detached"} == attached
        assert sorted(record_number(r["id"]) for r in records) == list(range(1, len(records) + 1))
    return process.returncode, log.decode()
