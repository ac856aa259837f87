"""Discovery of all libvirt daemons of a host: each libvirtd here has namespaces of its own, as in a container."""

import asyncio
import json
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agent.host.qemu_processes import read_command_line
from tests.integration.libvirt.conftest import QUICK
from tests.integration.libvirt.test_domain_lifecycle import wait_until_attached
from tests.lab.agent_process import AgentProcess, run_command
from tests.lab.libvirt import Libvirtd

KUBEVIRT = '<metadata><kubevirt xmlns="http://kubevirt.io"><uid>0c3b</uid></kubevirt></metadata>'
"""What KubeVirt writes to its domains, apart from its settings."""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def container() -> AsyncIterator[Libvirtd]:
    """A second libvirtd, in other namespaces than the first."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        async with Libvirtd(Path(path)) as running:
            yield running


async def test_domains_of_all_libvirts_are_watched_until_their_containers_end(
    libvirtd: Libvirtd, container: Libvirtd, folder: Path
) -> None:
    # Only the test's own, because other libvirts may run on this machine.
    entry = {"libvirt": "auto", "containers": [libvirtd.container, container.container]}
    config = {**QUICK, "monitors": [entry]}
    async with AgentProcess(folder, config) as agent:
        host_domain = await libvirtd.domain("apart")
        domain = await container.domain("shop_web-1", extra=KUBEVIRT)
        (folder / "check.yaml").write_text(json.dumps({"monitors": [entry]}))
        check = await run_command("check", "--config", folder / "check.yaml")
        assert re.search(r"^ok +libvirt auto: 2 running$", check.out, re.MULTILINE), check.out
        for each in (host_domain, domain):
            await wait_until_attached(agent, each)
            sample = await agent.wait_for_record("sample.process", vm=each.uuid)
            assert each.uuid in read_command_line(sample["data"]["pid"])

        about = await agent.wait_for_record("sample.identity", vm=domain.uuid)
        assert about["data"]["labels"] | {"node": ""} == {
            "namespace": "shop",
            "name": "web-1",
            "pod": container.container,
            "node": "",
        }

        assert {record.get("vmnamespace") for record in agent.records() if record.get("vmuuid") == domain.uuid} == {
            "shop"
        }
        assert {record.get("vmnamespace") for record in agent.records() if record.get("vmuuid") != domain.uuid} == {
            None
        }

        since = agent.mark()
        await container.kill()
        await agent.wait_for_record("vm.detached", vm=domain.uuid, since=since)
        await container.start()
        attached = await agent.wait_for_record("vm.attached", vm=domain.uuid, since=since)
        assert attached["data"]["reattached"] is True
        assert [*agent.find_records("vm.gone", vm=domain.uuid)] == []

        await container.end()
        gone = await agent.wait_for_record("vm.gone", vm=domain.uuid)
        assert gone["data"]["reason"]

        await agent.wait_for_record("sample.block", vm=host_domain.uuid, since=agent.mark())


LOOK = """
import json, os, sys
from pathlib import Path
import libvirt
from agent.host.libvirt_daemons import LibvirtDaemonScanner

def can(action):
    try:
        return action() is not None
    except (OSError, libvirt.libvirtError):
        return False

scan = LibvirtDaemonScanner().scan_proc()
daemons = [daemon for daemon in scan.daemons.values() if daemon.container == sys.argv[1]]
qemus = [pid for (namespace, _), pid in scan.qemus.items() if daemons and namespace == daemons[0].pid_namespace]
print(json.dumps([
    len(daemons),
    bool(daemons) and can(lambda: libvirt.open(daemons[0].connection_uri)),
    bool(qemus) and all(can(lambda: Path(f"/proc/{pid}/io").read_text()) for pid in qemus),
]))
"""
"""Looks for a libvirt in a container, connects to it, and reads what needs most permissions of a QEMU's files."""


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ([], [0, False, False]),
        (["dac_override"], [0, False, False]),
        (["sys_ptrace"], [1, False, False]),
        (["sys_ptrace", "dac_override"], [1, True, True]),
    ],
)
async def test_each_capability_of_the_daemon_set_is_needed(
    capabilities: list[str], expected: list[object], libvirtd: Libvirtd
) -> None:
    await libvirtd.domain(f"permitted-{len(capabilities)}-{expected[0]}")
    # In KubeVirt's pods, libvirt and its socket belong to the user qemu.
    os.chown(libvirtd.folder / "run" / "libvirt-sock", 64055, 64055)
    allowed = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    try:
        process = await asyncio.create_subprocess_exec(
            *("setpriv", f"--inh-caps={allowed}", f"--bounding-set={allowed}"),
            *(sys.executable, "-c", LOOK, libvirtd.container),
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(300):
            out, _ = await process.communicate()
    finally:
        os.chown(libvirtd.folder / "run" / "libvirt-sock", 0, 0)
    assert json.loads(out) == expected
