"""QEMUs that connect to the agent reconnect by themselves after the agent was killed and restarted.

The test logs how long all reconnects take: `VMS=200 pytest --log-cli-level=info`.
"""

import logging
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from agent.cli.demo.guest import Guest, GuestOptions
from tests.lab.agent_process import AgentProcess, record_time
from tests.lab.waiting import until

_log = logging.getLogger(__name__)

VMS = int(os.environ.get("VMS", "20"))
"""Number of QEMUs; `VMS=200` takes about 7 GB of memory and two minutes."""
RECONNECT_SECONDS = 1


@pytest.mark.timeout(300 + 2 * VMS)
async def test_all_vms_reconnect_after_the_agent_was_killed_and_restarted(folder: Path) -> None:
    path = folder / "mon"
    connect = (
        "-S",
        *("-chardev", f"socket,id=mon,path={path},reconnect={RECONNECT_SECONDS}"),
        *("-mon", "chardev=mon,mode=control"),
    )
    async with AsyncExitStack() as running:
        guests = [Guest(folder, f"vm{number}", GuestOptions(extra=connect)) for number in range(VMS)]
        for guest in guests:
            await running.enter_async_context(guest)
        uuids = {guest.uuid for guest in guests}
        agent = AgentProcess(folder, {"monitors": [{"listen": str(path)}]})
        try:
            for _ in range(2):
                mark = agent.mark()
                begin = time.time()
                await agent.start()
                listening = time.time() - begin

                def missing(mark: int = mark) -> set[str]:
                    return uuids - {record["vmuuid"] for record in agent.find_records("vm.attached", since=mark)}

                while missing():
                    await agent.wait_for_record("vm.attached", vm=next(iter(missing())), since=mark)
                delays = [record_time(record) - begin for record in agent.find_records("vm.attached", since=mark)]
                _log.info("%d VMs: endpoint after %.2f s, all attached after %.2f s", VMS, listening, max(delays))

                async def are_up() -> bool:
                    return (await agent.metrics()).value("qmp_agent_monitors", state="up") == VMS

                await until(are_up)
                await agent.kill()
                assert path.is_socket(), "a killed agent leaves its socket behind"
        finally:
            await agent.kill()
