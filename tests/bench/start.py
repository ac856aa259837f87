"""CPU of starts: of short subcommands, of `run` until it polls its first VM, and of `top` and `tail` until they show something."""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from tests.bench.monitors import Monitors
from tests.bench.process import cpu_seconds
from tests.bench.table import Row
from tests.lab.machine import free_port
from tests.lab.waiting import until

AGENT: Final = (sys.executable, "-m", "agent")
LIBRARIES: Final = "import aiohttp.web, aiokafka, prometheus_client, pydantic.main, uvloop, yaml"

Measure = Callable[[], Awaitable[float]]
"""Starts a process and returns its CPU seconds until it is ready."""


async def start(*, short: bool) -> list[Row]:
    """Return the rows. The smallest of several measurements counts, because disturbances only ever add."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as directory:
        folder = Path(directory)
        # A package installed by pip has compiled modules; here they are compiled by the first start.
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
        dont_write = os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        try:
            return await _rows(folder, rounds=4 if short else 10)
        finally:
            del os.environ["PYTHONPYCACHEPREFIX"]
            if dont_write is not None:
                os.environ["PYTHONDONTWRITEBYTECODE"] = dont_write


async def _rows(folder: Path, *, rounds: int) -> list[Row]:
    programs = {
        "`python -c pass`": (sys.executable, "-c", "pass"),
        "import of the libraries alone": (sys.executable, "-c", LIBRARIES),
        "`qmp-agent version`": (*AGENT, "version"),
        "`qmp-agent --help`": (*AGENT, "--help"),
        "`qmp-agent schema record`": (*AGENT, "schema", "record"),
        "`qmp-agent schema config`": (*AGENT, "schema", "config"),
    }
    measures: dict[str, Measure] = {what: _ended(command) for what, command in programs.items()}
    monitors_folder = folder / "monitors"
    monitors_folder.mkdir()
    async with Monitors(monitors_folder, 1) as monitors, _agent(folder, monitors) as url:
        measures["`qmp-agent top --once`"] = _ended((*AGENT, "top", "--once", "--url", url))
        measures["`qmp-agent tail`, to its first record"] = _first_line((*AGENT, "tail", "--url", url))
        measures["`qmp-agent run`, to its first poll"] = lambda: _first_poll(folder)
        seconds: dict[str, list[float]] = {what: [] for what in measures}
        for _ in range(rounds + 1):
            for what, measure in measures.items():
                seconds[what].append(await measure())
    least = {what: min(each[1:]) for what, each in seconds.items()}
    libraries = least["import of the libraries alone"]
    targets = dict.fromkeys(list(programs)[2:], 0.15) | dict.fromkeys(list(measures)[-3:-1], 0.4)
    targets["`qmp-agent run`, to its first poll"] = 0.5
    return [
        Row(
            f"start: {what}",
            f"{each:.2f} s of CPU",
            each / libraries,
            "the libraries' import",
            f"≤ {targets[what]} s" if what in targets else "",
            each <= targets[what] if what in targets else None,
        )
        for what, each in least.items()
    ]


def _ended(command: Sequence[str]) -> Measure:
    """Measure a command from its start to its end."""

    async def measure() -> float:
        return await asyncio.to_thread(_run, command)

    return measure


def _run(command: Sequence[str]) -> float:
    null = os.open(os.devnull, os.O_RDWR)
    redirections = [(os.POSIX_SPAWN_DUP2, null, descriptor) for descriptor in (0, 1, 2)]
    pid = os.posix_spawn(command[0], list(command), os.environ, file_actions=redirections)
    os.close(null)
    _, status, usage = os.wait4(pid, 0)
    assert status == 0, command
    return usage.ru_utime + usage.ru_stime


def _first_line(command: Sequence[str]) -> Measure:
    """Measure a command from its start to its first line of output."""

    async def measure() -> float:
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(30):
                assert await process.stdout.readline()
            return cpu_seconds([process.pid])
        finally:
            process.kill()
            await process.wait()

    return measure


async def _first_poll(folder: Path) -> float:
    """Measure the agent from its start to its first poll of a VM. Kafka is in its config, and does not answer."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as own:
        async with Monitors(Path(own), 1) as monitors, run_agent(folder, Path(own), poll="10s") as (pid, _):
            await until(lambda: monitors.answered[b"query-blockstats"] > 0, 30)
            return cpu_seconds([pid])


@contextlib.asynccontextmanager
async def _agent(folder: Path, monitors: Monitors) -> AsyncIterator[str]:
    """Run an agent that has polled its VM; yield the URL of its endpoint."""
    async with run_agent(folder, monitors.paths[0].parent, poll="500ms") as (_, url):
        await until(lambda: monitors.answered[b"query-blockstats"] > 1, 30)
        yield url


@contextlib.asynccontextmanager
async def run_agent(folder: Path, monitors: Path, *, poll: str) -> AsyncIterator[tuple[int, str]]:
    """Run `qmp-agent run`; yield its process id and the URL of its endpoint."""
    address = f"127.0.0.1:{free_port()}"
    settings = {
        "monitors": [{"dial": f"{monitors}/*.qmp"}],
        "intervals": {"poll": poll},
        "web": {"listen_address": address},
        "kafka": {"bootstrap_servers": [f"127.0.0.1:{free_port()}"]},
        "log": {"level": "error"},
    }
    with tempfile.TemporaryDirectory(prefix="qmp-", dir=folder) as state:
        config = Path(state) / "agent.yaml"
        config.write_text(json.dumps(settings | {"journal": {"directory": state}}))
        process = await asyncio.create_subprocess_exec(*AGENT, "run", "--config", config)
        try:
            yield process.pid, f"http://{address}"
        finally:
            process.kill()
            await process.wait()
