"""Start, pause, end and restart of libvirt's domains and of libvirtd, and which settings taint a domain."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from agent.cli.demo.guest import Guest
from tests.integration.libvirt.conftest import AgentOn
from tests.lab.agent_process import AgentProcess
from tests.lab.libvirt import Domain, Libvirtd
from tests.lab.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVENT = re.compile(r"event (\w+) at (\d+)\.(\d+) for domain '([^']+)'")


async def wait_until_attached(agent: AgentProcess, domain: Domain, **data: Any) -> int:
    """Wait until a domain is attached and polled; return the number of records until then."""
    await agent.wait_for_record("vm.attached", vm=domain.uuid, **data)
    await agent.wait_for_record("sample.block", vm=domain.uuid)
    return agent.mark()


async def monitor_states(agent: AgentProcess, name: str) -> list[str]:
    """Return the states of the monitors whose names end with `name`, from a scrape."""
    series = (await agent.metrics()).matching("qmp_agent_monitor_state")
    return [labels["state"] for labels, value in series if labels["monitor"].endswith(name) and value]


async def until_monitor_states(agent: AgentProcess, name: str, *states: str) -> None:
    """Wait until the monitors whose names end with `name` have these states."""

    async def have_states() -> bool:
        return await monitor_states(agent, name) == [*states]

    await until(have_states, 180)


async def test_a_domain_is_started_paused_resumed_and_destroyed(libvirtd: Libvirtd, agent_on: AgentOn) -> None:
    async with agent_on() as agent:
        domain = await libvirtd.domain("mayfly")
        await wait_until_attached(agent, domain, reattached=False)
        for change, event, status in (("suspend", "stop", "paused"), ("resume", "resume", "running")):
            since = agent.mark()
            await libvirtd.virsh(change, domain.name)
            await agent.wait_for_record(f"event.{event}", vm=domain.uuid, since=since)
            await agent.wait_for_record("sample.runstate", vm=domain.uuid, since=since, status=status)
        await libvirtd.virsh("destroy", domain.name)
        gone = await agent.wait_for_record("vm.gone", vm=domain.uuid)
        await agent.wait_for_record("event.shutdown", vm=domain.uuid)
        assert gone["data"]["reason"] == "the domain was destroyed"
        assert (await agent.metrics()).names_of(domain.uuid) == []
        since = agent.mark()
        await libvirtd.virsh("create", domain.xml)
        await agent.wait_for_record("vm.attached", vm=domain.uuid, since=since, reattached=False)
        await agent.wait_for_record("sample.block", vm=domain.uuid, since=since)


async def wait_until_armed(agent: AgentProcess, domain: Domain) -> None:
    """Wait until the agent has set a write threshold for the second disk of a domain."""

    async def is_armed() -> bool:
        labels = {"vm_uuid": domain.uuid, "device": "virtio-disk1"}
        return bool((await agent.metrics()).value("qemu_block_space_armed_threshold_bytes", **labels))

    await until(is_armed, 180)


@asynccontextmanager
async def events_of_virsh(libvirtd: Libvirtd, domain: Domain) -> AsyncIterator[set[tuple[str, str, int]]]:
    """Let virsh print QEMU's events while the `with` block runs, and yield their domains, names and times in microseconds.

    virsh has received an event of a paused domain when the block begins.
    """
    events: set[tuple[str, str, int]] = set()
    virsh = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", "stdbuf", "-oL"),
        *("virsh", "-q", "-c", libvirtd.uri, "qemu-monitor-event", "--loop"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )

    async def read() -> None:
        assert virsh.stdout is not None
        while line := await virsh.stdout.readline():
            events.update((m[4], m[1], int(m[2]) * 10**6 + int(m[3])) for m in EVENT.finditer(line.decode()))

    async def has_subscribed() -> bool:
        await libvirtd.virsh("reset", domain.name)
        return bool(events)

    reading = asyncio.create_task(read())
    try:
        await until(has_subscribed, 180)
        yield events
    finally:
        virsh.kill()
        await virsh.wait()
        await reading


async def test_every_event_is_delivered_and_no_domain_is_tainted_by_default(
    libvirtd: Libvirtd, agent_on: AgentOn
) -> None:
    levels = {"disks": {"mode": "arm", "levels": ["used 2MiB"]}}
    domains = [await libvirtd.domain(name, paused=True) for name in ("pure", "clean")]
    async with agent_on(alerts=levels) as agent, events_of_virsh(libvirtd, domains[0]) as virsh_events:
        for domain in domains:
            await wait_until_attached(agent, domain)
            await wait_until_armed(agent, domain)
        attached_at = time.time_ns() // 1000
        for domain in domains:
            for change in ("reset", "resume", "suspend", "resume"):
                await libvirtd.virsh(change, domain.name)
        for domain in domains:
            alert = await agent.wait_for_record("alert.write_threshold", vm=domain.uuid)
            assert alert["data"]["device"] == "virtio-disk1"
            # libvirtd may send its reply to a poll before an event that QEMU has emitted earlier.
            assert alert["data"]["detected_by"] in ("event", "level")

        def reported() -> set[tuple[str, str, int]]:
            return {
                (r["vmname"], r["data"]["event"], round(datetime.fromisoformat(r["time"]).timestamp() * 10**6))
                for r in agent.records()
                if r["type"].startswith("qemu.event.")
            }

        expected = {(domain.name, event) for domain in domains for event in ("STOP", "RESUME", "RESET")}
        await until(lambda: {(name, event) for name, event, _ in virsh_events} >= expected, 180)
        await until(lambda: {event for event in virsh_events if event[2] > attached_at} <= reported(), 180)
    for domain in domains:
        assert libvirtd.taints(domain) == []
        assert "tainted" not in await libvirtd.virsh("dominfo", domain.name)
    assert "is tainted" not in libvirtd.log


@pytest.mark.parametrize("where", ["entry", "allow"])
async def test_passthrough_queries_qemu_and_taints_the_domain(
    libvirtd: Libvirtd, agent_on: AgentOn, where: str
) -> None:
    domain = await libvirtd.domain(f"tainted-{where}")
    agent_process = (
        agent_on({"passthrough": True}) if where == "entry" else agent_on(allow={"libvirt_passthrough": True})
    )
    async with agent_process as agent:
        await wait_until_attached(agent, domain)
        sample = await agent.wait_for_record("sample.block", vm=domain.uuid, device="virtio-disk1")
        await agent.wait_for_record("sample.migration", vm=domain.uuid)
    assert sample["data"].keys() >= {"failed_writes_total", "write_highest_offset_bytes", "idle_seconds"}
    assert libvirtd.taints(domain) == ["custom-monitor"]


async def test_a_restarted_libvirtd_ends_no_domain_and_does_not_affect_other_vms(
    libvirtd: Libvirtd, folder: Path, agent_on: AgentOn
) -> None:
    domains = [await libvirtd.domain(name) for name in ("first", "second")]
    dial = [{"dial": f"{folder}/*.qmp"}, {"libvirt": libvirtd.uri}]
    async with Guest(folder, "beside") as guest, agent_on(monitors=dial) as agent:
        for domain in domains:
            await wait_until_attached(agent, domain)
        since = agent.mark()
        await libvirtd.kill()
        for domain in domains:
            detached = await agent.wait_for_record("vm.detached", vm=domain.uuid, since=since)
            assert "libvirt" in detached["data"]["reason"]
            await until_monitor_states(agent, f"#{domain.name}", "connecting")
        since_kill = agent.mark()
        await agent.wait_for_record("sample.process", vm=guest.uuid, since=since_kill)
        await libvirtd.start()
        for domain in domains:
            await agent.wait_for_record("vm.attached", vm=domain.uuid, since=since, reattached=True)
            await agent.wait_for_record("sample.block", vm=domain.uuid, since=since_kill)
            await until_monitor_states(agent, f"#{domain.name}", "up")
        assert [*agent.find_records("vm.gone", since=since), *agent.find_records("vm.detached", vm=guest.uuid)] == []


async def test_a_domain_with_two_monitors_is_polled_once_over_its_own_monitor(
    libvirtd: Libvirtd, agent_on: AgentOn
) -> None:
    own = f"{libvirtd.folder}/lib/qemu/own.qmp"
    extra = (
        "<qemu:commandline><qemu:arg value='-qmp'/>"
        "<qemu:arg value='unix:/var/lib/libvirt/qemu/own.qmp,server=on,wait=off'/></qemu:commandline>"
    )
    domain = await libvirtd.domain("own", extra=extra)
    assert libvirtd.taints(domain) == ["custom-argv"]  # the cost of its own monitor
    async with agent_on(monitors=[{"libvirt": libvirtd.uri}, {"dial": own}]) as agent:
        await agent.wait_for_record("vm.attached", vm=domain.uuid, monitor=own)
        since = await wait_until_attached(agent, domain)

        async def states_settled() -> bool:
            return [await monitor_states(agent, end) for end in (own, "#own")] == [["up"], ["standby"]]

        await until(states_settled, 180)
        await libvirtd.virsh("suspend", domain.name)
        await agent.wait_for_record("event.stop", vm=domain.uuid, since=since)
        await agent.wait_for_record("sample.runstate", vm=domain.uuid, since=since, status="paused")
        assert len([*agent.find_records("event.stop", vm=domain.uuid, since=since)]) == 1
