"""`qmp-agent explain` on real guests: a provoked cause is named first, with its figures, and is gone when it ends."""

import contextlib
import json
import re
import signal
from pathlib import Path
from typing import Any, Final

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from tests.e2e.test_guest_agent import agent_of
from tests.e2e.test_host_failures import watching_agent
from tests.integration.qemu.test_condition_alerts import BUSY, boot_options, cpu_quota
from tests.lab.agent_process import AgentProcess, run_command
from tests.lab.fake_guest_agent import FakeGuestAgent
from tests.lab.fake_qemu import FakeQemu
from tests.lab.guest_channel import set_channel
from tests.lab.hung_storage import fuse, on_fuse
from tests.lab.waiting import until

CONFIG: Final[dict[str, Any]] = {"intervals": {"poll": "600ms", "resync": "2s"}, "timeouts": {"response": "120s"}}
"""Polls further apart than `agent.exposition.rates.MIN_INTERVAL_NS`, because closer ones have no rates."""
LIMIT: Final = 64 << 10
"""Throttle limit in bytes per second, far less than the writer writes."""

LOAD: Final = {"cpu_waiting", "cpu_quota", "neighbours"}
"""Causes that also apply because other programs use the machine's CPUs."""


async def explain(agent: AgentProcess, vm: str) -> list[dict[str, Any]]:
    """Return the causes that the agent names for a VM."""
    status, text = await agent.get(f"/explain?vm={vm}")
    assert status == 200, text
    causes: list[dict[str, Any]] = json.loads(text)["causes"]
    return causes


async def first_is(agent: AgentProcess, vm: str, cause: str) -> dict[str, Any]:
    """Wait until a cause is the first one of a VM, but for those of a machine under load, and return it."""
    found: list[dict[str, Any]] = []

    async def is_first() -> bool:
        nonlocal found
        found = [row for row in await explain(agent, vm) if row["cause"] not in LOAD]
        return bool(found) and found[0]["cause"] == cause

    await until(is_first)
    return found[0]


async def wait_until_gone(agent: AgentProcess, vm: str, cause: str) -> None:
    """Wait until a cause no longer explains a VM."""

    async def is_gone() -> bool:
        return cause not in {found["cause"] for found in await explain(agent, vm)}

    await until(is_gone)


async def test_a_pause_a_throttle_limit_and_a_backup_are_named_and_end(folder: Path) -> None:
    options = GuestOptions(kind=GuestKind.WRITER, write_kib=60, disk_mib=16)
    async with Guest(folder, "db-1", options) as guest, watching_agent(folder, **CONFIG) as agent:
        await guest.wait_until_booted()
        await agent.wait_for_record("sample.block_layer", vm=guest.uuid)
        await guest.command("stop")
        stopped = await first_is(agent, "db-1", "not_running")
        assert stopped["figures"]["status"] == "paused"
        printed = await run_command("explain", "db-1", "--url", agent.url)
        assert printed.status == 0
        assert re.search(r"^\d+\. The guest has not run for ", printed.out, re.MULTILINE)
        assert "a client of its monitor, such as its manager, stopped it" in printed.out
        as_json = await run_command("explain", guest.uuid, "--json", "--url", agent.url)
        causes = [row["cause"] for row in json.loads(as_json.out)["causes"] if row["cause"] not in LOAD]
        assert causes[0] == "not_running"
        await guest.command("cont")
        await wait_until_gone(agent, "db-1", "not_running")

        none = dict.fromkeys(("bps", "bps_rd", "iops", "iops_rd", "iops_wr"), 0)
        await guest.command(
            "block_set_io_throttle", id="/machine/peripheral/disk0/virtio-backend", bps_wr=LIMIT, **none
        )
        throttled = await first_is(agent, "db-1", "disk_throttled")
        assert throttled["subject"] == "disk0"
        assert throttled["figures"]["limit_per_second"] == LIMIT
        await guest.command("block_set_io_throttle", id="/machine/peripheral/disk0/virtio-backend", bps_wr=0, **none)
        await wait_until_gone(agent, "db-1", "disk_throttled")

        await guest.command("blockdev-add", driver="null-co", node_name="target", size=16 << 20)
        job = {"job_id": "nightly", "device": "disk0-format", "target": "target", "sync": "full", "speed": 65_536}
        await guest.command("blockdev-backup", **job)
        backup = await first_is(agent, "db-1", "job_running")
        assert (backup["subject"], backup["figures"]["type"]) == ("nightly", "backup")
        await guest.command("block-job-cancel", device="nightly", force=True)
        await wait_until_gone(agent, "db-1", "job_running")

        unknown = await run_command("explain", "db-9", "--url", agent.url)
        assert (unknown.status, unknown.out) == (1, "")
        assert unknown.log == "qmp-agent: the agent watches no VM named db-9\n"


async def test_storage_that_hangs_is_named_with_its_path(folder: Path) -> None:
    async with (
        fuse(folder) as (served, server),
        on_fuse(folder, served) as guest,
        watching_agent(folder, **CONFIG) as agent,
    ):
        await agent.wait_for_record("sample.block_storage", vm=guest.uuid, device="hung")
        await agent.wait_for_record("sample.pool", pool=str(served))
        server.send_signal(signal.SIGSTOP)
        try:
            hung = await first_is(agent, "vm1", "storage_unresponsive")
            assert (hung["subject"], hung["figures"]["devices"]) == (str(served), ["hung"])
        finally:
            server.send_signal(signal.SIGCONT)
        await wait_until_gone(agent, "vm1", "storage_unresponsive")


async def test_vcpus_without_cpu_time_are_named(folder: Path) -> None:
    guest = Guest(folder, "busy", boot_options(folder, BUSY))
    async with guest, watching_agent(folder, **CONFIG) as agent:
        await agent.wait_for_record("sample.vcpu", vm=guest.uuid)
        assert guest.process is not None
        causes: list[dict[str, Any]] = []
        with cpu_quota(guest.process.pid, 0.3):

            async def waits() -> bool:
                nonlocal causes
                causes = await explain(agent, "busy")
                return bool(causes) and causes[0]["cause"] in LOAD

            with contextlib.suppress(TimeoutError):
                await until(waits)
            assert causes and causes[0]["cause"] in LOAD, (causes, agent.log)


async def test_a_full_file_system_in_the_guest_is_named(folder: Path) -> None:
    vm = FakeQemu(folder / "vm1.qmp")
    set_channel(vm, connected=True)
    async with vm, FakeGuestAgent(folder / "vm1.qga") as guest, agent_of(folder) as agent:
        await agent.wait_for_record("sample.guest_filesystem")
        (entry,) = guest.replies["guest-get-fsinfo"]["return"]
        assert "guest_filesystem_full" not in {cause["cause"] for cause in await explain(agent, "vm1")}
        entry["used-bytes"] = int(entry["total-bytes"] * 0.99)
        full = await first_is(agent, "vm1", "guest_filesystem_full")
        assert full["subject"] == entry["mountpoint"]
