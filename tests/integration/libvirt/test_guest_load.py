"""The load of a guest over libvirt 11.2 or newer, with a guest agent that has it: qemu-ga 10.0."""

import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agent.cli.demo.images import MissingDependencyError
from tests.integration.libvirt.conftest import QUICK
from tests.integration.libvirt.test_guest_agent_of_domain import QUERIES
from tests.lab.agent_process import AgentProcess
from tests.lab.guest_agent import find_guest_agent
from tests.lab.libvirt import Domain, Libvirtd
from tests.lab.libvirt_linux import linux_domain
from tests.lab.libvirt_releases import find_libvirtd
from tests.lab.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

RELEASE = "trixie"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def newer_libvirtd() -> AsyncIterator[Libvirtd]:
    """Libvirtd 11.3. The tests are skipped if it or its guest agent was not fetched, or if not all releases are to be tested."""
    if not os.environ.get("QMP_AGENT_ALL_RELEASES"):
        pytest.skip("the guest needs a minute of CPU to boot: set QMP_AGENT_ALL_RELEASES=1")
    try:
        find_libvirtd(RELEASE)
        find_guest_agent(RELEASE)
    except MissingDependencyError as missing:
        pytest.skip(str(missing))
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        async with Libvirtd(Path(path), RELEASE) as running:
            yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def domain(newer_libvirtd: Libvirtd) -> Domain:
    return await linux_domain(newer_libvirtd, guest_agent=RELEASE)


async def test_the_load_is_the_guests_and_the_other_figures_are_those_of_virsh(
    newer_libvirtd: Libvirtd, domain: Domain, folder: Path
) -> None:
    config = {**QUICK, "monitors": [{"libvirt": newer_libvirtd.uri}], "guest_agent": QUERIES}
    async with AgentProcess(folder, config) as agent:
        load: dict[str, float] = {}
        info: dict[str, str] = {}

        async def figures_agree() -> bool:
            """Read both again, because the load of a guest that has just booted changes within seconds."""
            load.update((await agent.wait_for_record("sample.guest_load", vm=domain.uuid, since=agent.mark()))["data"])
            lines = (await newer_libvirtd.virsh("guestinfo", "linux-1")).splitlines()
            info.update({key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)})
            has_load = load["average_1m"] > 0  # the guest has just booted
            return has_load and all(abs(load[f"average_{n}m"] - float(info[f"load.{n}m"])) <= 1 for n in (1, 5, 15))

        await until(figures_agree, 120)
        filesystem = (await agent.wait_for_record("sample.guest_filesystem", vm=domain.uuid))["data"]
        series = await agent.metrics()
    assert series.value("qemu_guest_load_average_1m", vm_uuid=domain.uuid) is not None
    assert filesystem["used_bytes"] == int(info["fs.0.used-bytes"])
    assert newer_libvirtd.taints(domain) == []
