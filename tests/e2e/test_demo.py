"""`qmp-agent demo`, as somebody who has just installed it runs it."""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from agent.cli.demo.guest import until
from agent.cli.schema import record_schema
from tests.lab.agent_process import COMMAND, run_command
from tests.lab.alertmanager import Alertmanager
from tests.lab.record_checks import sort_events, validate_record, validator

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEEN: Final = frozenset(
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
    }
)


@dataclass(frozen=True, slots=True)
class Demo:
    """A demo that runs: its process, the folder that it takes for temporary ones, and what it says."""

    process: asyncio.subprocess.Process
    folder: Path
    said: Path

    async def booting(self) -> None:
        """Wait until it has told where its page is, which it does when both guests run."""
        await until(lambda: self.process.returncode is not None or "page " in self.said.read_text(), 60)
        assert self.process.returncode is None, self.said.read_text()

    def qemus(self) -> list[int]:
        """Return the processes that have its folder on their command lines, all but itself."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if os.fsencode(self.folder) in path.read_bytes() and int(path.parent.name) != self.process.pid:
                    found.append(int(path.parent.name))
        return found

    async def ended(self, within: float) -> None:
        """Wait for its end, which must be a good one and leave nothing."""
        async with asyncio.timeout(within):
            assert await self.process.wait() == 0, self.said.read_text()
        assert self.qemus() == []
        assert list(self.folder.iterdir()) == []


@contextlib.asynccontextmanager
async def running(folder: Path, *arguments: str) -> AsyncIterator[Demo]:
    temporary, said = folder / "t", folder / "said"
    temporary.mkdir()
    with said.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", *COMMAND, "demo", *arguments),
            stdout=out,
            stderr=out,
            env=os.environ | {"TMPDIR": str(temporary)},
        )
    try:
        yield Demo(process, temporary, said)
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
    """A whole demo, which the shorter ones run beside, so that all of them together take as long as it does."""
    folder = tmp_path_factory.mktemp("demo")
    options = ("--duration", "22s", "--output", str(folder / "records"), "--alertmanager", alertmanager.url)
    async with running(folder, *options) as whole:
        yield whole, folder / "records"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_demo_that_is_interrupted_ends_well_and_leaves_nothing(
    number: signal.Signals, folder: Path, demo: tuple[Demo, Path]
) -> None:
    await demo[0].booting()
    async with running(folder) as short:
        await short.booting()
        assert len(short.qemus()) == 2
        short.process.send_signal(number)
        await short.ended(8)


async def test_a_demo_shows_all_kinds_of_records_and_leaves_nothing(demo: tuple[Demo, Path]) -> None:
    whole, out = demo
    await whole.ended(40)
    schema = validator(record_schema())
    events = sort_events([validate_record(line, schema) for line in out.read_bytes().splitlines()])
    assert {event.get_type() for event in events} >= SEEN
    for name in ("web-1", "db-1"):
        mine = [event.get_type() for event in events if event.get_extension("vmname") == name]
        assert (mine[0], mine[-1]) == ("qemu.vm.attached", "qemu.vm.gone")
    assert {event.get_extension("vmname") for event in events} == {"web-1", "db-1"}
    said = whole.said.read_text()
    assert f"{len(events)} records are in {out}" in said
    for kind in ("sample.block", "event.stop", "event.balloon_change", "alert.write_threshold"):
        assert re.search(rf"(?m)^\d\d:\d\d:\d\d\.\d{{3}}  (web|db)-1 +{re.escape(kind)}\b", said), said
    assert "Traceback" not in said


async def test_a_demos_alert_is_in_the_alertmanager_that_it_is_told_of(
    demo: tuple[Demo, Path], alertmanager: Alertmanager
) -> None:
    await demo[0].ended(40)
    (first, *_) = alertmanager.notifications
    assert (first["status"], first["groupLabels"]) == ("firing", {"vm": "db-1"})
    refused = await run_command("demo", "--alertmanager", "nowhere")
    assert refused.status == 2
    assert "should be a URL, such as http://127.0.0.1:9093" in refused.log
