"""Setups beside libvirt: deploy's own monitor, passthrough, and a threshold of another client."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integration.libvirt.conftest import QUICK, AgentOn
from tests.integration.libvirt.test_domain_lifecycle import wait_until_attached
from tests.lab.agent_process import AgentProcess
from tests.lab.libvirt import Libvirtd
from tests.lab.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEPLOY = Path(__file__).parents[3] / "deploy" / "libvirt"
ALLOWED_USERS = {"users": ["root", "64055"]}
"""Debian's user ID that the tests' libvirtd starts QEMU as; this machine need not have the user."""


async def test_a_domain_with_deploys_own_monitor_reconnects_and_is_polled_over_it(
    libvirtd: Libvirtd, agent_on: AgentOn
) -> None:
    path = libvirtd.folder / "monitor.sock"
    snippet = (DEPLOY / "own-monitor.xml").read_text()
    snippet = snippet.replace("/run/qmp-agent/monitor.sock", str(path)).replace("reconnect=5", "reconnect=1")
    domain = await libvirtd.domain("caller", extra=snippet)
    assert libvirtd.taints(domain) == ["custom-argv"]
    monitors = [{"libvirt": libvirtd.uri}, {"listen": str(path), **ALLOWED_USERS}]
    agent = agent_on(monitors=monitors)
    for _ in range(2):
        async with agent:

            async def is_up() -> bool:
                monitors_now = [
                    labels for labels, up in (await agent.metrics()).matching("qmp_agent_monitor_state") if up
                ]
                return {
                    (labels["monitor"].split(" ")[0].split("#")[-1], labels["state"]) for labels in monitors_now
                } >= {
                    (str(path), "up"),
                    ("caller", "standby"),
                }

            await until(is_up, 180)
            since = agent.mark()
            await libvirtd.virsh("suspend", domain.name)
            await agent.wait_for_record("event.stop", vm=domain.uuid, since=since)
            await libvirtd.virsh("resume", domain.name)
            assert len([*agent.find_records("event.stop", vm=domain.uuid, since=since)]) == 1
    assert libvirtd.taints(domain) == ["custom-argv"]


def reported_fields(agent: AgentProcess, uuid: str) -> Mapping[str, set[str]]:
    """Return the reported fields of a VM by record type, without the types that come from the host and not from QEMU."""
    fields: dict[str, set[str]] = {}
    for record in agent.records():
        if record["type"].startswith("qemu.sample.") and record.get("vmuuid") == uuid:
            fields.setdefault(record["type"], set()).update(record["data"])
    return {
        kind: names for kind, names in fields.items() if not re.search("process|thread|vcpu|cgroup|net|identity", kind)
    }


async def test_passthrough_reports_everything_that_a_dedicated_monitor_reports(
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
        await wait_until_attached(through, domain)
        await wait_until_attached(direct, domain)

        def same_fields() -> bool:
            return bool(reported_fields(direct, domain.uuid)) and reported_fields(
                through, domain.uuid
            ) == reported_fields(direct, domain.uuid)

        try:
            await until(same_fields, 180)
        except TimeoutError:
            assert reported_fields(through, domain.uuid) == reported_fields(direct, domain.uuid)
        assert len(reported_fields(through, domain.uuid)) > 6
    assert set(libvirtd.taints(domain)) == {"custom-argv", "custom-monitor"}


async def test_a_threshold_that_another_client_set_over_libvirt_is_kept_and_reported(
    libvirtd: Libvirtd, agent_on: AgentOn
) -> None:
    domain = await libvirtd.domain("foreign")
    foreign_threshold = 60 << 20
    await libvirtd.virsh("domblkthreshold", domain.name, "vdb", str(foreign_threshold))
    levels = {"disks": {"mode": "arm", "levels": ["used 1MiB", "used 40MiB"]}}
    async with agent_on(alerts=levels) as agent:
        await wait_until_attached(agent, domain)
        alert = await agent.wait_for_record("alert.write_threshold", vm=domain.uuid)
        assert (alert["data"]["device"], alert["data"]["detected_by"]) == ("virtio-disk1", "level")

        async def is_foreign() -> bool:
            series = await agent.metrics()
            return series.value("qemu_block_space_threshold_foreign", vm_uuid=domain.uuid, device="virtio-disk1") == 1

        await until(is_foreign, 180)
        since = agent.mark()
        await agent.wait_for_record("sample.block", vm=domain.uuid, since=since)
    assert (await libvirtd.stats(domain))["block.1.threshold"] == str(foreign_threshold)
    assert libvirtd.taints(domain) == []
