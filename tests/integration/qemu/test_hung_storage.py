"""Storage that does not answer: the agent freezes no guest on it, reports it, and other VMs are watched as before."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from agent.cli.demo.guest import Guest, until
from tests.integration.qemu.test_pool_file_systems import pool_of, storage_of
from tests.lab.machine import require
from tests.lab.thin_guests import AlertWatcher, make_qcow2, thin_guest

HUNG_SECONDS: Final = 12.0
STATUS_SECONDS: Final = 0.1
"""Maximum time of an answer to `query-status` while the storage hangs."""

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="exports by FUSE need root and /dev/fuse"
)


@contextlib.asynccontextmanager
async def fuse_export(folder: Path) -> AsyncIterator[tuple[Path, asyncio.subprocess.Process]]:
    """Export a qcow2 image as a file by FUSE while the block runs; yield the file and the server, which a signal can stop."""
    require("qemu-storage-daemon", "qemu-utils")
    image, file = folder / "served.qcow2", folder / "export"
    await make_qcow2(str(image), 64 << 20)
    file.touch()
    server = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", "qemu-storage-daemon"),
        *("--blockdev", f"file,node-name=image,filename={image}"),
        *("--export", f"fuse,id=export,node-name=image,mountpoint={file},writable=on,growable=on"),
    )
    try:
        await until(lambda: file.stat().st_size > 0, 60)
        yield file, server
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.send_signal(signal.SIGCONT)
            server.send_signal(signal.SIGTERM)
        await server.wait()


async def slowest_status(guest: Guest, seconds: float) -> float:
    """Query the status of a guest for some time; return the longest time of an answer, in seconds."""
    slowest, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.monotonic()
        async with asyncio.timeout(10):
            await guest.command("query-status")
        slowest = max(slowest, time.monotonic() - start)
        await asyncio.sleep(0.05)
    return slowest


async def test_hung_storage_is_reported_and_no_guest_on_it_is_frozen(folder: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        file, server = await stack.enter_async_context(fuse_export(folder))
        options: dict[str, Any] = {"disk_mib": 64, "extra": ["-S"]}
        storage = {"driver": "file", "filename": str(file)}
        guest = await stack.enter_async_context(thin_guest(folder, "hung", storage=storage, **options))
        await stack.enter_async_context(thin_guest(folder, "well", **options))
        agent = await stack.enter_async_context(AlertWatcher(folder, mode="observe", poll=0.2, resync=1))
        await until(lambda: "size_bytes" in pool_of(agent, "hung") and "size_bytes" in pool_of(agent, "well"), 60)
        assert storage_of(agent, "hung")["pool"] == str(file)
        runs = agent.app.metrics.collector_runs
        try:
            server.send_signal(signal.SIGSTOP)
            stopped, before = time.monotonic(), runs["block", "ok"]
            slowest = asyncio.create_task(slowest_status(guest, HUNG_SECONDS))
            await until(lambda: any(alert["alert"] == "pool_unresponsive" for alert in agent.alerts), 60)
            assert time.monotonic() - stopped < 10
            assert await slowest < STATUS_SECONDS
            assert runs["block", "ok"] - before > HUNG_SECONDS / 0.2
        finally:
            server.send_signal(signal.SIGCONT)
        await until(lambda: agent.alerts[-1]["state"] == "resolved", 60)
        fired, resolved = agent.alerts
        assert (fired["alert"], fired["subject"], fired["vm_names"]) == ("pool_unresponsive", str(file), ["hung"])
        assert (resolved["alert"], resolved["resolved_by"]) == ("pool_unresponsive", "responsive")
