"""The host's resources in records and series equal what other programs report on this machine."""

import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent.cli.demo.guest import GuestKind
from tests.e2e.test_host_failures import watching_agent
from tests.lab.agent_process import AgentProcess, run_command
from tests.lab.fixtures import StartGuest
from tests.lab.waiting import until

MIB = 1 << 20
CONFIG: dict[str, Any] = {"intervals": {"poll": "500ms", "resync": "2s", "host": "1s"}}


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def free_bytes() -> dict[str, list[int]]:
    """Return the columns of free(1) by row."""
    rows = output("free", "--bytes", "--wide").splitlines()[1:]
    return {row.split(":")[0]: [int(word) for word in row.split(":")[1].split()] for row in rows}


async def newest_host_data(agent: AgentProcess) -> dict[str, Any]:
    """Return the data of a host record whose files were read after this call."""
    for _ in range(
        2
    ):  # the agent may have read the files of the first before, because a record's time is after the reading
        record = await agent.wait_for_record("sample.host", since=agent.mark())
    return dict(record["data"])


def swapped_in_pages() -> int:
    return int(output("awk", "/^pswpin / {print $2}", "/proc/vmstat"))


def exists(path: str) -> bool:
    return Path(path).exists()


def huge_page_sizes() -> int:
    """Return how many sizes of huge pages this kernel has."""
    return len(list(Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB")))


async def test_memory_cpus_and_counters_are_those_of_other_programs(folder: Path) -> None:
    async with watching_agent(folder, **CONFIG) as agent:
        before = swapped_in_pages()
        data: dict[str, Any] = {}
        rows: dict[str, list[int]] = {}

        async def agree_on_available_memory() -> bool:
            nonlocal data, rows  # other programs of the machine may take and free memory between two readings
            data, rows = await newest_host_data(agent), free_bytes()
            return bool(abs(data["memory_available_bytes"] - rows["Mem"][-1]) <= 0.2 * rows["Mem"][0])

        await until(agree_on_available_memory)
        found = partial(agent.find_records, "sample.host_hugepages")
        await until(lambda: len({record["data"]["size"] for record in found()}) == huge_page_sizes())
    assert data["memory_bytes"] == rows["Mem"][0]
    assert data["swap_bytes"] == rows["Swap"][0]
    assert data["online_cpus"] == int(output("getconf", "_NPROCESSORS_ONLN"))
    page = int(output("getconf", "PAGESIZE"))
    assert before * page <= data["swap_in_bytes_total"] <= swapped_in_pages() * page
    for name in ("cpu", "memory", "io"):
        assert (f"pressure_{name}_waiting_seconds_total" in data) is exists(f"/proc/pressure/{name}")
    assert ("ksm_saved_bytes" in data) is exists("/sys/kernel/mm/ksm")


@pytest.mark.skipif(not Path("/proc/pressure/cpu").exists(), reason="this kernel has no PSI")
async def test_pressure_lies_between_two_readings_of_the_kernels_own(folder: Path) -> None:
    def total() -> float:
        return int(Path("/proc/pressure/cpu").read_text().split("total=")[1].split()[0]) / 1e6

    async with watching_agent(folder, **CONFIG) as agent:
        before = total()
        data = await newest_host_data(agent)
        assert before <= data["pressure_cpu_waiting_seconds_total"] <= total()


async def test_vcpus_and_memory_of_two_guests_are_summed(folder: Path, start_guest: StartGuest) -> None:
    small = await start_guest("small-1", kind=GuestKind.WRITER, extra=["-smp", "3"])
    large = await start_guest("large-1", kind=GuestKind.WRITER, extra=["-smp", "2"])
    expected = 0
    for guest in (small, large):
        expected += (await guest.command("query-memory-size-summary"))["base-memory"]
    async with watching_agent(folder, **CONFIG) as agent:
        data: dict[str, Any] = {}

        async def knows_both() -> bool:
            nonlocal data
            data = await newest_host_data(agent)
            return (data["running_vms"], data["unknown_vms"]) == (2, 0)

        await until(knows_both)
        scrape = await agent.metrics()
        screen = await run_command("top", "--once", "--view", "host", "--url", agent.url)
        assert (data["vcpus"], data["guest_memory_bytes"]) == (5, expected)
        assert data["vcpu_commitment_ratio"] == 5 / data["online_cpus"]
        assert data["memory_commitment_ratio"] == expected / data["memory_bytes"]
        assert scrape.value("qemu_host_vcpus") == 5
        assert "vCPUs of running VMs    5, " in screen.out
        await large.command("stop")

        async def counts_one() -> bool:
            nonlocal data
            data = await newest_host_data(agent)
            return bool(data["running_vms"] == 1)

        await until(counts_one)
        assert (data["vcpus"], data["guest_memory_bytes"]) == (3, expected)
