"""What the agent takes of its host: memory, and how long a start takes."""

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
    found: dict[int, int] = {}
    for count in (0, vms):
        with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
            async with Monitors(Path(folder), count) as monitors, role("agent", folder, 2.0) as process:
                begun = time.monotonic()
                await until(lambda there=count: len(monitors.clients) >= there, 60)  # type: ignore[misc]
                await until(lambda there=count: monitors.answered[b"query-blockstats"] >= there, 60)  # type: ignore[misc]
                attached = time.monotonic() - begun
                await asyncio.sleep(3 if short else 10)
                found[count] = resident_bytes(process.pid)
    each = (found[vms] - found[0]) / vms / 1024
    return [
        Row("memory with no VM", f"{found[0] / MIB:.0f} MiB", aim="≤ 64 MiB", met=found[0] <= 64 * MIB),
        Row(f"memory for each of {vms} VMs with two disks", f"{each:.0f} KiB", aim="≤ 60 KiB", met=each <= 60),
        Row(
            f"{vms} monitors attached and polled, from the process's start",
            f"{attached:.1f} s",
            aim="≤ 3 s",
            met=attached <= 3,
        ),
    ]
