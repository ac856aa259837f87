"""KVM's statistics and dirty limits of guests that run under KVM. The tests are skipped on a machine without KVM."""

import os
from pathlib import Path
from typing import Any, Final

import pytest

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from tests.lab.agent_process import AgentProcess
from tests.lab.qemus import Qemu

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="/dev/kvm is missing or not accessible"),
]

VCPU: Final = {
    "exits": "exits_total",
    "io_exits": "io_exits_total",
    "halt_exits": "halt_exits_total",
    "irq_injections": "irq_injections_total",
    "pf_taken": "page_faults_total",
}
"""KVM's names and ours, written by hand."""


async def kvm_counters(guest: Guest) -> dict[str, dict[str, int]]:
    """Query KVM's counters on a second monitor. Return the counters of each vCPU, by the vCPU's number."""
    numbers = {cpu["qom-path"]: str(cpu["cpu-index"]) for cpu in await guest.command("query-cpus-fast")}
    answer: list[Any] = await guest.command("query-stats", target="vcpu")
    return {
        numbers[entry["qom-path"]]: {stat["name"]: stat["value"] for stat in entry["stats"]}
        for entry in answer
        if entry["provider"] == "kvm"
    }


async def test_kvm_counters_match_qemus_own_and_the_dirty_limit_is_reported(qemu: Qemu, folder: Path) -> None:
    options = GuestOptions(
        kind=GuestKind.WRITER, binary=qemu.binary, accel="kvm,dirty-ring-size=4096", extra=["-smp", "2"]
    )
    config = {
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "intervals": {"poll": "200ms", "kvm": "1s", "resync": "1s"},
    }
    async with Guest(folder, "vm1", options) as guest, AgentProcess(folder, config) as agent:
        await guest.wait_until_booted()
        before = await kvm_counters(guest)
        since: int = agent.mark()
        for _ in range(3):  # the first poll may have begun before, and the vCPUs of one poll come in any order
            last = await agent.wait_for_record("sample.kvm_vcpu", vm=guest.uuid, since=since, vcpu="1")
            since = agent.records().index(last) + 1
        samples = {r["subject"]: r["data"] for r in agent.find_records("sample.kvm_vcpu", vm=guest.uuid)}
        after = await kvm_counters(guest)
        for number, figures in before.items():
            for theirs, ours in VCPU.items():
                assert figures[theirs] <= samples[number][ours] <= after[number][theirs], (number, ours)
        assert before["0"]["exits"] > 0
        machine = await agent.wait_for_record("sample.kvm", vm=guest.uuid)
        assert machine["data"].keys() >= {"pages_4k", "pages_2m", "pages_1g", "remote_tlb_flushes_total"}
        assert (await agent.wait_for_record("sample.identity", vm=guest.uuid))["data"]["accelerator"] == "kvm"
        in_guest = await agent.wait_for_record("sample.vcpu", vm=guest.uuid, vcpu="0")
        assert in_guest["data"]["guest_seconds_total"] >= 0
        await guest.command("set-vcpu-dirty-limit", dirty_rate=100)
        for number in before:
            limit = await agent.wait_for_record("sample.vcpu_dirty", vm=guest.uuid, vcpu=number)
            assert limit["data"]["limit_bytes_per_second"] == 100 << 20
