"""The guest agent of a real domain over libvirt, which holds its channel."""

import json
import re
from typing import Any, Final

import pytest
import pytest_asyncio

from tests.integration.libvirt.conftest import AgentOn
from tests.lab.libvirt import Domain, Libvirtd
from tests.lab.libvirt_linux import linux_domain

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUERIES: Final[dict[str, Any]] = {
    "enabled": True,
    "timeout": "10s",
    "max_retry_delay": "2s",
    "intervals": dict.fromkeys(("filesystems", "network", "os", "users", "load"), "1s"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def domain(libvirtd: Libvirtd) -> Domain:
    """A Linux with a guest agent."""
    return await linux_domain(libvirtd)


async def test_the_channels_state_is_reported_without_queries(agent_on: AgentOn, domain: Domain) -> None:
    async with agent_on() as agent:
        record = await agent.wait_for_record("sample.guest_agent", vm=domain.uuid, connected=True)
        assert record["data"]["chardev"] == "charchannel0"
        assert (await agent.metrics()).value("qemu_guest_agent_connected", vm_uuid=domain.uuid) == 1


async def test_the_figures_equal_those_of_virsh_guestinfo(
    libvirtd: Libvirtd, agent_on: AgentOn, domain: Domain
) -> None:
    async with agent_on(guest_agent=QUERIES) as agent:
        record = (await agent.wait_for_record("sample.guest_filesystem", vm=domain.uuid))["data"]
        system = (await agent.wait_for_record("sample.guest_os", vm=domain.uuid))["data"]
        address = (await agent.wait_for_record("sample.guest_address", vm=domain.uuid))["data"]
        session = await agent.wait_for_record("sample.guest_agent_session", vm=domain.uuid, state="up")
    lines = (await libvirtd.virsh("guestinfo", "linux-1")).splitlines()
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    assert record["mountpoint"] == info["fs.0.mountpoint"] == "/data"
    assert (record["device"], record["type"]) == (info["fs.0.name"], info["fs.0.fstype"])
    assert record["size_bytes"] == int(info["fs.0.total-bytes"])
    assert record["used_bytes"] == int(info["fs.0.used-bytes"])
    assert (system["hostname"], system["kernel"]) == (info["hostname"], info["os.kernel-release"])
    assert address["ipv4"] == info["if.1.addr.0.addr"] == "10.0.2.15"
    assert "guest-fsfreeze-status" in session["data"]["missing_commands"], "libvirt does not report it"
    assert libvirtd.taints(domain) == []


async def test_a_read_only_connection_cannot_query_guests(agent_on: AgentOn, domain: Domain) -> None:
    async with agent_on({"read_only": True}, guest_agent=QUERIES) as agent:
        await agent.wait_for_record("sample.guest_agent_session", vm=domain.uuid, state="denied")


async def test_the_response_timeout_is_restored(libvirtd: Libvirtd, agent_on: AgentOn, domain: Domain) -> None:
    for _ in range(3):  # in some of the runs, the agent stops during a call
        async with agent_on(guest_agent=QUERIES) as agent:
            await agent.wait_for_record("sample.guest_filesystem", vm=domain.uuid, since=agent.mark())
            await agent.stop()
    timeout = await libvirtd.run("grep agentTimeout /run/libvirt/qemu/linux-1.xml")
    assert timeout.strip() == "<agentTimeout>-2</agentTimeout>"


async def test_a_hung_guest_agent_does_not_stop_the_domains_polls(
    libvirtd: Libvirtd, agent_on: AgentOn, domain: Domain
) -> None:
    """Last, because `virsh qemu-agent-command` marks the domain as tainted."""
    # It hangs until the guest's network cable is unplugged.
    wait = "until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 1; done"
    script = f"P=$(pidof qemu-ga); sleep 3; kill -STOP $P; {wait}; kill -CONT $P"
    hang = {"execute": "guest-exec", "arguments": {"path": "/bin/sh", "arg": ["-c", script]}}
    async with agent_on(guest_agent=QUERIES) as agent:
        await agent.wait_for_record("sample.guest_agent_session", vm=domain.uuid, state="up")
        mark = agent.mark()
        await libvirtd.virsh("qemu-agent-command", "linux-1", json.dumps(hang))
        await agent.wait_for_record("sample.guest_agent_session", vm=domain.uuid, since=mark, state="unresponsive")
        mark = agent.mark()
        await agent.wait_for_record("sample.block", vm=domain.uuid, since=mark)
        assert (await agent.metrics()).matching("qemu_guest_filesystem_used_bytes", vm_uuid=domain.uuid) == []
        mark = agent.mark()
        (interface,) = re.findall("[0-9a-f:]{17}", await libvirtd.virsh("domiflist", "linux-1"))
        await libvirtd.virsh("domif-setlink", "linux-1", interface, "down")
        await agent.wait_for_record("sample.guest_agent_session", vm=domain.uuid, since=mark, state="up")
