"""Read-only connections: what the agent does with them, and the limitations that it reports."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from tests.integration.libvirt.conftest import AgentOn
from tests.integration.libvirt.test_domain_lifecycle import wait_until_attached
from tests.lab.agent_process import run_command
from tests.lab.hidden_paths import ROOT, hidden_paths, reveal
from tests.lab.libvirt import Libvirtd

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITATION = "read-only: only the events STOP, RESUME, SUSPEND and SHUTDOWN; no thresholds and no passthrough"


@pytest.mark.parametrize("reason", ["configured", "no other permitted"])
async def test_a_read_only_connection_reports_figures_lifecycle_and_its_limitations(
    libvirtd: Libvirtd, agent_on: AgentOn, reason: str
) -> None:
    name = "configured" if reason == "configured" else "permitted"
    entry = {"read_only": True} if reason == "configured" else {"libvirt": libvirtd.read_only_uri}
    domain = await libvirtd.domain(f"ro-{name}")
    levels = {"disks": {"mode": "arm", "levels": ["used 1MiB"]}}
    async with agent_on(entry, alerts=levels, allow={"libvirt_passthrough": True}) as agent:
        await wait_until_attached(agent, domain)
        assert LIMITATION in (await agent.get("/overview"))[1]
        await libvirtd.virsh("suspend", domain.name)
        await agent.wait_for_record("sample.runstate", vm=domain.uuid, status="paused")
        await libvirtd.virsh("destroy", domain.name)
        gone = await agent.wait_for_record("vm.gone", vm=domain.uuid)
        assert gone["data"]["reason"] == "the domain was destroyed"
        assert {r["type"] for r in agent.records() if r["type"].startswith("qemu.event.")} <= {
            "qemu.event.stop",
            "qemu.event.shutdown",
        }


async def check_as_other_user(libvirtd: Libvirtd, config: Path) -> str:
    """Return the output of `qmp-agent check` as an unprivileged user, in libvirtd's namespaces."""
    script = libvirtd.folder / "check.sh"
    check = shlex.join(["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-m", "agent", "check"])
    root = shlex.quote(str(ROOT))
    reachable = reveal(hidden_paths(), libvirtd.folder / "mounts")
    script.write_text(f"{reachable}\ncd {root}\nPYTHONPATH={root} exec {check} --config {config}\n")
    return await libvirtd.run(f"unshare --mount --propagation private bash {script}")


async def test_a_user_with_read_only_access_polls_and_check_reports_the_limitation(libvirtd: Libvirtd) -> None:
    domain = await libvirtd.domain("public")
    config = libvirtd.folder / "public.yaml"
    config.write_text(yaml.safe_dump({"monitors": [{"libvirt": "qemu:///system"}]}))
    output = await check_as_other_user(libvirtd, config)
    assert re.search(rf"qemu:///system: \d+ running; {LIMITATION}", output), output
    assert f"qemu:///system#public: public ({domain.uuid})" in output


async def test_a_user_without_access_to_libvirtd_gets_the_error(libvirtd: Libvirtd) -> None:
    config = libvirtd.folder / "nothing.yaml"
    config.write_text(yaml.safe_dump({"monitors": [{"libvirt": "qemu:///system"}]}))
    await libvirtd.run("chmod 0700 /run/libvirt/libvirt-sock-ro")
    try:
        output = await check_as_other_user(libvirtd, config)
    finally:
        await libvirtd.run("chmod 0777 /run/libvirt/libvirt-sock-ro")
    assert re.search("FAIL  qemu:///system: .*Permission denied", output), output


async def test_check_reports_each_domain_and_why_a_libvirtd_cannot_be_reached(libvirtd: Libvirtd) -> None:
    await libvirtd.domain("listed")
    config = libvirtd.folder / "check.yaml"
    config.write_text(yaml.safe_dump({"monitors": [{"libvirt": libvirtd.uri}]}))
    result = await run_command("check", "--config", config)
    assert (result.status, f"{libvirtd.uri}#listed: listed" in result.out) == (0, True)
    nowhere = "qemu+unix:///system?socket=/nowhere"
    config.write_text(yaml.safe_dump({"monitors": [{"libvirt": nowhere}]}))
    result = await run_command("check", "--config", config)
    assert result.status != 0
    assert "No such file or directory" in result.out
