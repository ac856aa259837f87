"""Newer guest agents in a real Linux guest: every figure equals the one read inside."""

import os
from pathlib import Path
from typing import Final

import pytest

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from agent.cli.demo.images import MissingDependencyError
from tests.integration.guest_agent.test_real_guest import config
from tests.lab.agent_process import AgentProcess
from tests.lab.guest_figures import check_figures
from tests.lab.guest_image import guest_agent_initramfs
from tests.lab.guest_shell import guest_shell
from tests.lab.qemus import OTHER_RELEASES

RELEASES: Final = OTHER_RELEASES if os.environ.get("QMP_AGENT_ALL_RELEASES") else OTHER_RELEASES[-1:]
"""The newest release only, because a Linux guest needs a minute of CPU to boot without KVM."""


@pytest.mark.parametrize("release", RELEASES)
async def test_the_figures_of_a_newer_guest_agent_equal_those_inside(folder: Path, release: str) -> None:
    initramfs = folder / "initramfs"
    try:
        initramfs.write_bytes(guest_agent_initramfs(release))
    except MissingDependencyError as missing:
        pytest.skip(str(missing))
    options = GuestOptions(
        kind=GuestKind.LINUX,
        guest_agent=True,
        guest_shell=True,
        pause_seconds=5,
        extra=("-initrd", str(initramfs)),
    )
    async with Guest(folder, "web-1", options) as guest:
        await guest.wait_until_booted()
        async with guest_shell(folder, "web-1") as shell, AgentProcess(folder, config(folder)) as agent:
            await check_figures(agent, shell, guest.uuid)
            session = await agent.wait_for_record("sample.guest_agent_session", vm=guest.uuid, state="up")
            assert session["data"]["missing_commands"] == []
            load = (await agent.metrics()).value("qemu_guest_load_average_1m", vm_uuid=guest.uuid)
            assert load is not None
