"""With a connection that may only read, the agent does what that allows, and says what is missing."""

import re
import sys

import pytest
import yaml

from tests.integration.libvirt.conftest import AgentOn
from tests.integration.libvirt.test_domain_lifecycle import attached
from tests.lab.agent_process import run_command
from tests.lab.libvirt import Libvirtd

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

MISSING = "read-only: of QEMU's events only STOP, RESUME, SUSPEND and SHUTDOWN; no thresholds and no passthrough"


@pytest.mark.parametrize("how", ["asked for", "all that there is"])
async def test_figures_and_lives_are_told_and_what_is_missing_is_said(
    libvirtd: Libvirtd, agent_on: AgentOn, how: str
) -> None:
    name = "asked" if how == "asked for" else "had"
    entry = {"read_only": True} if how == "asked for" else {"libvirt": libvirtd.read_only_uri}
    domain = await libvirtd.domain(f"ro-{name}")
    levels = {"write_threshold": {"mode": "arm", "levels": ["used 1MiB"]}}
    async with agent_on(entry, alerts=levels, allow={"libvirt_passthrough": True}) as agent:
        await attached(agent, domain)
        assert MISSING in (await agent.get("/overview"))[1]
        await libvirtd.virsh("suspend", domain.name)
        await agent.wait_for_record("sample.runstate", vm=domain.uuid, status="paused")
        await libvirtd.virsh("destroy", domain.name)
        gone = await agent.wait_for_record("vm.gone", vm=domain.uuid)
        assert gone["data"]["reason"] == "the domain was destroyed"
        assert {r["type"] for r in agent.records() if r["type"].startswith("qemu.event.")} <= {
            "qemu.event.stop",
            "qemu.event.shutdown",
        }


async def test_a_user_who_may_only_read_reads_and_check_says_so(libvirtd: Libvirtd) -> None:
    domain = await libvirtd.domain("public")
    config = libvirtd.folder / "public.yaml"
    config.write_text(yaml.safe_dump({"monitors": [{"libvirt": "qemu:///system"}]}))
    said = await libvirtd.run(
        f"setpriv --reuid 65534 --clear-groups {sys.executable} -m agent.cli check --config {config}"
    )
    assert re.search(rf"qemu:///system: \d+ running; {MISSING}", said), said
    assert f"qemu:///system#public: public ({domain.uuid}), QEMU 7" in said


async def test_a_user_whom_libvirtd_lets_do_nothing_is_told_so(libvirtd: Libvirtd) -> None:
    config = libvirtd.folder / "nothing.yaml"
    config.write_text(yaml.safe_dump({"monitors": [{"libvirt": "qemu:///system"}]}))
    await libvirtd.run("chmod 0700 /run/libvirt/libvirt-sock-ro")
    try:
        said = await libvirtd.run(
            f"setpriv --reuid 65534 --clear-groups {sys.executable} -m agent.cli check --config {config}"
        )
    finally:
        await libvirtd.run("chmod 0777 /run/libvirt/libvirt-sock-ro")
    assert re.search("BAD  qemu:///system: .*Permission denied", said), said


async def test_check_says_how_each_domain_is_and_why_there_is_no_libvirtd(libvirtd: Libvirtd) -> None:
    config = libvirtd.folder / "check.yaml"
    config.write_text(yaml.safe_dump({"monitors": [{"libvirt": libvirtd.uri}]}))
    found = await run_command("check", "--config", config)
    assert (found.status, f"{libvirtd.uri}#public: public" in found.out) == (0, True)
    nowhere = "qemu+unix:///system?socket=/nowhere"
    config.write_text(yaml.safe_dump({"monitors": [{"libvirt": nowhere}]}))
    found = await run_command("check", "--config", config)
    assert found.status != 0
    assert "No such file or directory" in found.out
