"""Guest agents end to end: an agent process, a scripted QEMU with a channel, and a real qemu-ga behind it."""

import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.agent_process import AgentProcess
from tests.lab.fake_guest_agent import FakeGuestAgent
from tests.lab.fake_qemu import FakeQemu
from tests.lab.guest_agent import GuestAgentProcess
from tests.lab.guest_channel import set_channel
from tests.lab.waiting import until

QUICK = {"filesystems": "200ms", "freeze": "200ms", "os": "1s", "clock": "1s"}


@pytest.fixture
async def vm(folder: Path) -> AsyncIterator[FakeQemu]:
    async with FakeQemu(folder / "vm1.qmp") as running:
        set_channel(running, connected=True)
        yield running


def agent_of(folder: Path, **guest_agent: Any) -> AgentProcess:
    config = {
        "enabled": True,
        "channels": [{"socket": f"{folder}/{{monitor}}.qga"}],
        "timeout": "10s",
        "max_retry_delay": "1s",
        "intervals": QUICK,
    }
    return AgentProcess(folder, {"monitors": [{"dial": f"{folder}/*.qmp"}], "guest_agent": config | guest_agent})


async def test_the_figures_of_a_real_guest_agent_are_records_and_series(folder: Path, vm: FakeQemu) -> None:
    begin = time.time()
    async with GuestAgentProcess(folder), agent_of(folder) as agent:
        record = await agent.wait_for_record("sample.guest_filesystem")
        await agent.wait_for_record("sample.guest_clock")
        scrape = await agent.metrics()
    root = os.statvfs("/")
    size = record["data"]["used_bytes"] + record["data"]["available_bytes"]
    assert size == record["data"]["size_bytes"] == (root.f_blocks - root.f_bfree + root.f_bavail) * root.f_frsize
    assert scrape.value("qemu_guest_filesystem_size_bytes", mountpoint=record["data"]["mountpoint"]) == size
    assert scrape.value("qemu_guest_agent_session_state", state="up") == 1
    assert scrape.value("qemu_guest_agent_connected") == 1
    assert scrape.matching("qemu_guest_os_kernel", kernel=os.uname().release)
    assert scrape.value("qmp_agent_guest_agent_commands_total", command="guest-info", outcome="ok") == 1
    assert begin <= (scrape.value("qemu_guest_agent_last_response_timestamp_seconds") or 0) <= time.time()
    assert len(list(agent.find_records("sample.guest_os"))) == 1, "only after a change"
    assert len(list(agent.find_records("sample.guest_freeze"))) == 1


async def test_a_guest_agent_that_hangs_or_closes_its_channel_leaves_no_stale_series(
    folder: Path, vm: FakeQemu
) -> None:
    async with GuestAgentProcess(folder) as guest_agent, agent_of(folder) as agent:
        await agent.wait_for_record("sample.guest_clock")
        mark = agent.mark()
        guest_agent.send_signal(signal.SIGSTOP)
        await agent.wait_for_record("sample.guest_agent_session", since=mark, state="unresponsive")
        scrape = await agent.metrics()
        assert scrape.matching("qemu_guest_filesystem_size_bytes") == []
        assert scrape.matching("qemu_guest_os_kernel") == []
        mark = agent.mark()
        await guest_agent.stop()
        await guest_agent.start()
        # The query that was not answered is not repeated within a minute.
        await agent.wait_for_record("sample.guest_filesystem", since=mark)
        set_channel(vm, connected=False)
        await agent.wait_for_record("sample.guest_agent_session", since=mark, state="absent")
        scrape = await agent.metrics()
        assert scrape.matching("qemu_guest_filesystem_size_bytes") == []
        assert scrape.value("qemu_guest_agent_connected") == 0


async def test_a_full_file_system_in_the_guest_is_an_alert(folder: Path, vm: FakeQemu) -> None:
    async with FakeGuestAgent(folder / "vm1.qga") as guest, agent_of(folder) as agent:
        (entry,) = guest.replies["guest-get-fsinfo"]["return"]
        entry["used-bytes"] = int(entry["total-bytes"] * 0.96)
        for level in ("90%", "95%"):
            alert = await agent.wait_for_record("alert.guest_filesystem_space", level=level, state="firing")
            assert alert["subject"] == entry["mountpoint"]
        mark = agent.mark()
        entry["used-bytes"] = 1
        for level in ("90%", "95%"):
            await agent.wait_for_record("alert.guest_filesystem_space", since=mark, level=level, state="resolved")


async def test_a_reload_switches_the_queries_on_and_off(folder: Path, vm: FakeQemu) -> None:
    async with FakeGuestAgent(folder / "vm1.qga") as guest, agent_of(folder, enabled=False) as agent:
        await agent.wait_for_record("sample.guest_agent", connected=True)
        assert guest.clients == 0
        text = agent.config.read_text()
        agent.config.write_text(text.replace("enabled: false", "enabled: true"))
        agent.send_signal(signal.SIGHUP)
        await agent.wait_for_record("sample.guest_filesystem")
        agent.config.write_text(text)
        agent.send_signal(signal.SIGHUP)

        async def without_series() -> bool:
            return not (await agent.metrics()).matching("qemu_guest_filesystem_size_bytes")

        await until(without_series)
