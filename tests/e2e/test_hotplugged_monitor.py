"""The agent hot-plugs a monitor of its own into QEMU, through a monitor that the manager shares. That monitor is free again soon."""

from pathlib import Path

import pytest

from agent.cli.demo.guest import Guest
from agent.qmp.commands import commands_to_add_own_monitor
from tests.lab.agent_process import AgentProcess
from tests.lab.fixtures import StartGuest
from tests.lab.proxmox import poll
from tests.lab.qemus import Qemu
from tests.lab.waiting import until

SINCE = (11, 1)


async def character_devices(guest: Guest) -> set[str]:
    """Return the labels of a QEMU's character devices."""
    return {device["label"] for device in await guest.command("query-chardev")}


async def test_a_monitor_is_added_if_qemu_supports_it_and_removed_with_the_agent(
    start_guest: StartGuest, folder: Path, qemu: Qemu
) -> None:
    guest = await start_guest(binary=qemu.binary)
    before = await character_devices(guest)
    own = folder / "own"
    own.mkdir()
    supported = qemu.version >= SINCE
    config = {
        "monitors": [{"dial_per_poll": str(guest.monitor), "own_monitor_dir": str(own)}],
        "intervals": {"poll": "200ms"},
    }
    agent = AgentProcess(folder, config)

    async def has_added(number: int) -> bool:
        """Return whether QEMU has this number of hot-plugged monitors, and the folder this number of their sockets."""
        return len(await character_devices(guest) - before) == len([*own.iterdir()]) == number

    try:
        for end in (agent.stop, agent.kill):
            mark = agent.mark()
            await agent.start()
            attached = await agent.wait_for_record("vm.attached", vm=guest.uuid, since=mark)
            assert attached["data"].get("events_available", True) is supported
            await until(lambda: has_added(int(supported)))
            poll(str(guest.monitor))
            if supported:
                await guest.command("stop")
                await agent.wait_for_record("event.stop", vm=guest.uuid, since=mark)
                await guest.command("cont")
            await agent.wait_for_record("sample.runstate", vm=guest.uuid, since=mark)
            await end()
            await until(lambda: has_added(0))
        assert [*agent.find_records("vm.gone")] == []
    finally:
        await agent.kill()


async def test_a_monitor_that_a_killed_agent_left_behind_is_used(
    start_guest: StartGuest, folder: Path, qemu: Qemu
) -> None:
    if qemu.version < SINCE:
        pytest.skip("this QEMU cannot add monitors")
    guest = await start_guest(binary=qemu.binary)
    assert guest.process is not None
    for command in commands_to_add_own_monitor(f"{folder}/{guest.process.pid}.qmp"):
        await guest.command(command.name, **(command.arguments or {}))
    entry = {"dial_per_poll": str(guest.monitor), "own_monitor_dir": str(folder)}
    async with AgentProcess(folder, {"monitors": [entry]}) as agent:
        attached = await agent.wait_for_record("vm.attached", vm=guest.uuid)
        assert "events_available" not in attached["data"]
        assert {"qmp-agent"} < await character_devices(guest)
