"""Hung QEMUs and a hung libvirtd: each is reported and does not affect others."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.cli.demo.guest import Guest
from tests.integration.libvirt.conftest import AgentOn
from tests.integration.libvirt.test_domain_lifecycle import monitor_states, until_monitor_states, wait_until_attached
from tests.lab.agent_process import AgentProcess
from tests.lab.background import in_background
from tests.lab.libvirt import Domain, Libvirtd
from tests.lab.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def scraping_all_the_time(agent: AgentProcess) -> AsyncIterator[list[float]]:
    """Scrape ten times a second while the `with` block runs; yield the times at which a scrape ended."""
    ends: list[float] = []

    async def scrape() -> None:
        while True:
            await agent.metrics()
            ends.append(time.monotonic())
            await asyncio.sleep(0.1)

    async with in_background(scrape()):
        yield ends


async def wait_for_scrapes(ends: list[float], times: int) -> None:
    """Wait until so many more scrapes have ended. None ends if scrapes wait for what hangs."""
    before = len(ends)
    await until(lambda: len(ends) >= before + times, 180)


async def wait_for_polls(agent: AgentProcess, domain: Domain, times: int) -> None:
    """Wait until a domain has been polled `times` more times."""
    since = agent.mark()

    def enough() -> bool:
        return len([*agent.find_records("sample.block", vm=domain.uuid, since=since, device="virtio-disk1")]) >= times

    await until(enough, 180)


async def test_domains_with_a_hung_qemu_affect_no_other_domain_and_no_scrape(
    libvirtd: Libvirtd, agent_on: AgentOn
) -> None:
    hung = [await libvirtd.domain(f"hung{number}") for number in range(3)]
    healthy = [await libvirtd.domain(f"healthy{number}") for number in range(2)]
    async with agent_on() as agent:
        for domain in (*hung, *healthy):
            await wait_until_attached(agent, domain)
        since = agent.mark()
        async with scraping_all_the_time(agent) as scrapes:
            for domain in hung:
                await libvirtd.send_domain(domain, signal.SIGSTOP)
            for domain in hung:
                stalled = await agent.wait_for_record("vm.stalled", vm=domain.uuid, since=since)
                assert "libvirt" in stalled["data"]["reason"]
                await until_monitor_states(agent, f"#{domain.name}", "stalled")
            for domain in healthy:
                await wait_for_polls(agent, domain, 6)
            # Events of the healthy domains arrive at once.
            await libvirtd.virsh("suspend", healthy[0].name)
            await agent.wait_for_record("event.stop", vm=healthy[0].uuid, since=since)
            await libvirtd.virsh("resume", healthy[0].name)
            await wait_for_scrapes(scrapes, 20)
        for domain in hung:
            await libvirtd.send_domain(domain, signal.SIGCONT)
        for domain in hung:
            await agent.wait_for_record("vm.recovered", vm=domain.uuid, since=since)
            await wait_for_polls(agent, domain, 2)
        types = [r["type"] for r in agent.records()[since:] if r.get("vmuuid") in {domain.uuid for domain in healthy}]
        assert not {"qemu.vm.gone", "qemu.vm.detached"} & set(types)


async def test_a_hung_libvirtd_is_reported_and_does_not_affect_other_vms(
    libvirtd: Libvirtd, folder: Path, agent_on: AgentOn
) -> None:
    domain = await libvirtd.domain("patient")
    monitors = [{"dial": f"{folder}/*.qmp"}, {"libvirt": libvirtd.uri}]
    async with Guest(folder, "beside") as guest, agent_on(monitors=monitors) as agent:
        await wait_until_attached(agent, domain)
        since = agent.mark()
        async with scraping_all_the_time(agent) as scrapes:
            await libvirtd.send_signal(signal.SIGSTOP)
            try:
                await agent.wait_for_record("vm.stalled", vm=domain.uuid, since=since)
                # Keepalive ends the connection after about 20 s.
                await agent.wait_for_record("vm.detached", vm=domain.uuid, since=since)

                async def is_stalled() -> bool:
                    return await monitor_states(agent, "libvirt-sock") == ["stalled"]

                await until(is_stalled, 180)
                assert (await monitor_states(agent, f"#{domain.name}"))[0] in ("connecting", "stalled")
                await until(lambda: len([*agent.find_records("sample.process", vm=guest.uuid, since=since)]) > 20, 180)
                await wait_for_scrapes(scrapes, 20)
            finally:
                await libvirtd.send_signal(signal.SIGCONT)
            await agent.wait_for_record("vm.attached", vm=domain.uuid, since=since, reattached=True)
            await wait_for_polls(agent, domain, 2)
        assert [
            *agent.find_records("vm.gone", since=since),
            *agent.find_records("vm.detached", vm=guest.uuid, since=since),
        ] == []
