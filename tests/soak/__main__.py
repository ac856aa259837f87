"""A host's life in fast motion, `python -m tests.soak --minutes 60`: VMs come and go, hang, die and lie, and nothing may grow.

Sixty scripted VMs, of which two each second are replaced by ones never seen before, and three real QEMUs; scrapes, the page's data and a
stream of records all the while. Memory, file descriptors, threads, tasks and lag are measured each few seconds; the run is good when their
medians late in the run are those of its beginning.
"""

import argparse
import asyncio
import contextlib
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from tests.bench.monitors import Monitors
from tests.bench.process import cpu_seconds, resident_bytes
from tests.lab.agent_process import AgentProcess, Scrape
from tests.soak.chart import svg

VMS: Final = 60
MEASURE_SECONDS: Final = 3.0
CONFIG: Final[dict[str, Any]] = {
    "intervals": {"poll": "1s", "resync": "30s"},
    "timeouts": {"response": "2s", "greeting": "2s", "retry": "2s"},
    "alerts": {"write_threshold": {"levels": ["1%", "50%", "99%"]}},
    "log": {"level": "error"},
}
LIMITS: Final = {"MiB of memory": 8.0, "file descriptors": 8.0, "threads": 4.0, "tasks": 12.0, "s of lag": 1.0}
"""By how much the median of the last fifth may be above that of the second."""


@dataclass(slots=True)
class Run:
    """What takes part, and what was measured.

    Attributes:
        measured: by what, in the order of `minutes`.
        faults: how often each was done.
    """

    folder: Path
    agent: AgentProcess
    monitors: Monitors
    guests: list[Guest]
    chance: random.Random
    minutes: list[float] = field(default_factory=list)
    measured: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in (*LIMITS, "CPU, %")})
    faults: dict[str, int] = field(default_factory=dict)
    born: int = VMS
    scrapes: int = 0

    async def churn(self) -> None:
        """Replace two scripted VMs a second by new ones."""
        alive = list(range(VMS))
        while True:
            await asyncio.sleep(1)
            dead = [alive.pop(self.chance.randrange(len(alive))) for _ in range(2)]
            self.monitors.end(dead)
            for number in dead:
                self.monitors.paths[number].unlink(missing_ok=True)
            new = [self.born, self.born + 1]
            self.born += 2
            self.monitors.paths += [self.folder / f"vm{number}.qmp" for number in new]
            await self.monitors.listen(new)
            alive += new

    async def events(self) -> None:
        """Have the scripted VMs tell of something, now and then a storm of it."""
        kinds = [
            "STOP",
            "RESUME",
            "BLOCK_IO_ERROR",
            "JOB_STATUS_CHANGE",
            "RTC_CHANGE",
            "SOMETHING_NEW",
            "DEVICE_DELETED",
        ]
        while True:
            await asyncio.sleep(0.05)
            for number in self.chance.sample(sorted(self.monitors.clients), 1):
                data = {"device": f"d{self.chance.randrange(10**9)}", "id": f"j{self.chance.randrange(10**9)}"}
                for _ in range(500 if self.chance.random() < 0.005 else 1):
                    self.monitors.emit(number, self.chance.choice(kinds), data, time.time_ns())

    async def look(self) -> None:
        """Scrape, and ask for what the page asks for."""
        async with _patient() as session:
            while True:
                for path in ("/metrics", "/overview", "/readyz"):
                    async with session.get(self.agent.url + path) as response:
                        await response.read()
                self.scrapes += 1
                await asyncio.sleep(1)

    async def onlook(self) -> None:
        """Look on at records, and leave, again and again."""
        while True:
            async with aiohttp.ClientSession() as session, session.get(self.agent.url + "/records") as response:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(10):
                        async for _ in response.content:
                            pass

    async def measure(self) -> None:
        """Measure each few seconds, for as long as it runs."""
        begun = at = time.monotonic()
        assert self.agent.process is not None
        pid = self.agent.process.pid
        spent = cpu_seconds([pid])
        while True:
            await asyncio.sleep(MEASURE_SECONDS)
            series = await self._scraped()
            now, total = time.monotonic(), cpu_seconds([pid])
            lag = max(value for _, value in series.matching("qmp_agent_queue_oldest_record_age_seconds"))
            found = {
                "MiB of memory": resident_bytes(pid) / (1 << 20),
                "file descriptors": _count(pid, "fd"),
                "threads": _count(pid, "task"),
                "tasks": series.value("qmp_agent_asyncio_tasks"),
                "s of lag": lag,
                "CPU, %": 100 * (total - spent) / (now - at),
            }
            self.minutes.append((now - begun) / 60)
            for name, value in found.items():
                assert value is not None
                self.measured[name].append(value)
            if int(self.minutes[-1]) > int(self.minutes[-2] if len(self.minutes) > 1 else 0):
                figures = ", ".join(f"{value:.4g} {name}" for name, value in found.items())
                sys.stderr.write(f"{int(self.minutes[-1])} min, {self.born} VMs: {figures}\n")
            spent, at = total, now

    async def _scraped(self) -> Scrape:
        async with _patient() as session, session.get(self.agent.url + "/metrics") as response:
            return Scrape.read(await response.text())

    # Faults.

    async def break_things(self) -> None:
        """Do one fault after the other."""
        faults: list[Callable[[], Coroutine[Any, Any, None]]] = [self.stopped, self.killed, self.liars, self.reload]
        while True:
            await asyncio.sleep(5)
            fault = self.chance.choice(faults)
            self.faults[fault.__name__] = self.faults.get(fault.__name__, 0) + 1
            await fault()

    async def stopped(self) -> None:
        """Stop a real QEMU until it has stalled, and longer."""
        guest = self.chance.choice(self.guests)
        guest.send_signal(signal.SIGSTOP)
        await asyncio.sleep(6)
        guest.send_signal(signal.SIGCONT)

    async def killed(self) -> None:
        """Kill a real QEMU and start it anew."""
        guest = self.chance.choice(self.guests)
        await guest.stop()
        await guest.start()

    async def liars(self) -> None:
        """Have some scripted VMs say what is no QMP."""
        for number in self.chance.sample(sorted(self.monitors.clients), 5):
            rubbish = self.chance.choice(
                [b"x" * (2 << 20), b'{"return": {}}\r\n', b"[" * 100_000 + b"\n", b"\xff\xfe\n"]
            )
            self.monitors.clients[number].transport.write(rubbish)

    async def reload(self) -> None:
        """Have the config read again."""
        self.agent.send_signal(signal.SIGHUP)

    # The judgement.

    def growth(self) -> dict[str, tuple[float, float]]:
        """Return the medians of the second and of the last fifth of the run, by what was measured."""
        fifth = len(self.minutes) // 5
        return {
            name: (statistics.median(values[fifth : 2 * fifth]), statistics.median(values[-fifth:]))
            for name, values in self.measured.items()
        }


def _patient() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60))  # the machine may have much else to do


def _count(pid: int, of: str) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/{of}").iterdir())


@contextlib.asynccontextmanager
async def _world(folder: Path, seed: int) -> AsyncIterator[Run]:
    async with AsyncExitStack() as stack:
        monitors = await stack.enter_async_context(Monitors(folder, VMS))
        guests = [Guest(folder, f"real{number}", GuestOptions(kind=GuestKind.WRITER)) for number in range(3)]
        for guest in guests:
            await stack.enter_async_context(guest)
        jsonl = {"path": str(folder / "records"), "max_size": "8MiB", "max_files": 2}
        agent = AgentProcess(folder, {"monitors": [{"dial": f"{folder}/*.qmp"}], "jsonl": jsonl, **CONFIG})
        await stack.enter_async_context(agent)
        yield Run(folder, agent, monitors, guests, random.Random(seed))
        ended = await agent.stop()
        assert ended.status == 0, ended.log[-2000:]


async def _soak(minutes: float, seed: int) -> Run:
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        async with _world(Path(path), seed) as run:
            parts = (run.churn, run.events, run.look, run.onlook, run.measure, run.break_things)
            tasks = [asyncio.create_task(part(), name=part.__name__) for part in parts]
            ended, _ = await asyncio.wait(tasks, timeout=minutes * 60, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for guest in run.guests:
                guest.send_signal(signal.SIGCONT)
            for task in ended:
                task.result()  # none ends by itself but with an error
            return run


def main() -> int:
    """Run, and return 0 only if nothing grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--chart", type=Path, help="write the chart there, as SVG")
    options = parser.parse_args()
    run = asyncio.run(_soak(options.minutes, options.seed))
    lines = [
        f"seed {options.seed}; {run.minutes[-1]:.0f} minutes, {run.born} scripted VMs in all, {run.scrapes} scrapes"
    ]
    lines += [", ".join(f"{name} {count}" for name, count in run.faults.items()), ""]
    lines += ["| what | second fifth | last fifth | most | may rise by | |", "|---|---|---|---|---|---|"]
    bad = False
    for name, (before, after) in run.growth().items():
        grew = name in LIMITS and after - before > LIMITS[name]
        bad |= grew
        verdict = "GREW" if grew else "flat" if name in LIMITS else ""
        most = max(run.measured[name])
        lines.append(f"| {name} | {before:.4g} | {after:.4g} | {most:.4g} | {LIMITS.get(name, '')} | {verdict} |")
    sys.stdout.write("\n".join(lines) + "\n")
    if options.chart is not None:
        options.chart.write_text(svg(run.minutes, run.measured))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
