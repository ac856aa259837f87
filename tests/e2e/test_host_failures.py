"""Hosts fail in every way: what the agent does then, and that it goes on when the fault is over.

What is not here: QEMU stopped and killed (test_states.py), a config that is wrong (test_reload.py), disks that are full or damaged
(tests/delivery), Kafka that refuses or freezes (tests/integration/kafka/test_diagnostics.py), clocks of QEMU (test_qmp_messages.py).
"""

import asyncio
import contextlib
import json
import random
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions, until
from tests.bench.monitors import Monitors
from tests.chaos.issuer_process import eventually
from tests.lab.agent_process import COMMAND, AgentProcess, Record, record_time
from tests.lab.command_audit import TRACE
from tests.lab.fake_qemu import FakeQemu

pytestmark = pytest.mark.timeout(120)

QUICK: Final[dict[str, Any]] = {
    "intervals": {"poll": "200ms"},
    "timeouts": {"response": "1s", "greeting": "1s", "retry": "1s", "shutdown": "2s"},
}
FUSE: Final = Path("/dev/fuse")
OTHER: Final = "00000000-1111-4111-8111-111111111111"


def watching(folder: Path, **more: Any) -> AgentProcess:
    return AgentProcess(folder, {"monitors": [{"dial": f"{folder}/*.qmp"}]} | QUICK | more)


def bystander(folder: Path) -> FakeQemu:
    return FakeQemu(folder / "bystander.qmp", replies={"query-uuid": {"UUID": OTHER}, "query-name": {"name": "other"}})


def gaps(agent: AgentProcess, vm: str) -> list[float]:
    """Return the times between a VM's polls."""
    times = [record_time(record) for record in agent.find_records("sample.block", vm=vm)]
    return [after - before for before, after in pairwise(times)]


# --- Storage ---


@contextlib.asynccontextmanager
async def fuse(folder: Path) -> AsyncIterator[tuple[Path, asyncio.subprocess.Process]]:
    """A file of 16 MiB that a process of its own serves, which can be stopped."""
    if not FUSE.exists():
        pytest.skip("there is no /dev/fuse")
    backing, served = folder / "backing", folder / "served"
    with backing.open("wb") as file:
        file.truncate(16 << 20)
    served.touch()
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", "qemu-storage-daemon"),
        *("--blockdev", f"file,node-name=served,filename={backing}"),
        *("--export", f"fuse,id=served,node-name=served,mountpoint={served},writable=on"),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await until(lambda: served.stat().st_size > 0 or process.returncode is not None, 10)
        if process.returncode is not None:
            assert process.stderr is not None
            pytest.skip(f"nothing can be served by FUSE here: {(await process.stderr.read()).decode()}")
        yield served, process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.terminate()
        await process.wait()


async def test_a_vm_on_storage_that_hangs_is_polled_on_and_called_stalled_only_when_its_main_loop_hangs(
    folder: Path,
) -> None:
    async with fuse(folder) as (served, server), bystander(folder) as other:
        disk = ("-blockdev", f"file,node-name=hung,filename={served}", "-device", "virtio-blk-pci,drive=hung,id=hung")
        slow = {"poll": "200ms", "resync": "4s"}
        async with (
            Guest(folder, "vm1", GuestOptions(kind=GuestKind.WRITER, extra=disk)) as guest,
            watching(folder, intervals=slow) as agent,
        ):
            await agent.wait_for_record("sample.block", vm=guest.uuid, device="hung")
            await until(lambda: other.count("query-blockstats") > 2, 10)
            server.send_signal(signal.SIGSTOP)
            try:
                begin = agent.mark()
                # What is asked at each poll waits for no storage; the resync's questions do.
                stalled = await agent.wait_for_record("vm.stalled", vm=guest.uuid, since=begin, timeout=20)
                assert "no reply to " in stalled["data"]["reason"]
                await until(lambda: "its main loop does not: it hangs, on storage most often" in agent.log, 15)
                asked = other.count("query-blockstats")
                await until(lambda: other.count("query-blockstats") > asked + 5, 30)
                assert (await agent.get("/healthz"))[0] == 200
            finally:
                server.send_signal(signal.SIGCONT)
            await agent.wait_for_record("vm.recovered", vm=guest.uuid, since=begin, timeout=15)
            await agent.wait_for_record("sample.block", vm=guest.uuid, since=agent.mark())
            assert max(gaps(agent, OTHER)) < 10.0


# --- Connections ---


async def test_a_qemu_that_ends_in_the_middle_of_a_reply_leaves_no_half_of_it(folder: Path) -> None:
    async with bystander(folder), watching(folder) as agent:
        fake = FakeQemu(folder / "vm1.qmp")
        async with fake:
            await fake.wait_for("query-blockstats", 2)
            uuid = (await agent.wait_for_record("vm.attached", vm="vm1"))["vmuuid"]
            fake.hang("query-blockstats")
            begin = agent.mark()
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
        assert max(gaps(agent, OTHER)) < 10.0


async def test_fifty_of_two_hundred_that_die_at_once_are_told_of_at_once_and_the_others_go_on(folder: Path) -> None:
    dead, all_of_them = {f"vm{number}" for number in range(50)}, {f"vm{number}" for number in range(200)}
    slow = {"poll": "2s"}
    async with Monitors(folder, 200) as monitors, watching(folder, intervals=slow, timeouts={"retry": "1s"}) as agent:

        async def told(kind: str, of: set[str], since: int) -> list[Record]:
            async def so() -> bool:
                return {record["vmname"] for record in agent.find_records(kind, since=since)} >= of

            await eventually(so, 30, kind)
            return [*agent.find_records(kind, since=since)]

        await told("sample.block", all_of_them, 0)
        begin, at = agent.mark(), time.time()
        monitors.end(range(50))
        gone = await told("vm.gone", dead, begin)
        assert {record["vmname"] for record in gone} == dead
        assert max(map(record_time, gone)) - at < 10.0
        await told("sample.block", all_of_them - dead, agent.mark())
        assert (await agent.metrics()).value("qmp_agent_monitors", state="up") == 150
        await monitors.listen(range(50))
        await told("vm.attached", dead, begin)
        assert not [r for r in agent.find_records("vm.gone") if r["vmname"] not in dead]
        assert max(max(gaps(agent, vm)) for vm in all_of_them - dead) < 15.0


async def test_out_of_file_descriptors_what_is_attached_is_watched_and_the_rest_as_soon_as_there_are_some(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRACE)  # what the agent says is not written down here: that takes a file descriptor
    names = {f"vm{number}" for number in range(20)}
    async with Monitors(folder, 20) as monitors, watching(folder) as agent:

        def polled(since: int) -> set[str]:
            return {record["vmname"] for record in agent.find_records("sample.block", since=since)}

        await until(lambda: polled(0) == names, 20)
        assert agent.process is not None
        pid = agent.process.pid
        # A limit below all that are open: whatever is asked for is refused, and what is open stays.
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        async with bystander(folder) as late:
            await until(lambda: "monitor scan skipped: Too many open files" in agent.log, 20)
            begin = agent.mark()
            await until(lambda: polled(begin) == names, 20)
            assert late.clients == 0
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            await agent.wait_for_record("vm.attached", vm=OTHER, timeout=30)
            assert (await agent.get("/readyz")) == (200, "ready\n")
        assert [record["vmname"] for record in agent.find_records("vm.gone")] in ([], ["other"])
        assert len(monitors.clients) == 20


# --- The clock ---

STEPPED: Final = """
import sys, time
from pathlib import Path
real, real_ns, step = time.time, time.time_ns, Path(sys.argv[1])
def record_time(): return float(step.read_text() or 0)
time.time = lambda: real() + record_time()
time.time_ns = lambda: real_ns() + int(record_time() * 1e9)
from agent.cli.main import main
sys.exit(main(["run", "--config", sys.argv[2]]))
"""


@pytest.mark.parametrize("step", [-86400.0, 86400.0])
async def test_a_clock_that_is_set_a_day_off_changes_no_interval_and_no_state(folder: Path, step: float) -> None:
    """CLOCK_REALTIME is the whole host's, so the step is made where the agent reads it."""
    clock = folder / "step"
    clock.write_text("0")
    agent = watching(folder)
    async with bystander(folder) as fake:
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", sys.executable, "-c", STEPPED, str(clock), str(agent.config)),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            await until(lambda: fake.count("query-blockstats") > 5, 45)
            await agent.wait_for_record("sample.block", vm=OTHER)
            (folder / "step.new").write_text(str(step))
            (folder / "step.new").replace(clock)
            begin, mark, asked = time.monotonic(), agent.mark(), fake.count("query-blockstats")
            await until(lambda: fake.count("query-blockstats") >= asked + 10, 30)
            assert time.monotonic() - begin > 1.0, "no poll was made up for"

            async def replied() -> bool:
                at = (await agent.metrics()).value("qemu_vm_last_response_timestamp_seconds", vm_uuid=OTHER)
                return at is not None and abs(at - (time.time() + step)) < 5

            await until(replied, 10)
            assert await agent.get("/readyz") == (200, "ready\n")
            told = [r["type"] for r in agent.records()[mark:] if not r["type"].startswith("qemu.sample.")]
            assert told == []
        finally:
            process.terminate()
            _, said = await process.communicate()
    assert process.returncode == 0, said.decode()


# --- Those whom it tells ---


@pytest.mark.parametrize("fault", ["dns", "black hole"])
async def test_kafka_that_cannot_be_resolved_or_never_answers_is_named_and_nobody_is_watched_less(
    folder: Path, fault: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hole:
        server = "no-such-host.invalid:9092" if fault == "dns" else f"127.0.0.1:{hole.getsockname()[1]}"
        kafka = {"bootstrap_servers": [server], "request_timeout": "1s"}
        alerts = {"alertmanager": {"url": f"http://{server}"}}
        async with bystander(folder) as fake, watching(folder, kafka=kafka, alerts=alerts) as agent:
            why = "the name cannot be resolved" if fault == "dns" else "no answer in time"

            async def named() -> bool:
                status, text = await agent.get("/readyz")
                return status == 503 and f"{server}: {why}" in text

            await until(named, 45)
            asked = fake.count("query-blockstats")
            await until(lambda: fake.count("query-blockstats") > asked + 5, 30)
            series = await agent.metrics()
            assert series.value("qemu_vm_up", vm_uuid=OTHER) == 1
            assert series.value("qmp_agent_sink_up") == 0
            assert (await agent.get("/healthz"))[0] == 200
            begin = time.monotonic()
            assert (await agent.stop()).status == 0
            assert time.monotonic() - begin < 15
    assert "Traceback" not in agent.log


# --- The end ---


@pytest.mark.parametrize("begun", [False, True])
async def test_sigterm_at_any_moment_ends_it_in_time_and_in_order(folder: Path, begun: bool) -> None:  # noqa: FBT001 - by name
    moments = random.Random(9)
    async with Monitors(folder, 20), asyncio.timeout(110):
        for turn in range(2):
            ends = [_ended_at(folder, f"{turn}-{number}", moments.uniform(0, 0.7), begun=begun) for number in range(3)]
            for status, took, log in await asyncio.gather(*ends):
                # Before it has begun, the signal ends it as any program.
                assert status == 0 or (status == -signal.SIGTERM and not log), (status, log)
                assert took < 10.0
                assert "Traceback" not in log


async def _ended_at(folder: Path, name: str, moment: float, *, begun: bool) -> tuple[int, float, str]:
    """Start an agent, end it so many seconds after its start, or after its first word, and look at what it left.

    Returns:
        Its status, how long the end took, and its log.
    """
    agent = AgentProcess(folder, {"monitors": [{"dial": f"{folder}/*.qmp"}]} | QUICK, name=name)
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", *COMMAND, "run", "--config", str(agent.config)),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    first = await process.stderr.readline() if begun else b""
    await asyncio.sleep(moment)  # the moment is the point
    begin = time.monotonic()
    process.terminate()
    log = first + (await process.communicate())[1]
    took = time.monotonic() - begin
    assert process.returncode is not None
    if agent.sink.exists():
        text = agent.sink.read_bytes()
        assert text.endswith(b"\n") or not text
        told = [json.loads(line) for line in text.splitlines()]
        attached = {r["vmuuid"] for r in told if r["type"] == "qemu.vm.attached"}
        assert {r["vmuuid"] for r in told if r["type"] == "qemu.vm.detached"} == attached
        assert sorted(int(r["sequence"]) for r in told) == list(range(1, len(told) + 1))
    return process.returncode, took, log.decode()
