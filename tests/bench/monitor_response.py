"""Response time of QEMU's monitor while the storage of a disk hangs: beside no agent, the agent, and a client that queries storage.

The disk is on a stopped FUSE export. Another disk of the same guest is in use. The states take turns in one run, and each slow reply is
compared with the time that the threads involved waited for a CPU.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.cli.demo.guest import Guest
from agent.cli.demo.guest_qmp_client import GuestQmpClient
from tests.bench.table import Row
from tests.lab.agent_process import AgentProcess
from tests.lab.background import in_background
from tests.lab.hung_storage import FUSE, fuse, on_fuse

SLOW_SECONDS: Final = 0.02
"""A reply that takes longer is slow, and its cause is looked for."""

PAUSE_SECONDS: Final = 0.005
RESYNC_SECONDS: Final = 2.0

MONITOR: Final = "measured.sock"
"""Name of the socket on which the replies are measured."""

QUANTILES: Final = (("median", 0.5), ("p99", 0.99), ("max", 1.0))

_NAMES: Final = {"none": "no agent", "agent": "the agent", "client": "a client that queries the storage"}

CONFIG: Final[dict[str, Any]] = {"intervals": {"poll": "1s", "resync": f"{RESYNC_SECONDS:g}s"}}


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply.

    Attributes:
        seconds: how long it took.
        waiting: how long QEMU and the measuring client were runnable meanwhile and waited for a CPU.
    """

    seconds: float
    waiting: float


def waiting_seconds(pid: int) -> float:
    """Return how long all threads of a process have been runnable and waited for a CPU (proc(5), schedstat)."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - names, not paths
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[1])
    return total / 1e9


def measure_replies(path: str, pid: int, seconds: float) -> Iterator[Reply]:
    """Send `query-status` again and again, and yield each reply. It blocks, in a process of its own that does nothing else.

    Args:
        path: the monitor's socket.
        pid: the QEMU.
        seconds: for how long to send.
    """
    pids = pid, os.getpid()
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.connect(path)
        lines = monitor.makefile("rb")
        lines.readline()
        monitor.sendall(b'{"execute": "qmp_capabilities"}\n')
        lines.readline()
        print("ready", flush=True)
        sys.stdin.readline()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            waited, started = sum(map(waiting_seconds, pids)), time.monotonic()
            monitor.sendall(b'{"execute": "query-status"}\n')
            while b'"return"' not in lines.readline():
                pass
            took = time.monotonic() - started
            yield Reply(took, min(took, sum(map(waiting_seconds, pids)) - waited))
            time.sleep(PAUSE_SECONDS)


def _print_replies(path: str, pid: str, seconds: str) -> None:
    """Print the replies: the main function of the measuring process."""
    replies = measure_replies(path, int(pid), float(seconds))
    json.dump([(reply.seconds, reply.waiting) for reply in replies], sys.stdout)


async def _measure(guest: Guest, server: asyncio.subprocess.Process, seconds: float) -> list[Reply]:
    """Stop the storage for some seconds, and measure the replies meanwhile."""
    assert guest.process is not None
    program = f"from {__name__} import _print_replies; import sys; _print_replies(*sys.argv[1:])"
    arguments = str(guest.folder / MONITOR), str(guest.process.pid), str(seconds)
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert client.stdout is not None
    await client.stdout.readline()
    server.send_signal(signal.SIGSTOP)
    ending = asyncio.get_running_loop().call_later(seconds, server.send_signal, signal.SIGCONT)
    try:
        output, _ = await client.communicate(b"go\n")
    finally:
        ending.cancel()
        server.send_signal(signal.SIGCONT)
    return [Reply(*reply) for reply in json.loads(output)]


async def _query_storage(guest: Guest) -> None:
    """Query the storage at the agent's interval, as an agent does that does not check the storage first."""
    monitor = socket.socket(socket.AF_UNIX)
    monitor.connect(str(guest.monitor))
    client = await GuestQmpClient.from_connected_socket(monitor)
    try:
        while True:
            await client.command("query-named-block-nodes")
            await asyncio.sleep(RESYNC_SECONDS)
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def _beside(state: str, folder: Path, guest: Guest) -> AsyncIterator[None]:
    """Run what is beside QEMU in a state: nothing, the agent, or a client that queries storage."""
    if state == "agent":
        async with AgentProcess(
            folder, {"monitors": [{"dial": str(guest.monitor)}]} | CONFIG, is_forked=False
        ) as agent:
            await agent.wait_for_record("sample.block_storage", vm=guest.uuid, device="hung", since=agent.mark())
            yield
    elif state == "client":
        async with in_background(_query_storage(guest)):
            yield
    else:
        yield


async def hung_storage(*, short: bool) -> list[Row]:
    """Return the rows; none if FUSE is missing."""
    if not FUSE.exists():
        return []
    seconds, rounds = (5.0, 2) if short else (10.0, 4)
    replies: dict[str, list[Reply]] = {state: [] for state in _NAMES}
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        folder = Path(path)
        monitor = ("-qmp", f"unix:{folder / MONITOR},server=on,wait=off")
        async with fuse(folder) as (served, server), on_fuse(folder, served, extra=monitor) as guest:
            await guest.wait_until_booted()
            for state in [*("none", "agent") * rounds, "client"]:
                async with _beside(state, folder, guest):
                    replies[state] += await _measure(guest, server, seconds)
    return [_row(state, replies) for state in replies]


def _quantile(replies: Sequence[Reply], share: float) -> float:
    """Return a quantile of the times in milliseconds."""
    return sorted(reply.seconds for reply in replies)[min(int(len(replies) * share), len(replies) - 1)] * 1e3


def _row(state: str, replies: Mapping[str, Sequence[Reply]]) -> Row:
    ours = replies[state]
    figure = ", ".join(f"{name} {_quantile(ours, share):.1f} ms" for name, share in QUANTILES)
    slow = [reply for reply in ours if reply.seconds > SLOW_SECONDS]
    if slow:
        share = sum(reply.waiting for reply in slow) / sum(reply.seconds for reply in slow)
        figure += f"; {len(slow)} of {len(ours)} took longer than {SLOW_SECONDS * 1e3:g} ms, {share:.0%} of it waiting for a CPU"
    ratio = _quantile(ours, 0.99) / _quantile(replies["none"], 0.99)
    target, met = ("< 2", ratio < 2) if state == "agent" else ("", None)
    what = f"`query-status` while storage hangs, beside {_NAMES[state]}"
    return Row(what, figure, ratio, "no agent, 99th percentile", target, met)
