"""What a steady poll of a quiet two-disk VM costs."""

import asyncio
import sys
import tempfile
from pathlib import Path

import uvloop

from agent.demo.guest import until
from tests.bench.cost import cpu_seconds
from tests.bench.monitors import Monitors

INTERVAL_SECONDS = 0.25


async def one(role: str, vms: int, seconds: float) -> float:
    """Return the microseconds of CPU that one role takes for one poll, its start left out."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as name:
        async with Monitors(Path(name), vms) as monitors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.bench.roles", role, name, str(INTERVAL_SECONDS)
            )
            try:
                await until(lambda: monitors.asked[b"query-blockstats"] >= 4 * vms, 60)
                before, polls = cpu_seconds([process.pid]), monitors.asked[b"query-blockstats"]
                await asyncio.sleep(seconds)
                spent, polls = cpu_seconds([process.pid]) - before, monitors.asked[b"query-blockstats"] - polls
            finally:
                process.kill()
                await process.wait()
    return spent / polls * 1e6


async def main() -> None:
    for role in ("floor", "agent", "qemu.qmp", "floor", "agent"):
        print(role, await one(role, 100, 5))


if __name__ == "__main__":
    uvloop.run(main())
