"""Memory of `qmp-agent run` with Kafka in its config: without a VM, and of each VM with two disks."""

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Callable
from math import log
from pathlib import Path

from tests.bench.monitors import Monitors
from tests.bench.process import resident_bytes
from tests.bench.start import LIBRARIES, run_agent
from tests.bench.table import Row
from tests.lab.waiting import until

MIB = 1 << 20

ROUNDS = 3
"""Number of measurements without a VM. The smallest counts, because the order of allocations is not always the same."""


async def memory(*, short: bool) -> list[Row]:
    """Return the rows."""
    counts = (10, 100) if short else (10, 100, 1000)
    libraries = min([await asyncio.to_thread(_libraries_bytes) for _ in range(ROUNDS)])
    empty = min([await _agent_bytes(0) for _ in range(ROUNDS)])
    of_vms = {count: await _agent_bytes(count) - empty for count in counts}
    each = {count: of_vms[count] / count / 1024 for count in counts}
    most, fewer = counts[-1], counts[-2]
    exponent = log(of_vms[most] / of_vms[fewer]) / log(most / fewer)
    figures = ", ".join(f"{count}: {kib:.0f} KiB" for count, kib in each.items())
    return [
        Row("memory of the libraries alone", f"{libraries / MIB:.1f} MiB"),
        Row(
            "memory without VMs",
            f"{empty / MIB:.1f} MiB",
            empty / libraries,
            "the libraries",
            "≤ 55 MiB",
            empty <= 55 * MIB,
        ),
        Row("memory of each VM with two disks", figures, target="≤ 40 KiB", met=each[most] <= 40),
        Row("memory by number of VMs", f"{fewer} to {most}", exponent, "(exponent)", "≤ 1.03", exponent <= 1.03),
    ]


def _libraries_bytes() -> int:
    """Return the memory of a process that has imported the agent's libraries, in bytes."""
    command = (sys.executable, "-c", f"{LIBRARIES}; print(flush=True); input()")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        used = resident_bytes(process.pid)
        process.communicate(b"\n")
    return used


async def _agent_bytes(vms: int) -> int:
    """Return the memory of an agent that has polled this number of VMs several times, in bytes."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
        async with (
            Monitors(Path(folder), vms) as monitors,
            run_agent(Path(folder), Path(folder), poll="2s") as (pid, _),
        ):
            polls = monitors.answered
            await until(_reached(lambda: len(monitors.clients), vms), 120)
            await until(_reached(lambda: polls[b"query-blockstats"], 4 * vms), 120)
            await asyncio.sleep(
                5
            )  # for the objects that appear after a while, such as those of the first batches to Kafka
            return resident_bytes(pid)


def _reached(count: Callable[[], int], target: int) -> Callable[[], bool]:
    return lambda: count() >= target
