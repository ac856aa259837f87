"""An agent that watches one good VM and one that has been taken over, and what has to hold whatever that one says."""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from agent.cli.demo.guest import until
from agent.cli.schema import record_schema
from tests.bench.process import resident_bytes
from tests.lab.agent_process import COMMAND, AgentProcess, Scrape
from tests.lab.fake_qemu import FakeQemu
from tests.lab.record_checks import validate_record, validator

GOOD_UUID: Final = "00000000-1111-4111-8111-111111111111"
POLL_SECONDS: Final = 0.1
LATE_SECONDS: Final = 10.0
"""How much later than it should the good VM may be polled, on a machine that has much else to do."""
MAX_GROWTH_BYTES: Final = 400 << 20
"""How much memory the agent may take for what one VM says: 16 MiB is the longest message, and takes tenfold as Python's objects."""

_SCHEMA = validator(record_schema())
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def memory(agent: AgentProcess) -> int:
    """Return the bytes of memory that the agent holds."""
    assert agent.process is not None
    return resident_bytes(agent.process.pid)


class World:
    """What a test has to do with.

    Attributes:
        folder: where monitors are.
        agent: the agent.
        good: the good VM.
    """

    def __init__(self, folder: Path, agent: AgentProcess, good: FakeQemu, polls: list[float]) -> None:
        self.folder = folder
        self.agent = agent
        self.good = good
        self._polls = polls
        self._begin = 0
        self.monitor = folder / "evil.qmp"

    @contextlib.asynccontextmanager
    async def undisturbed(self) -> AsyncIterator[None]:
        """Within this, the good VM is polled as ever, and memory stays within bounds."""
        begin, before = len(self._polls), memory(self.agent)
        self._begin = len(self.log())
        yield
        await until(lambda: len(self._polls) > begin + 3, 30)
        gaps = [later - earlier for earlier, later in pairwise(self._polls[begin:])]
        assert max(gaps) <= POLL_SECONDS + LATE_SECONDS, gaps
        assert memory(self.agent) - before < MAX_GROWTH_BYTES
        assert self.good.clients == 1

    async def states(self) -> set[str]:
        """Return the states of the evil VM's monitors: those of the tests before may still be looked for."""
        found = (await self.agent.metrics()).matching("qmp_agent_monitor_state", monitor=str(self.monitor))
        return {labels["state"] for labels, _ in found}

    async def becomes(self, state: str, reason: str) -> None:
        """Wait until the evil VM's monitor is in a state, and the log says why."""
        begin = self._begin

        async def so() -> bool:
            return state in await self.states()

        await until(so, 15)
        pattern = re.compile(rf"evil\.qmp: {state} \(.*({reason})")
        await until(lambda: any(pattern.search(entry["message"]) for entry in self.log()[begin:]), 15)

    def log(self) -> list[dict[str, Any]]:
        """Return the log's entries; a line that is none fails."""
        return [json.loads(line) for line in self.agent.log.splitlines()]

    async def nothing_is_forged(self, *words: str) -> Scrape:
        """Look at all that the agent tells; none of these words may stand where it would act."""
        for entry in self.log():
            assert not CONTROL.search(entry["message"]), entry
            assert "Traceback" not in entry["message"]
            assert entry["level"] != "error" or "watching" not in entry["message"], entry
        series = await self.agent.metrics()
        assert not [name for name, _ in series.values if "forged" in name]
        assert not [value for value in series.values.values() if value != value]  # noqa: PLR0124 - NaN
        for path in ("/", "/readyz"):
            _, text = await self.agent.get(path)
            assert not [word for word in words if word in text], text
        _, text = await self.agent.get("/overview")  # what the page fills itself with, as text nodes alone
        assert json.loads(text)
        assert not CONTROL.search(text), text
        for line in self.agent.sink.read_bytes().splitlines()[-50:]:
            validate_record(line, _SCHEMA)
        assert (await self.agent.get("/healthz"))[0] == 200
        return series

    async def tail(self, lines: int) -> str:
        """Return the next so many lines that `qmp-agent tail` shows."""
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, "tail", "--url", self.agent.url), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(30):
                out = [await process.stdout.readline() for _ in range(lines)]
        finally:
            process.terminate()
            await process.communicate()
        return b"".join(out).decode()


@contextlib.asynccontextmanager
async def world(folder: Path, *, reply: str) -> AsyncIterator[World]:
    """An agent with a good VM, attached and polled; a reply that takes longer is late."""
    polls: list[float] = []
    good = FakeQemu(folder / "good.qmp")
    answer = good.transcript.answer("query-blockstats", {})["return"]

    def polled(_: dict[str, Any]) -> Any:
        polls.append(time.monotonic())
        return answer

    good.replies |= {"query-blockstats": polled, "query-uuid": {"UUID": GOOD_UUID}, "query-name": {"name": "good"}}
    config = {
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "intervals": {"poll": f"{POLL_SECONDS * 1000:g}ms"},
        "timeouts": {"response": reply, "greeting": "1s", "retry": "1s"},
    }
    async with good, AgentProcess(folder, config) as agent:
        await agent.wait_for_record("vm.attached", vm="good")
        await until(lambda: len(polls) > 3, 10)
        yield World(folder, agent, good, polls)


@contextlib.asynccontextmanager
async def says(path: Path, chunks: Iterable[bytes], *, hang_up: bool = False) -> AsyncIterator[None]:
    """A monitor that says these bytes to whoever comes and answers nothing; then it is silent, or hangs up."""
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
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

    server = await asyncio.start_unix_server(talk, path)
    try:
        yield
    finally:
        server.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - one file of a test's own
