"""Duration of the start with many VMs."""

import tempfile
import time
from pathlib import Path

from tests.bench.monitors import Monitors
from tests.bench.process import role
from tests.bench.table import Row
from tests.lab.waiting import until


async def host(*, short: bool) -> list[Row]:
    """Return the row."""
    vms = 200 if short else 1000
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
        async with Monitors(Path(folder), vms) as monitors, role("agent", folder, 2.0):
            begun = time.monotonic()
            await until(lambda: len(monitors.clients) >= vms, 60)
            await until(lambda: monitors.answered[b"query-blockstats"] >= vms, 60)
            attached = time.monotonic() - begun
    return [
        Row(
            f"{vms} monitors attached and polled, from the process's start",
            f"{attached:.1f} s",
            target="≤ 3 s",
            met=attached <= 3,
        ),
    ]
