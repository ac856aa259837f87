"""Memory of the agent, and duration of its start with many VMs."""

import asyncio
import tempfile
import time
from pathlib import Path

from agent.cli.demo.guest import until
from tests.bench.monitors import Monitors
from tests.bench.process import resident_bytes, role
from tests.bench.table import Row

MIB = 1 << 20


async def host(*, short: bool) -> list[Row]:
    """Return the rows."""
    vms = 200 if short else 1000
    memory: dict[int, int] = {}
    for count in (0, vms):
        with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
            async with Monitors(Path(folder), count) as monitors, role("agent", folder, 2.0) as process:
                begun = time.monotonic()
                await until(lambda vms=count: len(monitors.clients) >= vms, 60)  # type: ignore[misc]
                await until(lambda vms=count: monitors.answered[b"query-blockstats"] >= vms, 60)  # type: ignore[misc]
                attached = time.monotonic() - begun
                await asyncio.sleep(3 if short else 10)
                memory[count] = resident_bytes(process.pid)
    each = (memory[vms] - memory[0]) / vms / 1024
    return [
        Row("memory without VMs", f"{memory[0] / MIB:.0f} MiB", target="≤ 64 MiB", met=memory[0] <= 64 * MIB),
        Row(f"memory of each of {vms} VMs with two disks", f"{each:.0f} KiB", target="≤ 60 KiB", met=each <= 60),
        Row(
            f"{vms} monitors attached and polled, from the process's start",
            f"{attached:.1f} s",
            target="≤ 3 s",
            met=attached <= 3,
        ),
    ]
