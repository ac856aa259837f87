"""Pools of images of real guests: raw files, snapshots in two pools, and network storage."""

import asyncio
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent.host.pools.storage_report import ReportedPool, ReportedVolume, StorageReport, StorageReportPoolSource
from tests.integration.qemu.test_pool_file_systems import (
    PAUSE_SECONDS,
    fill,
    image,
    pool_of,
    storage_of,
    watcher,
)
from tests.lab.file_systems import file_system
from tests.lab.thin_guests import MIB, AlertWatcher, LoopDevice, ThinGuest, ThinOptions, network_device, thin_guest
from tests.lab.waiting import until


class RawGuest(ThinGuest):
    """A guest whose disk is a raw file without a format above it."""

    async def _disk0_arguments(self) -> list[str]:
        storage = {**(self.options.storage or {}), "node-name": "disk0-storage"}
        node = {"driver": "raw", "node-name": "disk0-format", "file": "disk0-storage"}
        return [
            *("-blockdev", json.dumps(storage), "-blockdev", json.dumps(node)),
            *("-device", f"virtio-blk-pci,id=disk0,drive=disk0-format,{self.options.disk_options}"),
        ]


def sparse_disk(storage: dict[str, Any]) -> ThinOptions:
    """Return the options of a guest with a disk of 1 GiB on this storage. The guest waits for `cont`."""
    return ThinOptions(
        disk_mib=1024,
        pause_seconds=PAUSE_SECONDS,
        storage=storage,
        disk_options="werror=stop",
        extra=["-S"],
    )


async def test_a_sparse_raw_file_is_limited_by_its_pool(folder: Path) -> None:
    async with file_system("tmpfs", folder) as images:
        storage = await image(images, form="raw")
        await fill(images, 22 * MIB)
        guest = RawGuest(folder, "vm1", sparse_disk(storage))
        async with guest, watcher(folder, "70%", "90%") as agent:
            await guest.stop_writes_at(19 * MIB)  # between the last level and the end
            await guest.command("cont")
            await until(lambda: "90%" in agent.levels(alert="pool_filling"), 400)
            assert agent.space("vm1")["limited_by"] == "pool"
            assert not agent.event_times("STOP")
            await guest.stop_writes_at(None)
            await guest.wait_for_event("STOP", 400)
            await until(lambda: agent.event_times("STOP"), 180)
            assert [alert["alert"] for alert in agent.alerts][:2] == ["pool_filling", "pool_filling"]


async def test_layers_in_two_pools_belong_to_each(folder: Path) -> None:
    base, overlay = folder / "base", folder / "overlay"
    base.mkdir()
    overlay.mkdir()
    async with file_system("tmpfs", base) as first, file_system("tmpfs", overlay) as second:
        options: dict[str, Any] = {"disk_mib": 1024, "storage": await image(first)}
        async with (
            thin_guest(folder, pause_seconds=1, **options) as guest,
            watcher(folder, "85%") as agent,
        ):
            await until(lambda: storage_of(agent).get("pool") == str(first), 180)
            snapshot = {"node_name": "disk0-format", "snapshot_file": str(second / "vm1.qcow2"), "format": "qcow2"}
            await guest.command("blockdev-snapshot-sync", **snapshot, snapshot_node_name="top")
            await until(lambda: storage_of(agent).get("pool") == str(second), 180)
            await until(lambda: storage_of(agent, layer="backing-1").get("pool") == str(first), 180)
            await until(lambda: agent.space("vm1").get("pool") == str(second), 180)

            def backing_has_stopped_growing() -> bool:
                backing = pool_of(agent, layer="backing-1")
                counts = backing.get("images"), backing.get("vms")
                return counts == (1, 1) and backing["provisioned_bytes"] < 32 * MIB

            await until(backing_has_stopped_growing, 180)


async def test_a_mirrored_disk_belongs_to_the_pool_of_its_target_after_the_switch(folder: Path) -> None:
    before, after = folder / "before", folder / "after"
    before.mkdir()
    after.mkdir()
    async with file_system("tmpfs", before) as first, file_system("tmpfs", after) as second:
        options: dict[str, Any] = {"disk_mib": 64, "pause_seconds": 1, "storage": await image(first)}
        async with thin_guest(folder, **options) as guest, watcher(folder, "85%") as agent:
            await until(lambda: agent.space("vm1").get("pool") == str(first), 300)
            await guest.command(
                "drive-mirror",
                job_id="move",
                device="disk0-format",
                target=str(second / "vm1.qcow2"),
                sync="full",
                format="qcow2",
                node_name="moved",
            )
            await guest.wait_for_event("BLOCK_JOB_READY", 400)
            await until(lambda: storage_of(agent).get("pool") == str(first), 180)
            await guest.command("block-job-complete", device="move")
            await until(lambda: storage_of(agent).get("pool") == str(second), 400)
            await until(lambda: agent.space("vm1").get("pool") == str(second), 300)

            def has_moved() -> bool:
                names = {usage.name: usage.vm_names for usage in agent.app.storage.registry}
                return (names.get(str(first)), names.get(str(second))) == ([], ["vm1"])

            await until(has_moved, 180)


async def test_network_storage_is_unknown_with_what_to_do(folder: Path) -> None:
    async with network_device(folder / "nbd.sock", 64 * MIB) as storage:
        guest = RawGuest(folder, "vm1", ThinOptions(disk_mib=64, storage=storage))
        async with guest, watcher(folder, "85%") as agent:
            await until(lambda: "unknown" in storage_of(agent), 180)
            assert (
                storage_of(agent)["unknown"]
                == "nbd+unix storage is outside this host: monitor its free space at the server"
            )
            assert "pool" not in storage_of(agent)
            assert agent.alerts == []


def use_report(agent: AlertWatcher, path: Path) -> None:
    """Have the agent read the report of thin pools at another path. The system has one report."""
    for source in agent.app.storage._sources:
        if isinstance(source, StorageReportPoolSource):
            source._file.path = path


def report_of(device: str, file: Path, tmpfs: Path) -> StorageReport:
    """Return the loop device of a sparse file as a thin volume, and the tmpfs of the file as its pool."""
    number, status = Path(device).stat().st_rdev, os.statvfs(tmpfs)
    volume = ReportedVolume(
        name="vg/disk0",
        device=f"{os.major(number)}:{os.minor(number)}",
        size_bytes=file.stat().st_size,
        allocated_bytes=file.stat().st_blocks * 512,
    )
    size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    pool = ReportedPool(kind="lvm_thin", name="vg/pool", size_bytes=size, free_bytes=free, volumes=[volume])
    return StorageReport(version=1, written_at=time.time(), pools=[pool])


async def keep_reporting(path: Path, build_report: Callable[[], StorageReport]) -> None:
    """Write the report again and again, as qmp-agent-storage does."""
    while True:
        path.with_suffix(".new").write_text(build_report().model_dump_json())
        path.with_suffix(".new").replace(path)
        await asyncio.sleep(0.2)


async def test_a_raw_disk_on_a_thin_volume_is_limited_by_its_thin_pool(folder: Path) -> None:
    """The thin volume is the loop device of a sparse file, and its pool is the small tmpfs of the file."""
    async with file_system("tmpfs", folder) as tmpfs, LoopDevice(tmpfs / "volume", 1024 * MIB) as device:
        await fill(tmpfs, 22 * MIB)
        storage = {"driver": "host_device", "filename": device.path, "cache": {"direct": True}}
        guest, agent = RawGuest(folder, "vm1", sparse_disk(storage)), watcher(folder, "70%", "90%")
        use_report(agent, folder / "report.json")
        build_report = partial(report_of, device.path, tmpfs / "volume", tmpfs)
        reporting = asyncio.create_task(keep_reporting(folder / "report.json", build_report))
        try:
            async with guest, agent:
                await guest.stop_writes_at(19 * MIB)  # between the last level and the end
                await guest.command("cont")
                await until(lambda: "90%" in agent.levels(alert="pool_filling", pool="vg/pool"), 400)
                assert not agent.event_times("STOP")

                def is_equal() -> bool:
                    space, used = agent.space("vm1"), (tmpfs / "volume").stat().st_blocks * 512
                    figures = space.get("used_bytes", 0), space.get("free_bytes", 0)
                    return figures == pytest.approx((used, pool_of(agent).get("free_bytes", -1)), abs=MIB)

                await until(is_equal, 180)
                space = agent.space("vm1")
                assert (space["measure"], space["limited_by"], space["pool"]) == ("allocated", "pool", "vg/pool")
                await guest.stop_writes_at(None)
                await guest.wait_for_event("STOP", 400)
                await until(lambda: agent.event_times("STOP"), 180)
                assert [alert["alert"] for alert in agent.alerts][:2] == ["pool_filling", "pool_filling"]
        finally:
            reporting.cancel()
