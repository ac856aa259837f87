"""A guest runs out of space repeatedly, and is resumed each time: no alert fires while the guest runs.

QEMU before 9.2 emits one BLOCK_IO_ERROR for each failed request, and the guest has several requests in flight. The number of rounds is
`QMP_AGENT_PAUSE_ROUNDS`, by default 3.
"""

import asyncio
import os
import random
from pathlib import Path
from typing import Any, Final

import pytest

from agent.cli.demo.guest import GuestKind
from tests.lab.qemus import Qemu
from tests.lab.thin_guests import MIB, AlertWatcher, LoopDevice, ThinGuest, make_qcow2, thin_guest
from tests.lab.waiting import until

ROUNDS: Final = int(os.environ.get("QMP_AGENT_PAUSE_ROUNDS", "3"))
FIRST_SIZE: Final = 8 * MIB
STEP: Final = 6 * MIB
DELAYS: Final = (0.0, 0.0, 0.05, 0.2, 0.5, 1.0, 3.0)
"""Seconds between the extension and `cont`."""


async def is_stopped(guest: ThinGuest) -> bool:
    return bool((await guest.command("query-status"))["status"] == "io-error")


def full_alerts(agent: AlertWatcher) -> list[dict[str, Any]]:
    return [alert for alert in agent.alerts if alert["alert"] == "disk_full"]


@pytest.mark.skipif(not LoopDevice.is_available(), reason="only root can make loop devices")
@pytest.mark.timeout(900 + 15 * ROUNDS)
async def test_no_alert_fires_while_the_guest_runs(folder: Path, qemu: Qemu) -> None:
    delays = random.Random(7)  # the same delays in each run
    disk_mib = (FIRST_SIZE + (ROUNDS + 40) * STEP) // MIB
    async with LoopDevice(folder / "lv.raw", FIRST_SIZE) as loop:
        await make_qcow2(loop.path, disk_mib * MIB)
        options: dict[str, Any] = {
            "kind": GuestKind.LINUX,
            "binary": qemu.binary,
            "write_kib": 4096,
            "pause_seconds": 0,
        }
        options |= {"storage": {"driver": "host_device", "filename": loop.path}, "disk_options": "werror=stop"}
        async with (
            thin_guest(folder, disk_mib=disk_mib, **options) as guest,
            AlertWatcher(folder, mode="observe", levels=["95%"], poll=1) as agent,
        ):
            size = FIRST_SIZE
            for _ in range(ROUNDS):
                await until(lambda: is_stopped(guest), 300)
                await until(lambda: full_alerts(agent) and full_alerts(agent)[-1]["state"] == "firing", 180)
                assert full_alerts(agent)[-1]["subject"] == "disk0"
                assert full_alerts(agent)[-1]["path"] == loop.path
                size += STEP
                await loop.extend(size)
                await asyncio.sleep(delays.choice(DELAYS))
                await guest.command("cont")
            size += 40 * STEP
            await until(lambda: is_stopped(guest), 180)
            await loop.extend(size)
            await guest.command("cont")
            await until(lambda: full_alerts(agent)[-1]["state"] == "resolved", 180)
            await asyncio.sleep(3)  # coalesced events are reported after a second

            async def agrees() -> bool:
                firing = [alert for alert in agent.app.alerts.engine.store if alert.name == "disk_full"]
                return bool(firing) is await is_stopped(guest)

            await until(agrees, 180)
            states = [alert["state"] for alert in full_alerts(agent)]
            assert states == (["firing", "resolved"] * len(states))[: len(states)]
            assert states.count("firing") >= ROUNDS
            assert in_order(agent.event_times("BLOCK_IO_ERROR", "STOP", "RESUME"))


def in_order(times: list[float]) -> bool:
    return times == sorted(times)
