"""`qmp-agent demo`, from the command line to its end."""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
import pytest_asyncio

from agent.model.metrics import FAMILIES
from agent.schemas.record import record_schema
from tests.lab.agent_process import COMMAND, run_command
from tests.lab.alertmanager import Alertmanager
from tests.lab.record_checks import sort_events, validate_record, validator
from tests.lab.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXPECTED_TYPES: Final = frozenset(
    {
        "qemu.vm.attached",
        "qemu.sample.block",
        "qemu.sample.balloon",
        "qemu.sample.guest_memory",
        "qemu.sample.migration",
        "qemu.sample.runstate",
        "qemu.event.stop",
        "qemu.event.resume",
        "qemu.event.balloon_change",
        "qemu.event.block_write_threshold",
        "qemu.alert.write_threshold",
        "qemu.sample.guest_filesystem",
        "qemu.sample.guest_os",
    }
)


FIRING: Final = ("firing", "db-1")
"""The notification of the demo's alert: its status and its VM. A full disk of the machine is an alert of its own."""

DEADLINE_SECONDS: Final = 600.0
"""Deadline of each step: two Linux guests boot slowly on a busy machine."""


@dataclass(frozen=True, slots=True)
class Demo:
    """A running `qmp-agent demo`: the process, its directory for temporary files, and its output."""

    process: asyncio.subprocess.Process
    folder: Path
    output: Path

    async def booting(self) -> None:
        """Wait until the demo prints the address of its page. It does this when both guests run."""
        await until(lambda: self.process.returncode is not None or "page " in self.output.read_text(), DEADLINE_SECONDS)
        assert self.process.returncode is None, self.output.read_text()

    def qemus(self) -> list[int]:
        """Return the QEMU processes of the demo: those that have its directory in their command lines."""
        pids = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if os.fsencode(self.folder) in path.read_bytes() and int(path.parent.name) != self.process.pid:
                    pids.append(int(path.parent.name))
        return pids

    async def ended(self) -> None:
        """Wait until the demo ends. Assert that it succeeded, and that no process and no file remains."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await self.process.wait() == 0, self.output.read_text()
        assert self.qemus() == []
        assert list(self.folder.iterdir()) == []


@contextlib.asynccontextmanager
async def running(folder: Path, *arguments: str) -> AsyncIterator[Demo]:
    temporary, output = folder / "t", folder / "output"
    temporary.mkdir()
    with output.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", *COMMAND, "demo", *arguments),
            stdout=out,
            stderr=out,
            env=os.environ | {"TMPDIR": str(temporary)},
        )
    try:
        yield Demo(process, temporary, output)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alertmanager(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Alertmanager]:
    async with Alertmanager(tmp_path_factory.mktemp("alertmanager")) as manager:
        yield manager


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def demo(
    tmp_path_factory: pytest.TempPathFactory, alertmanager: Alertmanager
) -> AsyncIterator[tuple[Demo, Path]]:
    """A demo that runs until `shown_all` ends it. The other tests' demos run meanwhile, because all are slow."""
    folder = tmp_path_factory.mktemp("demo")
    options = ("--duration", "1h", "--output", str(folder / "records"), "--alertmanager", alertmanager.url)
    async with running(folder, *options) as whole:
        yield whole, folder / "records"


def fills(records: list[dict[str, Any]]) -> bool:
    """Return whether the file system in the guest has filled between two samples. The guest empties it when it is full."""
    samples = [record for record in records if record["type"] == "qemu.sample.guest_filesystem"]
    return any(before["data"]["used_bytes"] < after["data"]["used_bytes"] for before, after in pairwise(samples))


def notified_groups(alertmanager: Alertmanager) -> list[tuple[str, str]]:
    """Return the status and the VM of each notification of Alertmanager."""
    return [(sent["status"], sent["groupLabels"].get("vm", "")) for sent in alertmanager.notifications]


async def shown_all(demo: Demo, out: Path, alertmanager: Alertmanager) -> None:
    """Wait until the demo has shown everything and Alertmanager has notified of its alert, interrupt it, and wait for its end."""

    def is_complete() -> bool:
        assert demo.process.returncode is None, demo.output.read_text()
        lines = out.read_bytes().splitlines(keepends=True) if out.exists() else []
        records = [orjson.loads(line) for line in lines if line.endswith(b"\n")]
        return {record["type"] for record in records} >= EXPECTED_TYPES and fills(records)

    if demo.process.returncode is None:
        await until(lambda: is_complete() and FIRING in notified_groups(alertmanager), DEADLINE_SECONDS)
        demo.process.send_signal(signal.SIGINT)
    await demo.ended()


async def test_a_demo_ends_after_its_duration(folder: Path) -> None:
    async with running(folder, "--duration", "3s") as short:
        await short.ended()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_demo_cleans_up(number: signal.Signals, folder: Path, demo: tuple[Demo, Path]) -> None:
    await demo[0].booting()
    async with running(folder, "--duration", "1h") as short:
        await short.booting()
        assert len(short.qemus()) == 2
        short.process.send_signal(number)
        await short.ended()


async def test_a_demo_prints_all_kinds_of_records_and_cleans_up(
    demo: tuple[Demo, Path], alertmanager: Alertmanager
) -> None:
    whole, out = demo
    await shown_all(whole, out, alertmanager)
    schema = validator(record_schema())
    lines = out.read_bytes().splitlines()
    events = sort_events([validate_record(line, schema) for line in lines])
    assert {event.get_type() for event in events} >= EXPECTED_TYPES
    for name in ("web-1", "db-1"):
        types = [event.get_type() for event in events if event.get_extension("vmname") == name]
        assert (types[0], types[-1]) == ("qemu.vm.attached", "qemu.vm.gone")
    of_host = ("qemu.agent.", *(family.type for family in FAMILIES if family.per_host))
    names = {event.get_extension("vmname") for event in events if not event.get_type().startswith(of_host)}
    assert names == {"web-1", "db-1"}
    assert fills([*map(orjson.loads, lines)])
    output = whole.output.read_text()
    assert f"{len(events)} records written to {out}" in output
    for kind in ("sample.block", "event.stop", "event.balloon_change", "alert.write_threshold"):
        assert re.search(rf"(?m)^\d\d:\d\d:\d\d\.\d{{3}}  (web|db)-1 +{re.escape(kind)}\b", output), output
    assert "Traceback" not in output


async def test_a_demo_sends_its_alert_to_the_given_alertmanager(
    demo: tuple[Demo, Path], alertmanager: Alertmanager
) -> None:
    await shown_all(*demo, alertmanager)
    assert FIRING in notified_groups(alertmanager)
    rejected = await run_command("demo", "--alertmanager", "nowhere")
    assert rejected.status == 2
    assert "should be a URL, such as http://127.0.0.1:9093" in rejected.log
