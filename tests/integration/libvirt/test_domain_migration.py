"""A domain that is saved or migrated is reported as migrated, and not as gone."""

import tempfile
from pathlib import Path

import pytest

from tests.integration.libvirt.conftest import AgentOn
from tests.lab.libvirt import Libvirtd

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_saved_domain_migrates_out_and_is_attached_again_when_restored(
    libvirtd: Libvirtd, agent_on: AgentOn, folder: Path
) -> None:
    domain = await libvirtd.domain("moves")
    async with agent_on() as agent:
        await agent.wait_for_record("sample.block", vm=domain.uuid)
        await libvirtd.virsh("save", domain.name, str(folder / "saved"))
        migrated_out = await agent.wait_for_record("vm.migrated_out", vm=domain.uuid)
        assert migrated_out["data"]["reason"] == "the domain was saved"
        mark = agent.mark()
        await libvirtd.virsh("restore", str(folder / "saved"))
        await agent.wait_for_record("vm.attached", vm=domain.uuid, since=mark)
        await agent.wait_for_record("sample.runstate", vm=domain.uuid, since=mark, running=True)
        assert [*agent.find_records("vm.gone")] == []


async def test_a_migrating_domain_leaves_one_libvirtd_and_arrives_at_the_other(
    libvirtd: Libvirtd, agent_on: AgentOn
) -> None:
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        async with Libvirtd(Path(path)) as destination:
            domain = await libvirtd.domain("travels")
            async with agent_on(monitors=[{"libvirt": libvirtd.uri}, {"libvirt": destination.uri}]) as agent:
                await agent.wait_for_record("sample.block", vm=domain.uuid)
                mark = agent.mark()
                arguments = ("--live", "--unsafe", domain.name, destination.uri, "--migrateuri", "tcp:127.0.0.1")
                await libvirtd.virsh("migrate", *arguments)
                await agent.wait_for_record("vm.migrated_in", vm=domain.uuid, since=mark)
                migrated_out = await agent.wait_for_record("vm.migrated_out", vm=domain.uuid, since=mark)
                assert migrated_out["data"]["reason"] == "the domain has migrated to another host"
                await agent.wait_for_record("sample.runstate", vm=domain.uuid, since=mark, status="running")
                assert [*agent.find_records("vm.gone", vm=domain.uuid)] == []
