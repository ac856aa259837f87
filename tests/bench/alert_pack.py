"""CPU of a poll with the alerts of tables and the watch for stalled I/O, in pairs with the same polls without them.

`python -m tests.bench.alert_pack FOLDER PAIRS` is the agent, in a process of its own: it polls the monitors in FOLDER, with the pack in
turns on and off, and prints the CPU seconds and the polls of each turn. No disk of the monitors completes a request, which is the dear
case: otherwise the watch compares one number for each disk.
"""

import asyncio
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import uvloop

from agent.alerts.rules.event_rules import EVENT_ALERT_RULES
from agent.alerts.rules.sample_rules import SAMPLE_ALERT_RULES
from agent.app.agent import Agent
from agent.app.io_stall_watcher import CHECK_INTERVAL_SECONDS, IoStallWatcher, read_threads_waiting_for_storage
from agent.runtime.gc import scheduled_garbage_collection
from agent.session.shared_types import PollOutcome
from tests.bench.monitors import Monitors
from tests.bench.poll import INTERVAL_SECONDS
from tests.bench.roles import DiscardingSink, _config
from tests.bench.table import Row

VMS: Final = 100
MAX_RATIO: Final = 1.03
DEFAULT_POLL_SECONDS: Final = 10.0
WARM_UP_SECONDS: Final = 8.0
"""Time in which all VMs are polled for the first time, which takes far more than a later poll."""
TURN_SECONDS: Final = 1.0
THREADS: Final = 12
"""Number of threads of a QEMU with four vCPUs."""
READS: Final = 200

Turn = tuple[bool, float, int]
"""A flag that the pack was on, the CPU seconds, and the number of polls."""


class NoIoStallWatcher(IoStallWatcher):
    """A watch that does nothing."""

    def on_samples(self, *_: object) -> None:
        """Do nothing."""


def switch(agent: Agent, watch: IoStallWatcher, *, on: bool) -> None:
    """Turn the alerts of tables on or off, with the samples that are derived for them, and set the watch for stalled I/O."""
    conditions = agent.alerts.engine.rules
    conditions.samples.set_rules(SAMPLE_ALERT_RULES if on else ())
    conditions.events.set_rules(EVENT_ALERT_RULES if on else ())
    agent.observer._io_stalls = watch


async def take_turns(folder: Path, pairs: int) -> list[Turn]:
    """Poll with the pack on, off, off, on, and so on."""
    turns: list[Turn] = []
    with tempfile.TemporaryDirectory(prefix="qmp-") as state, scheduled_garbage_collection():
        agent = Agent(_config(folder, INTERVAL_SECONDS, state, "127.0.0.1:1"), DiscardingSink())
        watch, no_watch, runs = agent.io_stalls, NoIoStallWatcher(agent.snapshot), agent.metrics.collector_runs
        async with agent.run_in_background():
            await asyncio.sleep(WARM_UP_SECONDS)
            for number in range(2 * pairs):
                on = number % 4 in (0, 3)
                switch(agent, watch if on else no_watch, on=on)
                await asyncio.sleep(3 * INTERVAL_SECONDS)  # the first poll after a switch compares everything again
                cpu, polls = time.process_time(), runs["block", PollOutcome.OK]
                await asyncio.sleep(TURN_SECONDS)
                turns.append((on, time.process_time() - cpu, runs["block", PollOutcome.OK] - polls))
    return turns


async def run_turns(pairs: int) -> list[Turn]:
    """Run the agent in a process of its own in front of monitors of this process; return its turns."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
        async with Monitors(Path(folder), VMS):
            command = (sys.executable, "-m", "tests.bench.alert_pack", folder, str(pairs))
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            out, _ = await process.communicate()
    return [(on, cpu, polls) for on, cpu, polls in json.loads(out)]


def check_microseconds() -> float:
    """Return the microseconds of CPU of a look for waiting threads in a process with `THREADS` threads: the least of many."""
    end = threading.Event()
    threads = [threading.Thread(target=end.wait) for _ in range(THREADS - threading.active_count())]
    for thread in threads:
        thread.start()
    pid, times = int(Path("/proc/self").readlink().name), []
    for _ in range(READS):
        begun = time.thread_time()
        read_threads_waiting_for_storage(pid, ())
        times.append(time.thread_time() - begun)
    end.set()
    for thread in threads:
        thread.join()
    return min(times) * 1e6


async def alert_pack(*, short: bool) -> list[Row]:
    """Return the rows."""
    costs: dict[bool, list[float]] = {True: [], False: []}
    for on, cpu, polls in await run_turns(12 if short else 60):
        costs[on].append(cpu / polls * 1e6)
    ratios = [on / off for on, off in zip(costs[True], costs[False], strict=True)]
    low, ratio, high = quantiles(ratios, n=4)
    off = median(costs[False])
    check = check_microseconds()
    share = check * DEFAULT_POLL_SECONDS / CHECK_INTERVAL_SECONDS / off
    total = ratio + share
    what = f"alert pack on, a poll of {VMS} VMs whose disks are idle"
    return [
        Row("alert pack off, the same polls", f"{off:.0f} us a poll"),
        Row(
            what,
            f"{median(costs[True]):.0f} us; the ratios of half of the pairs are between {low:.2f} and {high:.2f}",
            ratio,
            "the polls without it",
        ),
        Row(f"a look for waiting threads among {THREADS}", f"{check:.0f} us", check / off, "a poll"),
        Row(
            f"alert pack on, with such a look each {CHECK_INTERVAL_SECONDS:g} s at polls each {DEFAULT_POLL_SECONDS:g} s",
            f"{(total - 1) * 100:+.1f} %",
            total,
            "the polls without it",
            f"≤ {MAX_RATIO}",
            total <= MAX_RATIO,
        ),
    ]


if __name__ == "__main__":
    print(json.dumps(uvloop.run(take_turns(Path(sys.argv[1]), int(sys.argv[2])))), flush=True)
