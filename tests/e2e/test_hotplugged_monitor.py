"""A monitor of the agent's own, added to each real QEMU that can, over one that stays free for whom it belongs to."""

from pathlib import Path

import pytest

from agent.cli.demo.guest import Guest, until
from agent.qmp.commands import own_monitor
from tests.lab.agent_process import AgentProcess
from tests.lab.fixtures import StartGuest
from tests.lab.proxmox import visit
from tests.lab.qemus import Qemu

SINCE = (11, 1)


async def devices(guest: Guest) -> set[str]:
    """Return the names of the character devices that a QEMU has."""
    return {device["label"] for device in await guest.command("query-chardev")}


async def test_a_monitor_is_added_where_qemu_can_and_goes_with_the_agent(
    start_guest: StartGuest, folder: Path, qemu: Qemu
) -> None:
    guest = await start_guest(binary=qemu.binary)
    before = await devices(guest)
    own = folder / "own"
    own.mkdir()
    can = qemu.version >= SINCE
    config = {"monitors": [{"burst": str(guest.monitor), "hotplug_dir": str(own)}], "intervals": {"poll": "200ms"}}
    agent = AgentProcess(folder, config)

    async def there(number: int) -> bool:
        """Return whether as many are added as that, in QEMU and in the folder."""
        return len(await devices(guest) - before) == len([*own.iterdir()]) == number

    try:
        for end in (agent.stop, agent.kill):
            mark = agent.mark()
            await agent.start()
            attached = await agent.wait_for_record("vm.attached", vm=guest.uuid, since=mark)
            assert attached["data"].get("events_available", True) is can
            await until(lambda: there(int(can)), 10)
            visit(str(guest.monitor))
            if can:
                await guest.command("stop")
                await agent.wait_for_record("event.stop", vm=guest.uuid, since=mark)
                await guest.command("cont")
            await agent.wait_for_record("sample.runstate", vm=guest.uuid, since=mark)
            await end()
            await until(lambda: there(0), 10)
        assert [*agent.find_records("vm.gone")] == []
    finally:
        await agent.kill()


async def test_one_that_an_agent_left_before_it_connected_is_taken(
    start_guest: StartGuest, folder: Path, qemu: Qemu
) -> None:
    if qemu.version < SINCE:
        pytest.skip("this QEMU adds no monitors")
    guest = await start_guest(binary=qemu.binary)
    assert guest.process is not None
    for ask in own_monitor(f"{folder}/{guest.process.pid}.qmp"):
        await guest.command(ask.name, **(ask.arguments or {}))
    entry = {"burst": str(guest.monitor), "hotplug_dir": str(folder)}
    async with AgentProcess(folder, {"monitors": [entry]}) as agent:
        attached = await agent.wait_for_record("vm.attached", vm=guest.uuid)
        assert "events_available" not in attached["data"]
        assert {"qmp-agent"} < await devices(guest)
