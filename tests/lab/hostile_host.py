"""An agent that watches a normal VM and a hostile monitor. The assertions here must hold for everything that the hostile monitor sends."""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from agent.schemas.record import record_schema
from tests.bench.process import resident_bytes
from tests.lab.agent_process import COMMAND, AgentProcess, Scrape
from tests.lab.fake_qemu import FakeQemu
from tests.lab.record_checks import validate_record, validator
from tests.lab.waiting import DEADLINE_SECONDS, until

GOOD_UUID: Final = "00000000-1111-4111-8111-111111111111"
POLL_SECONDS: Final = 0.1
LATE_SECONDS: Final = 120.0
"""Maximum delay of a poll of the good VM: long, because the machine may be under load."""
MAX_GROWTH_BYTES: Final = 400 << 20
"""Maximum growth of the agent's memory for one VM. The longest message has 16 MiB and takes ten times that as Python objects."""

_SCHEMA = validator(record_schema())
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def resident_memory(agent: AgentProcess) -> int:
    """Return the resident memory of the agent in bytes."""
    assert agent.process is not None
    return resident_bytes(agent.process.pid)


class HostileHost:
    """A host with an agent, a normal VM, and the address of a hostile monitor.

    Attributes:
        folder: The directory of the monitors' sockets.
        agent: The agent.
        good: The normal VM, a scripted QEMU.
        monitor: The path for the hostile monitor's socket. A test starts a monitor there.
    """

    def __init__(self, folder: Path, agent: AgentProcess, good: FakeQemu, polls: list[float]) -> None:
        self.folder = folder
        self.agent = agent
        self.good = good
        self._polls = polls
        self._log_begin = 0
        self.monitor = folder / "evil.qmp"

    @contextlib.asynccontextmanager
    async def assert_undisturbed(self) -> AsyncIterator[None]:
        """Assert that the normal VM is polled on time while the `with` block runs, and that the agent's memory stays within its limit."""
        begin, before = len(self._polls), resident_memory(self.agent)
        self._log_begin = len(self.log())
        yield
        await until(lambda: len(self._polls) > begin + 3)
        gaps = [later - earlier for earlier, later in pairwise(self._polls[begin:])]
        assert max(gaps) <= POLL_SECONDS + LATE_SECONDS, gaps
        assert resident_memory(self.agent) - before < MAX_GROWTH_BYTES
        assert self.good.clients == 1

    async def states(self) -> set[str]:
        """Return the states of the hostile monitors. There are several while the agent still retries hostile monitors of earlier tests."""
        series = (await self.agent.metrics()).matching("qmp_agent_monitor_state", monitor=str(self.monitor))
        return {labels["state"] for labels, _ in series}

    async def wait_for_state(self, state: str, reason: str) -> None:
        """Wait until the hostile monitor is in a state and the agent's log matches a regular expression with the reason."""
        begin = self._log_begin

        async def has_state() -> bool:
            return state in await self.states()

        await until(has_state)
        pattern = re.compile(rf"evil\.qmp: {state}: .*({reason})")
        await until(lambda: any(pattern.search(entry["message"]) for entry in self.log()[begin:]))

    def log(self) -> list[dict[str, Any]]:
        """Return the entries of the agent's log. A line that is not JSON fails the test."""
        return [json.loads(line) for line in self.agent.log.splitlines()]

    async def assert_no_injection(self, *words: str) -> Scrape:
        """Assert that each output of the agent is well-formed, and that none of these words is on the page or in /readyz.

        The outputs are the log, /metrics, the page, /readyz, /overview and the latest records.

        Returns:
            The scrape of /metrics.
        """
        for entry in self.log():
            assert not CONTROL_CHARACTERS.search(entry["message"]), entry
            assert "Traceback" not in entry["message"]
            assert entry["level"] != "error" or "watching" not in entry["message"], entry
        series = await self.agent.metrics()
        assert not [name for name, _ in series.values if "forged" in name]
        assert not [value for value in series.values.values() if value != value]  # noqa: PLR0124 - NaN
        for path in ("/", "/readyz"):
            _, text = await self.agent.get(path)
            assert not [word for word in words if word in text], text
        _, text = await self.agent.get("/overview")  # the page shows it as text nodes
        assert json.loads(text)
        assert not CONTROL_CHARACTERS.search(text), text
        for record in self.agent.records()[-50:]:
            validate_record(json.dumps(record), _SCHEMA)
        assert (await self.agent.get("/healthz"))[0] == 200
        return series

    async def tail(self, lines: int, word: str) -> str:
        """Run `qmp-agent tail`. Return at least this number of lines, up to a line with this word."""
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, "tail", "--url", self.agent.url), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                out: list[bytes] = []
                while len(out) < lines or not any(word.encode() in line for line in out):
                    out.append(await process.stdout.readline())
                    assert out[-1], "tail ended"
        finally:
            process.terminate()
            await process.communicate()
        return b"".join(out).decode()


@contextlib.asynccontextmanager
async def hostile_host(folder: Path, *, response_timeout: str, **more: Any) -> AsyncIterator[HostileHost]:
    """Run an agent while the `with` block runs. The normal VM is attached and polled when the block begins.

    Args:
        folder: Directory of the monitors.
        response_timeout: The config's `timeouts.response`, such as `1s`.
        more: Further sections of the config.
    """
    polls: list[float] = []
    good = FakeQemu(folder / "good.qmp")
    statistics = good.transcript.answer("query-blockstats", {})["return"]

    def record_poll(_: dict[str, Any]) -> Any:
        polls.append(time.monotonic())
        return statistics

    good.replies |= {"query-blockstats": record_poll, "query-uuid": {"UUID": GOOD_UUID}, "query-name": {"name": "good"}}
    config = {
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "intervals": {"poll": f"{POLL_SECONDS * 1000:g}ms"},
        "timeouts": {"response": response_timeout, "greeting": "1s", "max_retry_delay": "1s"},
        **more,
    }
    async with good, AgentProcess(folder, config) as agent:
        await agent.wait_for_record("vm.attached", vm="good")
        await until(lambda: len(polls) > 3)
        yield HostileHost(folder, agent, good, polls)


@contextlib.asynccontextmanager
async def raw_monitor(path: Path, chunks: Iterable[bytes], *, hang_up: bool = False) -> AsyncIterator[None]:
    """Run a monitor that sends these bytes to each client and ignores requests. Then it keeps the connection open, or closes it."""
    clients: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        clients.add(task)
        try:
            for chunk in chunks:
                writer.write(chunk)
                await writer.drain()
            while not hang_up and await reader.read(1 << 16):
                pass
            writer.close()
        except ConnectionError:
            pass
        finally:
            if not hang_up:
                writer.transport.abort()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - one small file
