"""A real Linux guest with a real guest agent that migrates between two QEMUs, each watched by an agent of its own."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from tests.integration.guest_agent.test_real_guest import QUICK
from tests.lab.agent_process import AgentProcess, Scrape
from tests.lab.guest_shell import guest_shell

SLOW: Final = 1 << 20
"""Bytes per second: the guest's memory takes longer than the test needs to see that the guest agent is not queried."""
FAST: Final = 1 << 30


def agent_of(folder: Path, name: str) -> AgentProcess:
    """Return the agent of one host. It is configured as that of the other host."""
    config: dict[str, Any] = {
        "host": f"host-of-{name}",
        "monitors": [{"dial": f"{folder}/{name}.qmp"}],
        "intervals": {"poll": "300ms", "migrations_and_jobs": "100ms"},
        "guest_agent": {"enabled": True, "intervals": QUICK, "max_retry_delay": "2s"},
    }
    return AgentProcess(folder, config, name=f"agent-{name}")


def sent(scrape: Scrape) -> float:
    """Return how many commands were sent to guest agents."""
    return sum(value for _, value in scrape.matching("qmp_agent_guest_agent_commands_total"))


async def wait_for_state(agent: AgentProcess, state: str, **since: Any) -> dict[str, Any]:
    return await agent.wait_for_record("sample.guest_agent_session", state=state, **since)


def share_images(folder: Path, owner: str, other: str) -> None:
    """Let another guest use the images of a guest, as on shared storage."""
    for image in ("disk0.qcow2", "data.raw"):
        Path(folder, f"{other}-{image}").symlink_to(f"{owner}-{image}")


async def test_the_guest_agent_is_queried_where_the_guest_runs(folder: Path) -> None:
    options: dict[str, Any] = {"kind": GuestKind.LINUX, "guest_agent": True, "guest_shell": True, "pause_seconds": 5}
    async with AsyncExitStack() as running:
        source = await running.enter_async_context(Guest(folder, "from-1", GuestOptions(**options)))
        share_images(folder, "from-1", "into-1")
        incoming = GuestOptions(**options, extra=("-incoming", "defer"))
        destination = await running.enter_async_context(Guest(folder, "into-1", incoming, identity=source.uuid))
        await source.wait_until_booted()
        before, after = agent_of(folder, "from-1"), agent_of(folder, "into-1")
        for agent in (before, after):
            await running.enter_async_context(agent)
        await wait_for_state(before, "up")
        hostname = (await before.wait_for_record("sample.guest_os"))["data"]["hostname"]
        await before.wait_for_record("sample.guest_clock")
        assert (await after.metrics()).matching("qemu_guest_filesystem_used_bytes") == []

        mark, uri = before.mark(), f"unix:{folder}/migration"
        await source.command("migrate-set-parameters", max_bandwidth=SLOW)
        await destination.command("migrate-incoming", uri=uri)
        await source.command("migrate", uri=uri)
        suspended = await wait_for_state(before, "suspended", since=mark)
        assert suspended["data"]["reason"] == "the VM is migrating"
        asked, polls = sent(await before.metrics()), before.mark()
        for _ in range(3):
            await before.wait_for_record("sample.migration", since=polls, status="active")
            polls = before.mark()
        assert sent(await before.metrics()) == asked
        assert sent(await after.metrics()) == 0, "the guest does not run there yet"

        await source.command("migrate-set-parameters", max_bandwidth=FAST)
        await wait_for_state(after, "up")
        system = (await after.wait_for_record("sample.guest_os"))["data"]
        filesystem = (await after.wait_for_record("sample.guest_filesystem"))["data"]
        assert system["hostname"] == hostname
        async with guest_shell(folder, "into-1") as shell:
            used = int((await shell.run("df -k /data | tail -1")).split()[2])
        assert filesystem["used_bytes"] == used * 1024

        await wait_for_state(before, "suspended", since=mark, reason="the guest does not run")
        assert sent(await before.metrics()) == asked, "the source's guest has left"
        await source.stop()
        await before.wait_for_record("vm.migrated_out")
        assert (await before.metrics()).names_of(source.uuid) == []
        for agent in (before, after):
            assert [
                *agent.find_records("alert.guest_agent_lost"),
                *agent.find_records("alert.guest_clock_offset"),
            ] == []
