"""Latency histograms that the agent sets, on a real QEMU with a guest that writes continuously."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from agent.app.agent import Agent
from agent.cli.demo.guest import Guest
from agent.config.model import Config
from agent.session.disk_histogram_state_machine import HistogramState
from tests.lab.fixtures import StartGuest
from tests.lab.qemus import Qemu
from tests.lab.thin_guests import ListSink
from tests.lab.waiting import until

SCSI_DISK: Final = [
    *("-blockdev", '{"driver":"null-co","node-name":"scratch","size":1048576,"read-zeroes":true}'),
    *("-device", "virtio-scsi-pci,id=scsi0", "-device", "scsi-hd,id=disk1,drive=scratch,bus=scsi0.0"),
]
"""A second disk, which can be unplugged without the guest's help."""
BOUNDARIES: Final = ["1ms", "10ms", "100ms"]
SECONDS: Final = [0.001, 0.01, 0.1]
FOREIGN: Final = [5_000_000, 50_000_000]
WAIT_SECONDS: Final = 180
WRITES: Final = 20


@contextlib.asynccontextmanager
async def running_agent(folder: Path, **allow: Any) -> AsyncIterator[Agent]:
    """Run an agent whose journal survives a restart. It needs no broker, because its records go to a list."""
    config = {
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "host": "hv7",
        "web": {"listen_address": "127.0.0.1:0"},
        "intervals": {"poll": "200ms"},
        "kafka": {"bootstrap_servers": ["127.0.0.1:1"], "topics": {"state": None}},
        "journal": {"directory": str(folder / "journal")},
        "allow": allow,
    }
    agent = Agent(Config.model_validate(config), ListSink())
    async with agent.run_in_background():
        yield agent


def disks(agent: Agent) -> dict[str, dict[str, Any]]:
    """Return the last values of each disk of the only VM."""
    for _, view in agent.snapshot.one_view_per_uuid():
        if "block" in view.polls:
            return {labels[0]: values for labels, values in view.polls["block"].current.items()}
    return {}


def states(agent: Agent) -> dict[HistogramState, int]:
    return dict(agent.histograms.histograms.disk_count_by_state())


async def stats(guest: Guest, disk: str) -> dict[str, Any]:
    """Return QEMU's own statistics of a disk."""
    devices = await guest.command("query-blockstats")
    (found,) = (device["stats"] for device in devices if disk in device.get("qdev", ""))
    return dict(found)


def operations(stats: dict[str, Any], kind: str) -> int:
    return int(stats[f"{kind}_operations"] + stats[f"failed_{kind}_operations"])


async def write_some(guest: Guest) -> None:
    """Let the guest run until it has written, and stop it. Afterwards no request is in flight."""
    before = await guest.count_writes()
    await guest.command("cont")

    async def has_written() -> bool:
        return await guest.count_writes() >= before + WRITES

    await until(has_written, WAIT_SECONDS)
    await guest.command("stop")


@pytest.mark.parametrize("options", ["", "iothread=io0"], ids=["main-loop", "iothread"])
async def test_the_histogram_counts_each_operation_since_it_was_set(
    folder: Path, start_guest: StartGuest, qemu: Qemu, options: str
) -> None:
    extra = ["-S", "-object", "iothread,id=io0"]
    guest = await start_guest(kind="writer", pause_seconds=0.004, disk_options=options, extra=extra, binary=qemu.binary)
    await write_some(guest)
    before = await stats(guest, "disk0")
    assert "wr_latency_histogram" not in before
    async with running_agent(folder, latency_histograms=BOUNDARIES) as agent:
        await until(lambda: "write_latency_seconds" in disks(agent).get("disk0", {}), WAIT_SECONDS)
        await write_some(guest)
        after = await stats(guest, "disk0")
        assert after["wr_latency_histogram"]["boundaries"] == [1_000_000, 10_000_000, 100_000_000]
        for kind in ("rd", "wr", "flush"):
            rise = operations(after, kind) - operations(before, kind)
            assert sum(after[f"{kind}_latency_histogram"]["bins"]) == rise, kind
        assert "zone_append_latency_histogram" not in after
        counts = after["wr_latency_histogram"]["bins"]
        assert sum(counts) >= WRITES
        await until(lambda: disks(agent)["disk0"]["write_latency_seconds"]["counts"] == counts, WAIT_SECONDS)
        assert disks(agent)["disk0"]["write_latency_seconds"] == {"boundaries_seconds": SECONDS, "counts": counts}


async def test_the_sum_is_known_if_the_histogram_has_all_operations(folder: Path, start_guest: StartGuest) -> None:
    guest = await start_guest(kind="writer", pause_seconds=0.004, extra=["-S"])
    async with running_agent(folder, latency_histograms=True) as agent:
        await until(lambda: "write_latency_seconds" in disks(agent).get("disk0", {}), WAIT_SECONDS)
        await write_some(guest)
        after = await stats(guest, "disk0")
        counts = after["wr_latency_histogram"]["bins"]
        await until(lambda: disks(agent)["disk0"]["write_latency_seconds"]["counts"] == counts, WAIT_SECONDS)
        values = disks(agent)["disk0"]
        assert values["write_latency_seconds"]["sum_seconds"] == after["wr_total_time_ns"] / 1e9
        assert values["write_latency_seconds"]["boundaries_seconds"][0] == 0.0001
        assert sum(counts) == values["writes_total"]


async def test_a_disk_that_is_plugged_in_again_gets_histograms_again(folder: Path, start_guest: StartGuest) -> None:
    guest = await start_guest(kind="writer", extra=SCSI_DISK)
    async with running_agent(folder, latency_histograms=BOUNDARIES) as agent:
        for _ in range(2):
            await until(lambda: "write_latency_seconds" in disks(agent).get("disk1", {}), WAIT_SECONDS)
            await guest.command("device_del", id="disk1")
            await until(lambda: "disk1" not in disks(agent), WAIT_SECONDS)
            await guest.command("device_add", driver="scsi-hd", id="disk1", drive="scratch", bus="scsi0.0")
        await until(lambda: "write_latency_seconds" in disks(agent).get("disk1", {}), WAIT_SECONDS)
        await until(lambda: states(agent) == {HistogramState.OURS: 3}, WAIT_SECONDS)


async def test_a_quick_replug_between_two_polls_gets_histograms_again(folder: Path, start_guest: StartGuest) -> None:
    guest = await start_guest(kind="writer", extra=SCSI_DISK)
    async with running_agent(folder, latency_histograms=BOUNDARIES) as agent:
        await until(lambda: "write_latency_seconds" in disks(agent).get("disk1", {}), WAIT_SECONDS)
        await guest.command("device_del", id="disk1")
        await guest.wait_for_event("DEVICE_DELETED")
        await guest.command("device_add", driver="scsi-hd", id="disk1", drive="scratch", bus="scsi0.0")

        async def is_set_again() -> bool:
            return "wr_latency_histogram" in await stats(guest, "disk1")

        await until(is_set_again, WAIT_SECONDS)


async def test_another_clients_histogram_stays_and_is_used(folder: Path, start_guest: StartGuest) -> None:
    guest = await start_guest(kind="writer")
    path = "/machine/peripheral/disk0/virtio-backend"
    await guest.command("block-latency-histogram-set", **{"id": path, "boundaries-read": FOREIGN})
    async with running_agent(folder, latency_histograms=BOUNDARIES) as agent:
        await until(lambda: states(agent) == {HistogramState.OURS: 1, HistogramState.FOREIGN: 1}, WAIT_SECONDS)
        await until(lambda: "read_latency_seconds" in disks(agent).get("disk0", {}), WAIT_SECONDS)
        (vm,) = (vm for vm, _ in agent.snapshot.one_view_per_uuid())
        assert agent.endpoint_source.latency_histogram_owner(vm, "disk0") == "other"
        assert sorted(agent.endpoint_source.latency_histogram_owner(vm, name) for name in disks(agent)) == [
            "agent",
            "other",
        ]
        assert disks(agent)["disk0"]["read_latency_seconds"]["boundaries_seconds"] == [0.005, 0.05]
        found = await stats(guest, "disk0")
        assert found["rd_latency_histogram"]["boundaries"] == FOREIGN
        assert "wr_latency_histogram" not in found


async def test_histograms_that_a_client_removes_are_not_set_again(folder: Path, start_guest: StartGuest) -> None:
    guest = await start_guest(kind="writer")
    async with running_agent(folder, latency_histograms=BOUNDARIES) as agent:
        await until(lambda: states(agent) == {HistogramState.OURS: 2}, WAIT_SECONDS)
        await until(lambda: "write_latency_seconds" in disks(agent).get("disk0", {}), WAIT_SECONDS)
        await guest.command("stop")  # without requests in flight, removing histograms is safe in every version
        await guest.command("block-latency-histogram-set", id="/machine/peripheral/disk0/virtio-backend")
        await until(lambda: states(agent).get(HistogramState.REMOVED) == 1, WAIT_SECONDS)
        assert "wr_latency_histogram" not in await stats(guest, "disk0")


async def test_the_agent_knows_its_histograms_after_a_restart_and_leaves_them(
    folder: Path, start_guest: StartGuest
) -> None:
    guest = await start_guest(kind="writer")
    async with running_agent(folder, latency_histograms=BOUNDARIES) as agent:
        await until(lambda: "write_latency_seconds" in disks(agent).get("disk0", {}), WAIT_SECONDS)
        await until(lambda: states(agent) == {HistogramState.OURS: 2}, WAIT_SECONDS)
    assert "wr_latency_histogram" in await stats(guest, "disk0"), "they stay when the agent stops"
    async with running_agent(folder, latency_histograms=["7ms"]) as agent:
        await until(lambda: "write_latency_seconds" in disks(agent).get("disk0", {}), WAIT_SECONDS)
        await until(lambda: states(agent) == {HistogramState.OURS: 2}, WAIT_SECONDS)
        assert disks(agent)["disk0"]["write_latency_seconds"]["boundaries_seconds"] == SECONDS


async def test_an_agent_that_may_not_set_histograms_sets_none(folder: Path, start_guest: StartGuest) -> None:
    guest = await start_guest(kind="writer")
    async with running_agent(folder) as agent:
        await until(lambda: disks(agent).get("disk0", {}).get("writes_total", 0) > WRITES, WAIT_SECONDS)
        assert "wr_latency_histogram" not in await stats(guest, "disk0")
        assert states(agent) == {}
