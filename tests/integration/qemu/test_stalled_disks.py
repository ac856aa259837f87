"""Stalled guest I/O on a real QEMU: a disk whose storage hangs, and disks that are only throttled or idle."""

import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from agent.app.io_stall_watcher import CHECK_INTERVAL_SECONDS
from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from tests.e2e.test_host_failures import watching_agent
from tests.lab.agent_process import AgentProcess, Record
from tests.lab.hung_storage import WriterToDevice, device_on, fuse, longest_reply
from tests.lab.waiting import until

EARLY: Final = {"alert": "io_stalled", "limit": "2s"}
NO_POOLS: Final = {"alert": "pool_unresponsive", "enabled": False}
CONFIG: Final[dict[str, Any]] = {
    "intervals": {"poll": "500ms", "resync": "1h"},
    "alerts": {"overrides": [EARLY, NO_POOLS]},
}
DISK: Final = "virtio-blk-pci,drive=hung,id=disk0"
PATH: Final = "/machine/peripheral/disk0/virtio-backend"
NEXT_CHECK_SECONDS: Final = CHECK_INTERVAL_SECONDS + 60
"""A guest that got no CPU for seconds looks stalled, and may have used up the checks that the agent saves."""
IDLE_NS: Final = 20_000_000_000
"""Time that is far above the time from which a disk may stall."""


@contextlib.asynccontextmanager
async def writer_on(folder: Path, node: str, extra: tuple[str, ...] = ()) -> AsyncIterator[Guest]:
    """Run a guest that writes to the first MiB of a block node all the time, and has written to all of it.

    A disk that grows would make the agent query the block nodes, perhaps in the second in which its storage begins to hang.
    """
    arguments = ("-blockdev", node, "-device", DISK, *extra)
    options = GuestOptions(kind=GuestKind.WRITER, write_kib=60, disk_mib=1, pause_seconds=0.06, extra=arguments)
    async with WriterToDevice(folder, "vm1", options) as guest:

        async def has_written_all() -> bool:
            return await guest.count_writes() * 60 > 1024

        await until(has_written_all)
        yield guest


async def wait_until_placed(agent: AgentProcess) -> None:
    """Wait until the agent knows the pool of the disk, has polled the block nodes again because of it, and sees the guest write.

    A guest that gets no CPU for seconds stands still, too, and uses up the check for which the test waits.
    """
    await agent.wait_for_record("sample.pool")
    mark = agent.mark()

    def writes_now() -> bool:
        polls = [
            record["data"]["writes_total"] for record in agent.find_records("sample.block", since=mark, device="disk0")
        ]
        states = [record["data"]["state"] for record in agent.find_records("alert.io_stalled")]
        return len(polls) > 3 and polls[-1] > polls[-2] and states[-1:] != ["firing"]

    await until(writes_now, 180)


async def wait_until_stalled(agent: AgentProcess, mark: int) -> Record:
    """Wait for the alert of a stalled disk, and return it."""
    return await agent.wait_for_record("alert.io_stalled", since=mark, state="firing", timeout=NEXT_CHECK_SECONDS)


@contextlib.asynccontextmanager
async def fuse_or_device(folder: Path, kind: str) -> AsyncIterator[tuple[str, Any]]:
    """Serve storage that can hang; yield a block node on it, and its server."""
    async with fuse(folder) as (served, server):
        if kind == "file":  # its threads wait in state S
            yield f"file,node-name=hung,filename={served}", server
            return
        async with device_on(served) as device:  # its threads wait in state D
            yield f"host_device,node-name=hung,filename={device},cache.direct=on", server


@pytest.mark.parametrize("kind", ["file", "device"])
async def test_a_disk_whose_storage_hangs_fires_until_it_moves_again(folder: Path, kind: str) -> None:
    async with (
        fuse_or_device(folder, kind) as (node, server),
        writer_on(
            folder, node, ("-blockdev", "null-co,node-name=other", "-device", "virtio-blk-pci,drive=other,id=idle")
        ),
        watching_agent(folder, **CONFIG) as agent,
    ):
        await wait_until_placed(agent)
        mark = agent.mark()
        server.send_signal(signal.SIGSTOP)
        try:
            fired = await wait_until_stalled(agent, mark)
            assert fired["subject"] == "disk0"
            assert fired["data"]["signs"] == "threads"
            assert fired["data"]["waiting_threads"] >= 1
            await agent.wait_for_record("sample.block_stall", since=mark, device="disk0", state="stalled")
            assert ((await agent.metrics()).value("qemu_block_stall_seconds", device="disk0") or 0) > 2
            _, text = await agent.get("/explain?vm=vm1")
            assert "disk0 has requests in flight and has completed none for" in text
        finally:
            server.send_signal(signal.SIGCONT)
        await agent.wait_for_record("alert.io_stalled", since=mark, state="resolved")
        assert not [*agent.find_records("vm.stalled")]
        assert {record["subject"] for record in agent.find_records("alert.io_stalled")} == {"disk0"}


async def test_the_alert_of_the_pool_replaces_that_of_its_stalled_disk(folder: Path) -> None:
    config = CONFIG | {"intervals": {"poll": "500ms", "storage": "1s"}, "alerts": {"overrides": [EARLY]}}
    async with (
        fuse_or_device(folder, "file") as (node, server),
        writer_on(folder, node),
        watching_agent(folder, **config) as agent,
    ):
        await wait_until_placed(agent)

        async def only_the_pool_fires() -> bool:
            metrics = await agent.metrics()
            stands = (metrics.value("qemu_block_stall_seconds", device="disk0") or 0) > 2
            firing = {dict(labels)["alert"] for name, labels in metrics.values if name == "qemu_alert_firing"}
            return stands and firing == {"pool_unresponsive"}

        server.send_signal(signal.SIGSTOP)
        try:
            await until(only_the_pool_fires, NEXT_CHECK_SECONDS)
            fired = await agent.wait_for_record("alert.pool_unresponsive", state="firing", level="guests stand still")
            assert fired["severitytext"] == "FATAL"
        finally:
            server.send_signal(signal.SIGCONT)
        await agent.wait_for_record("alert.pool_unresponsive", state="resolved", level="guests stand still")


async def test_the_queue_of_a_disk_whose_threads_are_unknown_shows_that_it_hangs(folder: Path) -> None:
    config = CONFIG | {"allow": {"virtio_queues": True}}
    async with (
        fuse_or_device(folder, "file") as (node, server),
        writer_on(folder, node) as guest,
        watching_agent(folder, **config) as agent,
    ):
        await wait_until_placed(agent)
        mark = agent.mark()
        server.send_signal(signal.SIGSTOP)
        try:
            fired = await wait_until_stalled(agent, mark)
            assert fired["subject"] == "disk0"
            stalled = await agent.wait_for_record("sample.block_stall", since=mark, signs="queues, threads")
            assert stalled["data"]["requests_in_flight"] >= 1
            await longest_reply(guest, 3)  # a QEMU that waits for the storage does not reply at all
        finally:
            server.send_signal(signal.SIGCONT)
        await agent.wait_for_record("alert.io_stalled", since=mark, state="resolved")


async def test_a_disk_that_waits_for_its_throttle_limit_does_not_fire(folder: Path) -> None:
    config = CONFIG | {"allow": {"virtio_queues": True}}
    disk = f"file,node-name=hung,filename={folder}/slow.img"
    (folder / "slow.img").write_bytes(bytes(16 << 20))
    async with writer_on(folder, disk) as guest:
        none = dict.fromkeys(("bps", "bps_rd", "iops", "iops_rd", "iops_wr"), 0)
        await guest.command("block_set_io_throttle", id=PATH, bps_wr=32, **none)  # a write takes two minutes
        async with watching_agent(folder, **config) as agent:

            async def is_stalled() -> bool:
                stats = {disk["qdev"]: disk["stats"] for disk in await guest.command("query-blockstats")}
                return bool(stats[PATH]["idle_time_ns"] > IDLE_NS)

            await until(is_stalled, 300)
            queued = await agent.wait_for_record("sample.virtio_queue", device="disk0", since=agent.mark())
            assert queued["data"]["requests_in_flight"] >= 1
            assert not [*agent.find_records("sample.block_stall")]
            assert not [*agent.find_records("alert.io_stalled")]
            await guest.command("block_set_io_throttle", id=PATH, bps_wr=0, **none)
