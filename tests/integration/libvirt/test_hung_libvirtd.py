"""QEMUs that hang and a libvirtd that does: each is told, and harms nobody else."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.cli.demo.guest import Guest, until
from tests.integration.libvirt.conftest import AgentOn
from tests.integration.libvirt.test_domain_lifecycle import attached, state_of
from tests.lab.agent_process import AgentProcess
from tests.lab.libvirt import Domain, Libvirtd

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


@asynccontextmanager
async def quick_scrapes(agent: AgentProcess) -> AsyncIterator[list[float]]:
    """Scrape ten times a second for as long as the block runs; yields how long each took, in seconds."""
    took: list[float] = []

    async def scrape() -> None:
        while True:
            start = time.monotonic()
            await agent.metrics()
            took.append(time.monotonic() - start)
            await asyncio.sleep(0.1)

    task = asyncio.create_task(scrape())
    try:
        yield took
    finally:
        task.cancel()
        await asyncio.wait({task})


async def polled(agent: AgentProcess, domain: Domain, times: int, timeout: float) -> None:  # noqa: ASYNC109 - as in `until`
    """Wait until a domain has been polled so many times more."""
    since = agent.mark()

    def enough() -> bool:
        return len([*agent.find_records("sample.block", vm=domain.uuid, since=since, device="virtio-disk1")]) >= times

    await until(enough, timeout)


async def test_domains_whose_qemu_hangs_disturb_no_other_and_no_scrape(libvirtd: Libvirtd, agent_on: AgentOn) -> None:
    hung = [await libvirtd.domain(f"hung{number}") for number in range(3)]
    well = [await libvirtd.domain(f"well{number}") for number in range(2)]
    async with agent_on() as agent:
        for domain in (*hung, *well):
            await attached(agent, domain)
        since = agent.mark()
        async with quick_scrapes(agent) as took:
            for domain in hung:
                await libvirtd.send_domain(domain, signal.SIGSTOP)
            for domain in hung:
                stalled = await agent.wait_for_record("vm.stalled", vm=domain.uuid, since=since, timeout=15)
                assert "libvirt" in stalled["data"]["reason"]
                assert await state_of(agent, f"#{domain.name}") == ["stalled"]
            for domain in well:
                await polled(agent, domain, 6, 10)
            # What happens to the others is told at once, whoever hangs.
            await libvirtd.virsh("suspend", well[0].name)
            await agent.wait_for_record("event.stop", vm=well[0].uuid, since=since, timeout=2)
            await libvirtd.virsh("resume", well[0].name)
        assert len(took) > 20
        assert max(took) < 1
        for domain in hung:
            await libvirtd.send_domain(domain, signal.SIGCONT)
        for domain in hung:
            await agent.wait_for_record("vm.recovered", vm=domain.uuid, since=since)
            await polled(agent, domain, 2, 5)
        told = [r["type"] for r in agent.records()[since:] if r.get("vmuuid") in {domain.uuid for domain in well}]
        assert not {"qemu.vm.stalled", "qemu.vm.gone", "qemu.vm.detached"} & set(told)


async def test_a_libvirtd_that_hangs_is_told_and_left_and_nobody_else_is_disturbed(
    libvirtd: Libvirtd, folder: Path, agent_on: AgentOn
) -> None:
    domain = await libvirtd.domain("patient")
    ways = [{"dial": f"{folder}/*.qmp"}, {"libvirt": libvirtd.uri}]
    async with Guest(folder, "beside") as guest, agent_on(monitors=ways) as agent:
        await attached(agent, domain)
        since = agent.mark()
        async with quick_scrapes(agent) as took:
            await libvirtd.send_signal(signal.SIGSTOP)
            try:
                await agent.wait_for_record("vm.stalled", vm=domain.uuid, since=since, timeout=10)
                # Signs of life are missing after some twenty seconds.
                await agent.wait_for_record("vm.detached", vm=domain.uuid, since=since, timeout=30)

                async def says_so() -> bool:
                    return await state_of(agent, "libvirt-sock") == ["stalled"]

                await until(says_so, 10)
                assert (await state_of(agent, f"#{domain.name}"))[0] in ("connecting", "stalled")
                assert len([*agent.find_records("sample.process", vm=guest.uuid, since=since)]) > 20
            finally:
                await libvirtd.send_signal(signal.SIGCONT)
            await agent.wait_for_record("vm.attached", vm=domain.uuid, since=since, reattached=True, timeout=15)
            await polled(agent, domain, 2, 5)
        assert max(took) < 1
        assert [
            *agent.find_records("vm.gone", since=since),
            *agent.find_records("vm.detached", vm=guest.uuid, since=since),
        ] == []
