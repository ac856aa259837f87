"""The roles as processes, and what they cost."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any


@contextlib.asynccontextmanager
async def role(name: str, *arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a role of tests.bench.roles for as long as the block does; then it is killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.roles", name, *map(str, arguments), stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def said(process: asyncio.subprocess.Process) -> Any:
    """End a role with SIGTERM and return the JSON that it says of itself then."""
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    return json.loads(out)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that processes have taken so far, by the scheduler's count: all threads, user and system."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_bytes(pid: int) -> int:
    """Return how much RAM a process takes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
