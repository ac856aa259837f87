"""Liveness and readiness tell the truth: a process that collects or delivers nothing does not say that it is well.

That systemd hears the same is in tests/e2e/test_systemd.py.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.app.agent import Agent
from agent.cli.demo.guest import until
from agent.config.model import Config
from tests.lab.agent_process import AgentProcess
from tests.lab.fake_qemu import FakeQemu

BUG = """
import sys
from agent.delivery.jsonl import JsonLines

async def send(self, batch):
    raise RuntimeError("a bug of the sink")

JsonLines.send = send
from agent.cli.main import main
sys.exit(main(["run", "--config", sys.argv[1]]))
"""


@asynccontextmanager
async def running(folder: Path, **more: Any) -> AsyncIterator[tuple[Agent, str]]:
    """An agent in this process, and its endpoint."""
    config = {
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "web": {"listen_address": "127.0.0.1:0"},
        "intervals": {"poll": "100ms"},
        "timeouts": {"response": "200ms", "shutdown": "1s"},
        "jsonl": {"path": str(folder / "records.jsonl")},
    }
    app = Agent(Config.model_validate(config | more))
    async with app.running() as url:
        yield app, url


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what stands still called so within a second."""
    monkeypatch.setattr("agent.app.agent.STUCK_SECONDS", 0.5)
    monkeypatch.setattr("agent.app.agent.PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr("agent.app.agent.TICK_SECONDS", 0.05)


async def says(url: str, status: int, *words: str) -> None:
    """Wait until a path answers so."""

    async def so() -> bool:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            text = await response.text()
            return response.status == status and all(word in text for word in words)

    await until(so, 10)


async def test_sessions_that_stand_still_are_no_life(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    stuck, go_on = asyncio.Event(), asyncio.Event()

    async def pending_commands(_: object) -> tuple[()]:
        if stuck.is_set():
            await go_on.wait()  # as a bug would, with no deadline
        return ()

    async with FakeQemu(folder / "a.qmp") as fake, running(folder) as (app, url):
        monkeypatch.setattr(app, "pending_commands", pending_commands)
        await fake.wait_for("query-blockstats", 3)
        await says(f"{url}/healthz", 200, "ok")
        stuck.set()
        await says(f"{url}/healthz", 503, "1 VMs are up, and none has been asked anything for")
        await says(f"{url}/readyz", 503, "a.qmp is up and has not been asked what it should be")
        go_on.set()
        await says(f"{url}/healthz", 200, "ok")
        await says(f"{url}/readyz", 200, "ready")


async def test_a_qemu_that_hangs_is_not_the_agents_illness(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    async with FakeQemu(folder / "a.qmp") as fake, running(folder) as (app, url):
        await fake.wait_for("query-blockstats", 3)
        fake.hang("query-blockstats")
        await says(f"{url}/readyz", 503, "none of 1 monitors is up: 1 stalled")
        begin = time.monotonic()
        while time.monotonic() < begin + 1.5:
            assert app.hang_reason() == ""
            await asyncio.sleep(0.1)
        fake.release("query-blockstats")
        await says(f"{url}/readyz", 200)


async def test_housekeeping_that_stands_still_is_no_life(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)

    async def never(*_: object) -> bool:
        await asyncio.Event().wait()
        return True

    async with running(folder) as (app, url):
        await says(f"{url}/healthz", 200)
        monkeypatch.setattr(app.alerts, "forgotten", lambda: ["someone"])
        monkeypatch.setattr(app.delivery, "keep", never)
        await says(f"{url}/healthz", 503, "alerts have not been looked at for")


async def test_a_sink_that_hangs_is_told_and_keeps_no_process_from_ending(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that nobody reads takes 64 KiB and then hangs whoever writes, as a file on dead NFS does."""
    os.mkfifo(folder / "pipe")
    jsonl = {"jsonl": {"path": str(folder / "pipe")}}
    quick = {"intervals": {"poll": "100ms"}, "timeouts": {"shutdown": "1s"}}
    async with FakeQemu(folder / "a.qmp") as fake:
        async with AgentProcess(folder, {"monitors": [{"dial": f"{folder}/*.qmp"}]} | jsonl | quick) as agent:
            await until(lambda: fake.count("query-blockstats") > 50, 45)
            begin = time.monotonic()
            assert (await agent.stop()).status == 0
            assert time.monotonic() - begin < 15
            assert "Traceback" not in agent.log
        monkeypatch.setattr("agent.delivery.pipeline.SILENT_SECONDS", 0.3)
        reader = os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        try:
            async with running(folder, **jsonl, **quick) as (_, url):
                await says(f"{url}/readyz", 503, "nothing is delivered to", "it has not answered for")
                while True:  # so that its thread comes to an end with it
                    try:
                        os.read(reader, 1 << 16)
                    except BlockingIOError:
                        break
                await says(f"{url}/readyz", 200)
                await until(lambda: not _read_all(reader), 5)
        finally:
            os.close(reader)


def _read_all(reader: int) -> bool:
    try:
        return bool(os.read(reader, 1 << 20))
    except BlockingIOError:
        return False


async def test_a_bug_in_delivery_ends_the_process_instead_of_looking_like_work(folder: Path) -> None:
    agent = AgentProcess(folder, {"monitors": [{"dial": f"{folder}/*.qmp"}]})
    async with FakeQemu(folder / "a.qmp"):
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", sys.executable, "-c", BUG, str(agent.config)),
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(20):
            _, said = await process.communicate()
    assert process.returncode == 1
    assert b"a bug of the sink" in said
