"""The agent shares a monitor with a client that works like Proxmox. Both get all their replies.

The test logs how long the client's connections took: `pytest --log-cli-level=info`.
"""

import asyncio
import json
import logging
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Final

from agent.cli.demo.guest import GuestKind
from tests.lab.agent_process import AgentProcess, record_time
from tests.lab.fixtures import StartGuest
from tests.lab.proxmox import Report
from tests.lab.waiting import DEADLINE_SECONDS, until

_log = logging.getLogger(__name__)

POLLS: Final = 15
"""Number of polls, five a second; the default is one in ten seconds."""


async def start_client(socket: Path, pause_seconds: float) -> asyncio.subprocess.Process:
    """Start the client, and wait until it has polled once."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.lab.proxmox", socket, str(pause_seconds)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await process.stdout.readline() == b"polling\n"
    return process


async def stop_client(process: asyncio.subprocess.Process) -> Report:
    async with asyncio.timeout(DEADLINE_SECONDS):
        out, _ = await process.communicate(b"")
    return Report(**json.loads(out))


async def test_proxmox_and_the_agent_both_get_every_reply(start_guest: StartGuest, folder: Path) -> None:
    guest = await start_guest(kind=GuestKind.WRITER)
    alone = await start_client(guest.monitor, 0.0)
    await asyncio.sleep(1)  # a second's connections without the agent, for the comparison in the log
    without_agent = await stop_client(alone)
    config = {"monitors": [{"dial_per_poll": str(guest.monitor)}], "intervals": {"poll": "200ms"}}
    async with AgentProcess(folder, config) as agent:
        client = await start_client(guest.monitor, 0.0)
        mark = agent.mark()
        await until(lambda: len([*agent.find_records("sample.block", device="disk0", since=mark)]) >= POLLS)
        beside_agent = await stop_client(client)
        polls = [record_time(record) for record in agent.find_records("sample.block", device="disk0", since=mark)]
        lifecycle = {record["type"] for record in agent.records() if record["type"].startswith("qemu.vm.")}
        assert "qemu.vm.gone" not in lifecycle
        (attached,) = agent.find_records("vm.attached")
        assert attached["data"]["events_available"] is False
    assert without_agent.failures == beside_agent.failures == []
    assert len(beside_agent.seconds) > 1  # on a machine under load, the agent may poll more often than the client
    for name, report in (("without the agent", without_agent), ("beside the agent", beside_agent)):
        if not report.seconds:
            continue  # a busy machine may make no connection within a second
        spent = sorted(report.seconds)
        rate = len(spent) / sum(spent)
        _log.info("%s: %.0f connections a second, median %.4f s, longest %.4f s", name, rate, median(spent), spent[-1])
    _log.info("the agent's polls: longest gap %.2f s", max(after - before for before, after in pairwise(polls)))
