"""Pools of images of real guests: raw files, snapshots in two pools, and network storage."""

import json
from pathlib import Path
from typing import Any

from agent.cli.demo.guest import until
from tests.integration.qemu.test_pool_file_systems import image, limit_writes, pool_of, storage_of, watcher
from tests.lab.file_systems import file_system
from tests.lab.thin_guests import MIB, ThinGuest, ThinOptions, network_device, thin_guest


class RawGuest(ThinGuest):
    """A guest whose disk is a raw file without a format above it."""

    async def _disk0_arguments(self) -> list[str]:
        storage = {**(self.options.storage or {}), "node-name": "disk0-storage"}
        node = {"driver": "raw", "node-name": "disk0-format", "file": "disk0-storage"}
        return [
            *("-blockdev", json.dumps(storage), "-blockdev", json.dumps(node)),
            *("-device", f"virtio-blk-pci,id=disk0,drive=disk0-format,{self.options.disk_options}"),
        ]


async def test_a_sparse_raw_file_is_limited_by_its_pool(folder: Path) -> None:
    async with file_system("tmpfs", folder) as images:
        storage = await image(images, form="raw")
        guest = RawGuest(
            folder, "vm1", ThinOptions(disk_mib=1024, write_kib=63, storage=storage, disk_options="werror=stop")
        )
        async with guest, watcher(folder, "70%", "90%") as agent:
            await limit_writes(guest)
            await until(lambda: "90%" in agent.levels(alert="pool_filling"), 240)
            assert agent.space("vm1")["limited_by"] == "pool"
            assert not agent.event_times("STOP")
            await guest.wait_for_event("STOP", 240)
            await until(lambda: agent.event_times("STOP"), 20)
            assert [alert["alert"] for alert in agent.alerts][:2] == ["pool_filling", "pool_filling"]


async def test_layers_in_two_pools_belong_to_each(folder: Path) -> None:
    base, overlay = folder / "base", folder / "overlay"
    base.mkdir()
    overlay.mkdir()
    async with file_system("tmpfs", base) as first, file_system("tmpfs", overlay) as second:
        options: dict[str, Any] = {"disk_mib": 1024, "write_kib": 63, "storage": await image(first)}
        async with thin_guest(folder, **options) as guest, watcher(folder, "85%") as agent:
            await limit_writes(guest)
            await until(lambda: storage_of(agent).get("pool") == str(first), 60)
            snapshot = {"node_name": "disk0-format", "snapshot_file": str(second / "vm1.qcow2"), "format": "qcow2"}
            await guest.command("blockdev-snapshot-sync", **snapshot, snapshot_node_name="top")
            await until(lambda: storage_of(agent).get("pool") == str(second), 60)
            assert storage_of(agent, layer="backing-1")["pool"] == str(first)
            await until(lambda: agent.space("vm1").get("pool") == str(second), 60)

            def backing_has_stopped_growing() -> bool:
                backing = pool_of(agent, layer="backing-1")
                return (backing["images"], backing["vms"]) == (1, 1) and backing["provisioned_bytes"] < 32 * MIB

            await until(backing_has_stopped_growing, 30)


async def test_network_storage_is_unknown_with_what_to_do(folder: Path) -> None:
    async with network_device(folder / "nbd.sock", 64 * MIB) as storage:
        guest = RawGuest(folder, "vm1", ThinOptions(disk_mib=64, write_kib=63, storage=storage))
        async with guest, watcher(folder, "85%") as agent:
            await until(lambda: "unknown" in storage_of(agent), 60)
            assert (
                storage_of(agent)["unknown"]
                == "nbd+unix storage is outside this host: monitor its free space at the server"
            )
            assert "pool" not in storage_of(agent)
            assert agent.alerts == []
