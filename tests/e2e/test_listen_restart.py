"""QEMUs that call the agent find it again when it is killed and started anew, with nothing else done.

How long that took is logged: `VMS=200 pytest --log-cli-level=info`.
"""

import logging
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from agent.cli.demo.guest import Guest, GuestOptions
from tests.lab.agent_process import AgentProcess, record_time

_log = logging.getLogger(__name__)

VMS = int(os.environ.get("VMS", "20"))
"""How many QEMUs; `VMS=200` takes about 7 GB of memory and two minutes."""
RECONNECT_SECONDS = 1
SPARE_SECONDS = 2.0 + VMS / 50
"""What the agent's own start takes, and meeting the VMs on a machine of two cores."""


@pytest.mark.timeout(60 + 2 * VMS)
async def test_all_vms_are_back_within_the_reconnect_time_after_the_agent_was_killed(folder: Path) -> None:
    path = folder / "mon"
    calling = (
        "-S",
        *("-chardev", f"socket,id=mon,path={path},reconnect={RECONNECT_SECONDS}"),
        *("-mon", "chardev=mon,mode=control"),
    )
    async with AsyncExitStack() as running:
        guests = [Guest(folder, f"vm{number}", GuestOptions(extra=calling)) for number in range(VMS)]
        for guest in guests:
            await running.enter_async_context(guest)
        uuids = {guest.uuid for guest in guests}
        agent = AgentProcess(folder, {"monitors": [{"listen": str(path)}]})
        try:
            for _ in range(2):
                mark = agent.mark()
                begin = time.time()
                await agent.start()
                ready = time.monotonic()
                listening = time.time() - begin

                def missing(mark: int = mark) -> set[str]:
                    return uuids - {record["vmuuid"] for record in agent.find_records("vm.attached", since=mark)}

                while missing():
                    waited = time.monotonic() - ready
                    assert waited < RECONNECT_SECONDS + SPARE_SECONDS, f"{len(missing())} missing after {waited:.1f} s"
                    await agent.wait_for_record("vm.attached", vm=next(iter(missing())), since=mark, timeout=30)
                back = [record_time(record) - begin for record in agent.find_records("vm.attached", since=mark)]
                _log.info("%d VMs: %.2f s after its start it listens, %.2f s all are there", VMS, listening, max(back))
                series = await agent.metrics()
                assert series.value("qmp_agent_monitors", state="up") == VMS
                await agent.kill()
                assert path.is_socket(), "a killed agent leaves its socket's file"
        finally:
            await agent.kill()
