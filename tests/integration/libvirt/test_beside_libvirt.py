"""Beside libvirt: deploy/'s monitor of the domain's own, all that passthrough gives, somebody else's threshold, a libvirtd elsewhere."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.cli.demo.guest import until
from tests.integration.libvirt.conftest import QUICK, AgentOn
from tests.integration.libvirt.test_domain_lifecycle import attached, state_of
from tests.lab.agent_process import AgentProcess, run_command
from tests.lab.libvirt import Libvirtd

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

DEPLOY = Path(__file__).parents[3] / "deploy" / "libvirt"
OURS = {"users": ["root", "64055"]}
"""Debian's number of the user that libvirtd of the tests starts QEMU as; no user of this machine need have it."""


async def test_a_domain_with_deploys_monitor_calls_the_agent_again_and_again_and_is_watched_over_that(
    libvirtd: Libvirtd, agent_on: AgentOn
) -> None:
    path = libvirtd.folder / "monitor.sock"
    snippet = (DEPLOY / "own-monitor.xml").read_text()
    snippet = snippet.replace("/run/qmp-agent/monitor.sock", str(path)).replace("reconnect=5", "reconnect=1")
    domain = await libvirtd.domain("caller", extra=snippet)
    assert libvirtd.taints(domain) == ["custom-argv"]
    monitors = [{"libvirt": libvirtd.uri}, {"listen": str(path), **OURS}]
    agent = agent_on(monitors=monitors)
    for _ in range(2):
        async with agent:

            async def settled() -> bool:
                ways = [labels for labels, up in (await agent.metrics()).matching("qmp_agent_monitor_state") if up]
                return {(way["monitor"].split(" ")[0].split("#")[-1], way["state"]) for way in ways} >= {
                    (str(path), "up"),
                    ("caller", "standby"),
                }

            await until(settled, 20)
            since = agent.mark()
            await libvirtd.virsh("suspend", domain.name)
            await agent.wait_for_record("event.stop", vm=domain.uuid, since=since)
            await libvirtd.virsh("resume", domain.name)
            assert len([*agent.find_records("event.stop", vm=domain.uuid, since=since)]) == 1
    assert libvirtd.taints(domain) == ["custom-argv"]


def told(agent: AgentProcess, uuid: str) -> Mapping[str, set[str]]:
    """Return which figures of a VM are told, by type of record; without those that this host tells, and not QEMU."""
    fields: dict[str, set[str]] = {}
    for record in agent.records():
        if record["type"].startswith("qemu.sample.") and record["vmuuid"] == uuid:
            fields.setdefault(record["type"], set()).update(record["data"])
    return {
        kind: names for kind, names in fields.items() if not re.search("process|thread|vcpu|cgroup|net|about", kind)
    }


async def test_with_passthrough_all_is_told_that_a_monitor_of_qemus_own_tells(
    libvirtd: Libvirtd, agent_on: AgentOn, folder: Path
) -> None:
    own = f"{libvirtd.folder}/lib/qemu/whole.qmp"
    extra = (
        "<qemu:commandline><qemu:arg value='-qmp'/>"
        "<qemu:arg value='unix:/var/lib/libvirt/qemu/whole.qmp,server=on,wait=off'/></qemu:commandline>"
    )
    domain = await libvirtd.domain("whole", extra=extra)
    async with (
        agent_on({"passthrough": True}) as through,
        AgentProcess(folder, {**QUICK, "monitors": [{"dial": own}]}, name="direct") as direct,
    ):
        await attached(through, domain)
        await attached(direct, domain)

        def all_told() -> bool:
            return bool(told(direct, domain.uuid)) and told(through, domain.uuid) == told(direct, domain.uuid)

        try:
            await until(all_told, 20)
        except TimeoutError:
            assert told(through, domain.uuid) == told(direct, domain.uuid)
        assert len(told(through, domain.uuid)) > 6
    assert set(libvirtd.taints(domain)) == {"custom-argv", "custom-monitor"}


async def test_a_threshold_that_somebody_set_over_libvirt_is_left_alone_and_told(
    libvirtd: Libvirtd, agent_on: AgentOn
) -> None:
    domain = await libvirtd.domain("foreign")
    theirs = 60 << 20
    await libvirtd.virsh("domblkthreshold", domain.name, "vdb", str(theirs))
    levels = {"write_threshold": {"mode": "arm", "levels": ["used 1MiB", "used 40MiB"]}}
    async with agent_on(alerts=levels) as agent:
        await attached(agent, domain)
        alert = await agent.wait_for_record("alert.write_threshold", vm=domain.uuid, timeout=30)
        assert (alert["data"]["device"], alert["data"]["detected_by"]) == ("virtio-disk1", "level")

        async def foreign() -> bool:
            series = await agent.metrics()
            return series.value("qemu_block_space_threshold_foreign", vm_uuid=domain.uuid, device="virtio-disk1") == 1

        await until(foreign, 10)
        since = agent.mark()
        await agent.wait_for_record("sample.block", vm=domain.uuid, since=since)
    assert (await libvirtd.stats(domain))["block.1.threshold"] == str(theirs)
    assert libvirtd.taints(domain) == []


async def test_a_libvirtd_in_namespaces_of_its_own_is_reached_through_its_domains_process(
    libvirtd: Libvirtd, agent_on: AgentOn
) -> None:
    domain = await libvirtd.domain("pod")
    said = await run_command("doctor", "--vm", "pod", "--json", "--user", "root")
    (vm,) = json.loads(said.out)
    socket = f"/proc/{vm['pid']}/root/run/libvirt/libvirt-sock"
    async with agent_on({"libvirt": f"qemu+unix:///system?socket={socket}"}) as agent:
        await attached(agent, domain)
        assert await state_of(agent, "#pod") == ["up"]
        since = agent.mark()
        await libvirtd.virsh("destroy", domain.name)
        gone: dict[str, Any] = await agent.wait_for_record("vm.gone", vm=domain.uuid, since=since)
        assert gone["data"]["reason"] == "the domain was destroyed"
