"""Benchmark roles as processes, and the CPU and memory of processes."""

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
async def role(name: str, *arguments: object, tree: Path | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a role of tests.bench.roles during the block, then kill it.

    Args:
        name: The name of the role.
        arguments: The arguments of the role.
        tree: A working tree of this project with the code to run; None for the code of this process.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.roles", name, *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)} if tree is not None else None,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def stop(process: asyncio.subprocess.Process) -> Any:
    """Send a role SIGTERM and return the JSON that it prints at its end."""
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    return json.loads(out)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time of processes so far in seconds, from the scheduler's statistics: all threads, user and system."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
