"""A real Linux guest with a real guest agent: every figure equals the one read inside, and every state is reported."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from tests.lab.agent_process import AgentProcess
from tests.lab.guest_agent_probe import GuestAgentProbe
from tests.lab.guest_figures import check_figures
from tests.lab.guest_shell import GuestShell, guest_shell
from tests.lab.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUICK = dict.fromkeys(("filesystems", "load", "cpu", "disks", "network", "users", "os", "clock", "freeze"), "500ms")
RESTART = "qemu-ga -d -m virtio-serial -p $CHANNEL -t /run -f /run/qemu-ga.pid"


@dataclass(frozen=True, slots=True)
class Environment:
    """An agent, a Linux guest with a guest agent, and a shell in it."""

    agent: AgentProcess
    guest: Guest
    shell: GuestShell

    async def wait_for_state(self, state: str, since: int) -> dict[str, Any]:
        return await self.agent.wait_for_record(
            "sample.guest_agent_session", vm=self.guest.uuid, since=since, state=state
        )


def config(folder: Path) -> dict[str, Any]:
    return {
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "intervals": {"poll": "500ms", "migrations_and_jobs": "100ms", "resync": "5s"},
        # A guest without enough CPU time answers late. A query that failed is not repeated within a minute.
        "guest_agent": {"enabled": True, "timeout": "10s", "max_retry_delay": "2s", "intervals": QUICK},
        "alerts": {"guest_filesystems": {"levels": ["50%"]}, "guests": {"max_frozen_time": "2s"}},
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def environment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Environment]:
    folder = Path(tmp_path_factory.mktemp("g"))
    options = GuestOptions(kind=GuestKind.LINUX, guest_agent=True, guest_shell=True, pause_seconds=5)
    async with AsyncExitStack() as running:
        guest = await running.enter_async_context(Guest(folder, "web-1", options))
        await guest.wait_until_booted()
        shell = await running.enter_async_context(guest_shell(folder, "web-1"))
        agent = await running.enter_async_context(AgentProcess(folder, config(folder)))
        yield Environment(agent, guest, shell)


async def test_the_channel_is_found_and_the_figures_equal_those_inside(environment: Environment) -> None:
    agent, shell, uuid = environment.agent, environment.shell, environment.guest.uuid
    channel = await agent.wait_for_record("sample.guest_agent", vm=uuid, connected=True)
    assert channel["data"]["socket"] == f"{environment.guest.folder}/web-1.qga"
    await check_figures(agent, shell, uuid)


async def test_a_file_system_that_fills_in_the_guest_fires_its_alert(environment: Environment) -> None:
    agent, shell, uuid = environment.agent, environment.shell, environment.guest.uuid
    mark = agent.mark()
    await shell.run("dd if=/dev/zero of=/data/file bs=1M count=20 2>/dev/null; sync")
    alert = await agent.wait_for_record("alert.guest_filesystem_space", vm=uuid, since=mark, state="firing")
    assert (alert["subject"], alert["data"]["level"]) == ("/data", "50%")
    await shell.run("rm /data/file; sync")
    await agent.wait_for_record("alert.guest_filesystem_space", vm=uuid, since=mark, state="resolved")


async def test_a_guest_agent_that_stops_ends_and_starts_is_reported(environment: Environment) -> None:
    agent, shell, guest = environment.agent, environment.shell, environment.guest
    mark = agent.mark()
    await shell.run("kill -STOP $(pidof qemu-ga)")
    await environment.wait_for_state("unresponsive", mark)
    assert (await agent.metrics()).matching("qemu_guest_filesystem_used_bytes", vm_uuid=guest.uuid) == []
    mark = agent.mark()
    await shell.run("kill -CONT $(pidof qemu-ga)")
    await environment.wait_for_state("up", mark)
    mark = agent.mark()
    await shell.run("kill $(pidof qemu-ga)")
    await environment.wait_for_state("absent", mark)
    assert (await agent.metrics()).value("qemu_guest_agent_connected", vm_uuid=guest.uuid) == 0
    mark = agent.mark()
    await shell.run(RESTART)
    await environment.wait_for_state("up", mark)


async def test_a_paused_guest_is_not_queried_and_keeps_its_last_values(environment: Environment) -> None:
    agent, guest = environment.agent, environment.guest
    # The guest agent has just been started: it is up before it has reported any values.
    await agent.wait_for_record("sample.guest_filesystem", vm=guest.uuid, since=agent.mark())
    mark = agent.mark()
    await guest.command("stop")
    await environment.wait_for_state("suspended", mark)
    series = await agent.metrics()
    asked = series.value("qmp_agent_guest_agent_commands_total", command="guest-get-fsinfo", outcome="ok")
    age = series.value("qemu_guest_agent_last_response_timestamp_seconds", vm_uuid=guest.uuid)
    polls = len(list(agent.find_records("sample.block", vm=guest.uuid)))
    await until(lambda: len(list(agent.find_records("sample.block", vm=guest.uuid))) > polls + 3, 180)
    series = await agent.metrics()
    assert series.value("qmp_agent_guest_agent_commands_total", command="guest-get-fsinfo", outcome="ok") == asked
    assert series.value("qemu_guest_agent_last_response_timestamp_seconds", vm_uuid=guest.uuid) == age
    assert series.matching("qemu_guest_filesystem_used_bytes", vm_uuid=guest.uuid)
    mark = agent.mark()
    await guest.command("cont")
    await environment.wait_for_state("up", mark)


async def test_a_migrating_vm_is_not_queried(environment: Environment) -> None:
    agent, guest = environment.agent, environment.guest
    mark = agent.mark()
    await guest.command("migrate-set-parameters", max_bandwidth=1 << 20)
    await guest.command("migrate", uri="exec:cat >/dev/null")
    record = await environment.wait_for_state("suspended", mark)
    assert record["data"]["reason"] == "the VM is migrating"
    mark = agent.mark()
    await guest.command("migrate_cancel")
    await environment.wait_for_state("up", mark)


async def test_frozen_file_systems_are_an_alert_and_nothing_else_is_queried(environment: Environment) -> None:
    """Another client freezes while the agent is away, because the channel serves one client at a time."""
    agent, guest = environment.agent, environment.guest
    await agent.stop()
    assert await execute(guest, "guest-fsfreeze-freeze") == 1
    mark = agent.mark()
    await agent.start()
    await agent.wait_for_record("alert.guest_frozen", vm=guest.uuid, since=mark, state="firing")
    series = await agent.metrics()
    assert series.value("qemu_guest_freeze_frozen", vm_uuid=guest.uuid) == 1
    assert series.value("qmp_agent_guest_agent_commands_total", command="guest-get-fsinfo", outcome="ok") is None
    await agent.stop()
    assert await execute(guest, "guest-fsfreeze-thaw") == 1
    mark = agent.mark()
    await agent.start()
    await agent.wait_for_record("sample.guest_filesystem", vm=guest.uuid, since=mark)
    await agent.wait_for_record("sample.guest_freeze", vm=guest.uuid, since=mark, frozen=False)
    assert (await agent.metrics()).value("qemu_guest_freeze_frozen", vm_uuid=guest.uuid) == 0


async def test_a_reboot_loses_the_guest_agent_until_the_guest_is_up(environment: Environment) -> None:
    agent, guest = environment.agent, environment.guest
    mark = agent.mark()
    await guest.command("system_reset")
    absent = agent.mark_after(await environment.wait_for_state("absent", mark))
    await environment.wait_for_state("up", absent)
    await agent.wait_for_record("sample.guest_os", vm=guest.uuid, since=absent)


async def execute(guest: Guest, command: str) -> Any:
    """Execute a command over the guest's channel, as a manager does, and return its value."""
    async with GuestAgentProbe(guest.folder / f"{guest.name}.qga") as probe:
        return await probe.execute(command)
