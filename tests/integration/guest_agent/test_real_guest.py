"""A real Linux guest with a real guest agent: every figure equals the one read inside, and every state is reported."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions, until
from tests.lab.agent_process import AgentProcess
from tests.lab.guest_agent_probe import GuestAgentProbe
from tests.lab.guest_shell import GuestShell, guest_shell

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
        "intervals": {"poll": "500ms", "migration": "100ms", "resync": "5s"},
        "guest_agent": {"enabled": True, "timeout": "2s", "max_retry_delay": "2s", "intervals": QUICK},
        "alerts": {"guest": {"levels": ["50%"], "frozen": "2s"}},
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
    received = re.compile(r"RX packets:(\d+).*TX packets:(\d+)", re.DOTALL)
    before = received.search(await shell.run("ifconfig eth0"))
    await agent.wait_for_record("sample.guest_clock", vm=uuid)
    mark = agent.mark()
    (filesystem, system, cpu, interface, disk, address) = [
        (await agent.wait_for_record(f"sample.guest_{family}", vm=uuid, since=since))["data"]
        for family, since in (
            ("filesystem", mark),
            ("os", 0),
            ("cpu", mark),
            ("interface", mark),
            ("disk", mark),
            ("address", 0),
        )
    ]
    total, used, available = map(int, (await shell.run("df -k /data | tail -1")).split()[1:4])
    assert (filesystem["mountpoint"], filesystem["device"], filesystem["type"]) == ("/data", "vdb", "ext4")
    assert filesystem["used_bytes"] == used * 1024
    assert filesystem["available_bytes"] == available * 1024
    assert filesystem["size_bytes"] <= total * 1024, "without the reserve of root"
    release, machine, name = (await shell.run("uname -r; uname -m; uname -n")).split()
    assert (system["kernel"], system["machine"], system["hostname"]) == (release, machine, name)
    assert system["name"] == "Busybox, the guest of qmp-agent's demo"
    user = int((await shell.run("head -1 /proc/stat")).split()[1]) / 100
    assert 0 < cpu["user_seconds_total"] <= user
    after = received.search(await shell.run("ifconfig eth0"))
    assert before is not None
    assert after is not None
    assert int(before[1]) <= interface["rx_packets_total"] <= int(after[1])
    assert int(before[2]) <= interface["tx_packets_total"] <= int(after[2])
    assert address["ipv4"] == "10.0.2.15"
    assert disk["device"] in ("vda", "vdb")


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
    mark = agent.mark()
    await guest.command("stop")
    await environment.wait_for_state("suspended", mark)
    series = await agent.metrics()
    asked = series.value("qmp_agent_guest_agent_commands_total", command="guest-get-fsinfo", outcome="ok")
    age = series.value("qemu_guest_agent_last_response_timestamp_seconds", vm_uuid=guest.uuid)
    polls = len(list(agent.find_records("sample.block", vm=guest.uuid)))
    await until(lambda: len(list(agent.find_records("sample.block", vm=guest.uuid))) > polls + 3, 60)
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
    await agent.start()
    await agent.wait_for_record("alert.guest_frozen", vm=guest.uuid, state="firing")
    series = await agent.metrics()
    assert series.value("qemu_guest_freeze_frozen", vm_uuid=guest.uuid) == 1
    assert series.value("qmp_agent_guest_agent_commands_total", command="guest-get-fsinfo", outcome="ok") is None
    await agent.stop()
    assert await execute(guest, "guest-fsfreeze-thaw") == 1
    mark = agent.mark()
    await agent.start()
    await agent.wait_for_record("sample.guest_filesystem", vm=guest.uuid, since=mark)
    assert (await agent.metrics()).value("qemu_guest_freeze_frozen", vm_uuid=guest.uuid) == 0


async def test_a_reboot_loses_the_guest_agent_until_the_guest_is_up(environment: Environment) -> None:
    agent, guest = environment.agent, environment.guest
    mark = agent.mark()
    await guest.command("system_reset")
    await environment.wait_for_state("absent", mark)
    await environment.wait_for_state("up", agent.mark())
    await agent.wait_for_record("sample.guest_os", vm=guest.uuid, since=mark)


async def execute(guest: Guest, command: str) -> Any:
    """Execute a command over the guest's channel, as a manager does, and return its value."""
    async with GuestAgentProbe(guest.folder / f"{guest.name}.qga") as probe:
        return await probe.execute(command)
