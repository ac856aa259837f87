"""Liveness (/healthz) and readiness (/readyz) fail if the agent polls or delivers nothing.

tests/e2e/test_systemd.py has the same tests for systemd's watchdog.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.app.agent import Agent
from agent.app.health import HealthLimits
from agent.config.model import Config
from tests.lab.agent_process import AgentProcess
from tests.lab.fake_qemu import FakeQemu
from tests.lab.waiting import DEADLINE_SECONDS, until

SHORT_LIMITS = HealthLimits(tick_seconds=0.05, hang_seconds=0.3, stuck_seconds=0.5)
"""Limits that detect a stuck agent within a second."""

BUG = """
import sys
from agent.delivery.sinks.jsonl import JsonLinesSink

async def send(self, batch):
    raise RuntimeError("a bug of the sink")

JsonLinesSink.send = send
from agent.cli.main import main
sys.exit(main(["run", "--config", sys.argv[1]]))
"""


@contextlib.asynccontextmanager
async def run_agent(folder: Path, **more: Any) -> AsyncIterator[tuple[Agent, str]]:
    """Run an agent with short health limits in this process while the `with` block runs. Yield the agent and its endpoint's URL."""
    config = {
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "web": {"listen_address": "127.0.0.1:0"},
        "intervals": {"poll": "100ms"},
        "timeouts": {"response": "200ms", "shutdown": "1s"},
        "jsonl": {"path": str(folder / "records.jsonl")},
    }
    app = Agent(Config.model_validate(config | more), limits=SHORT_LIMITS)
    async with app.run_in_background() as url:
        yield app, url


async def until_answers(url: str, status: int, *words: str) -> None:
    """Send requests until the response has this status and these words."""

    async def answers() -> bool:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            text = await response.text()
            return response.status == status and all(word in text for word in words)

    await until(answers)


async def test_stuck_sessions_fail_liveness_and_readiness(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block, release = asyncio.Event(), asyncio.Event()

    async def pending_commands(_: object) -> tuple[()]:
        if block.is_set():
            await release.wait()  # as a bug would, without a deadline
        return ()

    async with FakeQemu(folder / "a.qmp") as fake, run_agent(folder) as (app, url):
        monkeypatch.setattr(app.thresholds, "has_pending_commands", lambda _: True)
        monkeypatch.setattr(app.thresholds, "pop_pending_commands", pending_commands)
        await fake.wait_for("query-blockstats", 3)
        await until_answers(f"{url}/healthz", 200, "ok")
        block.set()
        await until_answers(f"{url}/healthz", 503, "1 VMs are up, and none was polled for")
        await until_answers(f"{url}/readyz", 503, "a.qmp is up, but its polls are overdue")
        release.set()
        await until_answers(f"{url}/healthz", 200, "ok")
        await until_answers(f"{url}/readyz", 200, "ready")


async def test_a_hanging_qemu_fails_readiness_but_not_liveness(folder: Path) -> None:
    async with FakeQemu(folder / "a.qmp") as fake, run_agent(folder) as (app, url):
        await fake.wait_for("query-blockstats", 3)
        fake.hang("query-blockstats")
        await until_answers(f"{url}/readyz", 503, "none of 1 monitors is up: 1 stalled")
        start = time.monotonic()
        while time.monotonic() < start + 1.5:
            assert "none was polled" not in app.health.hang_reason()
            await asyncio.sleep(0.1)
        fake.release("query-blockstats")
        await until_answers(f"{url}/readyz", 200)


async def test_a_stuck_alert_loop_fails_liveness(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    async def never() -> None:
        await asyncio.Event().wait()

    async with run_agent(folder) as (app, url):
        await until_answers(f"{url}/healthz", 200)
        monkeypatch.setattr(app.alerts, "tick", never)
        await until_answers(f"{url}/healthz", 503, "the alert loop has not run for")


async def test_a_hanging_sink_fails_readiness_and_does_not_delay_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sink is a pipe without a reader. It takes 64 KiB and then blocks its writer, like a file on a dead NFS server."""
    os.mkfifo(folder / "pipe")
    jsonl = {"jsonl": {"path": str(folder / "pipe")}}
    quick = {"intervals": {"poll": "100ms"}, "timeouts": {"shutdown": "1s"}}
    async with FakeQemu(folder / "a.qmp") as fake:
        async with AgentProcess(folder, {"monitors": [{"dial": f"{folder}/*.qmp"}]} | jsonl | quick) as agent:
            await until(lambda: fake.count("query-blockstats") > 50)
            assert (await agent.stop()).status == 0, (
                "the pipe has no reader, so a stop that waits for it would never end"
            )
            assert "Traceback" not in agent.log
        reader = os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        try:
            async with run_agent(folder, **jsonl, **quick) as (app, url):
                app.publisher.delivery.timings = replace(app.publisher.delivery.timings, unready_after=0.3)
                await until_answers(f"{url}/readyz", 503, "nothing is delivered to", "it has not answered for")
                asyncio.get_running_loop().add_reader(
                    reader, os.read, reader, 1 << 16
                )  # so that the sink's thread can end
                await until_answers(f"{url}/readyz", 200)
        finally:
            asyncio.get_running_loop().remove_reader(reader)
            os.close(reader)


async def test_a_bug_in_delivery_ends_the_process(folder: Path) -> None:
    agent = AgentProcess(folder, {"monitors": [{"dial": f"{folder}/*.qmp"}]})
    async with FakeQemu(folder / "a.qmp"):
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", sys.executable, "-c", BUG, str(agent.config)),
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(DEADLINE_SECONDS):
            _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"a bug of the sink" in errors
