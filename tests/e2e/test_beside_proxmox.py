"""Beside another program that uses the same socket as Proxmox's do: neither starves.

How long its visits took is logged: `pytest --log-cli-level=info`.
"""

import asyncio
import json
import logging
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Final

from agent.cli.demo.guest import GuestKind, until
from tests.lab.agent_process import AgentProcess, record_time
from tests.lab.fixtures import StartGuest
from tests.lab.proxmox import TIMEOUT_SECONDS, Report

_log = logging.getLogger(__name__)

POLLS: Final = 15
"""Five a second, where ten seconds are usual."""


async def visiting(socket: Path, pause_seconds: float) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.lab.proxmox", socket, str(pause_seconds)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def report(process: asyncio.subprocess.Process) -> Report:
    async with asyncio.timeout(20):
        out, _ = await process.communicate(b"")
    return Report(**json.loads(out))


async def test_beside_proxmox_both_get_what_they_ask_for(start_guest: StartGuest, folder: Path) -> None:
    guest = await start_guest(kind=GuestKind.WRITER)
    alone = await visiting(guest.monitor, 0.0)
    await asyncio.sleep(1)  # how long its visits take when it is alone
    before = await report(alone)
    config = {"monitors": [{"burst": str(guest.monitor)}], "intervals": {"poll": "200ms"}}
    async with AgentProcess(folder, config) as agent:
        other = await visiting(guest.monitor, 0.0)
        polled = agent.mark()
        await until(lambda: len([*agent.find_records("sample.block", device="disk0", since=polled)]) >= POLLS, 60)
        beside = await report(other)
        polls = [record_time(record) for record in agent.find_records("sample.block", device="disk0", since=polled)]
        lives = {record["type"] for record in agent.records() if record["type"].startswith("qemu.vm.")}
        assert "qemu.vm.gone" not in lives
        (attached,) = agent.find_records("vm.attached")
        assert attached["data"]["events_available"] is False
    assert before.failures == beside.failures == []
    assert len(beside.seconds) > POLLS
    assert max(beside.seconds) < TIMEOUT_SECONDS
    for name, told in (("alone", before), ("beside", beside)):
        spent = sorted(told.seconds)
        rate = len(spent) / sum(spent)
        _log.info("%s: %.0f visits a second, median %.4f s, longest %.4f s", name, rate, median(spent), spent[-1])
    _log.info("the agent's polls: longest gap %.2f s", max(after - before for before, after in pairwise(polls)))
