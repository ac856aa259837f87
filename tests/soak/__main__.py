"""Soak test: `python -m tests.soak --minutes 60`. VMs start, end, hang, crash and send garbage; the agent's resources must not grow.

The run has sixty scripted VMs and three real QEMUs. Two new VMs replace two scripted VMs each second. Meanwhile, clients scrape the
metrics, fetch the page's data and stream records. The test measures memory, file descriptors, threads, tasks and the age of the oldest
record every few seconds. It passes if the medians late in the run equal those of its beginning.
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
    "timeouts": {"response": "2s", "greeting": "2s", "max_retry_delay": "2s"},
    "alerts": {"disks": {"levels": ["used 640KiB", "used 32MiB", "used 63MiB"]}},
    "log": {"level": "error"},
}
LIMITS: Final = {
    "memory, MiB": 8.0,
    "file descriptors": 8.0,
    "threads": 4.0,
    "tasks": 12.0,
    "age of the oldest record, s": 1.0,
}
"""Allowed growth from the median of the second fifth of the run to that of the last fifth."""


@dataclass(slots=True)
class SoakRun:
    """The participants of the run and its measurements.

    Attributes:
        folder: Directory of the monitors.
        agent: The agent.
        monitors: The scripted VMs.
        guests: The real QEMUs.
        chance: The source of randomness.
        minutes: Time of each measurement.
        measured: Measured values by name, in the order of `minutes`.
        faults: Number of faults by name.
        started: Number of scripted VMs so far.
        scrapes: Number of scrapes so far.
    """

    folder: Path
    agent: AgentProcess
    monitors: Monitors
    guests: list[Guest]
    chance: random.Random
    minutes: list[float] = field(default_factory=list)
    measured: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in (*LIMITS, "CPU, %")})
    faults: dict[str, int] = field(default_factory=dict)
    started: int = VMS
    scrapes: int = 0

    async def churn(self) -> None:
        """Replace two scripted VMs by new ones every second."""
        running = list(range(VMS))
        while True:
            await asyncio.sleep(1)
            ended = [running.pop(self.chance.randrange(len(running))) for _ in range(2)]
            self.monitors.end(ended)
            for number in ended:
                self.monitors.paths[number].unlink(missing_ok=True)
            new = [self.started, self.started + 1]
            self.started += 2
            self.monitors.paths += [self.folder / f"vm{number}.qmp" for number in new]
            await self.monitors.listen(new)
            running += new

    async def events(self) -> None:
        """Send events from the scripted VMs, and now and then a storm of them."""
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

    async def scrape(self) -> None:
        """Fetch /metrics, /overview and /readyz every second."""
        async with _client() as session:
            while True:
                for path in ("/metrics", "/overview", "/readyz"):
                    async with session.get(self.agent.url + path) as response:
                        await response.read()
                self.scrapes += 1
                await asyncio.sleep(1)

    async def stream(self) -> None:
        """Stream records for ten seconds and disconnect, again and again."""
        while True:
            async with aiohttp.ClientSession() as session, session.get(self.agent.url + "/records") as response:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(10):
                        async for _ in response.content:
                            pass

    async def measure(self) -> None:
        """Measure every few seconds until cancelled."""
        begun = at = time.monotonic()
        assert self.agent.process is not None
        pid = self.agent.process.pid
        spent = cpu_seconds([pid])
        while True:
            await asyncio.sleep(MEASURE_SECONDS)
            series = await self._scraped()
            now, total = time.monotonic(), cpu_seconds([pid])
            oldest = max(value for _, value in series.matching("qmp_agent_queue_oldest_record_age_seconds"))
            values = {
                "memory, MiB": resident_bytes(pid) / (1 << 20),
                "file descriptors": _count(pid, "fd"),
                "threads": _count(pid, "task"),
                "tasks": series.value("qmp_agent_asyncio_tasks"),
                "age of the oldest record, s": oldest,
                "CPU, %": 100 * (total - spent) / (now - at),
            }
            self.minutes.append((now - begun) / 60)
            for name, value in values.items():
                assert value is not None
                self.measured[name].append(value)
            if int(self.minutes[-1]) > int(self.minutes[-2] if len(self.minutes) > 1 else 0):
                figures = ", ".join(f"{value:.4g} {name}" for name, value in values.items())
                sys.stderr.write(f"{int(self.minutes[-1])} min, {self.started} VMs: {figures}\n")
            spent, at = total, now

    async def _scraped(self) -> Scrape:
        async with _client() as session, session.get(self.agent.url + "/metrics") as response:
            return Scrape.read(await response.text())

    # --- Faults ---

    async def inject_faults(self) -> None:
        """Inject one fault after the other."""
        faults: list[Callable[[], Coroutine[Any, Any, None]]] = [
            self.freeze_guest,
            self.restart_guest,
            self.send_garbage,
            self.reload_config,
        ]
        while True:
            await asyncio.sleep(5)
            fault = self.chance.choice(faults)
            self.faults[fault.__name__] = self.faults.get(fault.__name__, 0) + 1
            await fault()

    async def freeze_guest(self) -> None:
        """Stop a real QEMU by SIGSTOP for longer than the response timeout."""
        guest = self.chance.choice(self.guests)
        guest.send_signal(signal.SIGSTOP)
        await asyncio.sleep(6)
        guest.send_signal(signal.SIGCONT)

    async def restart_guest(self) -> None:
        """Kill a real QEMU and start it again."""
        guest = self.chance.choice(self.guests)
        await guest.stop()
        await guest.start()

    async def send_garbage(self) -> None:
        """Send bytes that are not QMP from some scripted VMs."""
        for number in self.chance.sample(sorted(self.monitors.clients), 5):
            garbage = self.chance.choice(
                [b"x" * (2 << 20), b'{"return": {}}\r\n', b"[" * 100_000 + b"\n", b"\xff\xfe\n"]
            )
            self.monitors.clients[number].transport.write(garbage)

    async def reload_config(self) -> None:
        """Make the agent reload its config."""
        self.agent.send_signal(signal.SIGHUP)

    # --- Result ---

    def growth(self) -> dict[str, tuple[float, float]]:
        """Return the medians of the second and of the last fifth of the run, by name."""
        fifth = len(self.minutes) // 5
        return {
            name: (statistics.median(values[fifth : 2 * fifth]), statistics.median(values[-fifth:]))
            for name, values in self.measured.items()
        }


def _client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60))  # for a machine under load


def _count(pid: int, directory: str) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/{directory}").iterdir())


@contextlib.asynccontextmanager
async def _started(folder: Path, seed: int) -> AsyncIterator[SoakRun]:
    async with AsyncExitStack() as stack:
        monitors = await stack.enter_async_context(Monitors(folder, VMS))
        guests = [Guest(folder, f"real{number}", GuestOptions(kind=GuestKind.WRITER)) for number in range(3)]
        for guest in guests:
            await stack.enter_async_context(guest)
        jsonl = {"path": str(folder / "records"), "max_size": "8MiB", "max_files": 2}
        agent = AgentProcess(
            folder, {"monitors": [{"dial": f"{folder}/*.qmp"}], "jsonl": jsonl, **CONFIG}, is_forked=False
        )
        await stack.enter_async_context(agent)
        yield SoakRun(folder, agent, monitors, guests, random.Random(seed))
        ended = await agent.stop()
        assert ended.status == 0, ended.log[-2000:]


async def _soak(minutes: float, seed: int) -> SoakRun:
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        async with _started(Path(path), seed) as run:
            parts = (run.churn, run.events, run.scrape, run.stream, run.measure, run.inject_faults)
            tasks = [asyncio.create_task(part(), name=part.__name__) for part in parts]
            ended, _ = await asyncio.wait(tasks, timeout=minutes * 60, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for guest in run.guests:
                guest.send_signal(signal.SIGCONT)
            for task in ended:
                task.result()  # raises: a task only ends by an error
            return run


def main() -> int:
    """Run the soak test; return 0 if nothing grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--chart", type=Path, help="write the chart to this file, as SVG")
    options = parser.parse_args()
    run = asyncio.run(_soak(options.minutes, options.seed))
    lines = [
        f"seed {options.seed}; {run.minutes[-1]:.0f} minutes, {run.started} scripted VMs in all, {run.scrapes} scrapes"
    ]
    lines += [", ".join(f"{name} {count}" for name, count in run.faults.items()), ""]
    lines += ["| what | second fifth | last fifth | maximum | allowed growth | |", "|---|---|---|---|---|---|"]
    failed = False
    for name, (before, after) in run.growth().items():
        grew = name in LIMITS and after - before > LIMITS[name]
        failed |= grew
        verdict = "GREW" if grew else "flat" if name in LIMITS else ""
        maximum = max(run.measured[name])
        lines.append(f"| {name} | {before:.4g} | {after:.4g} | {maximum:.4g} | {LIMITS.get(name, '')} | {verdict} |")
    sys.stdout.write("\n".join(lines) + "\n")
    if options.chart is not None:
        options.chart.write_text(svg(run.minutes, run.measured))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
