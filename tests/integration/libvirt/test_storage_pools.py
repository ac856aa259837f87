"""Storage pools of a real libvirtd: directories, a file system and a partitioned disk.

A pool of the type logical needs the device mapper, which the tests' machine may lack, so libvirt only writes its definition.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.host.pools.libvirt import LibvirtStoragePool
from agent.host.qemu_processes import read_command_line
from agent.monitors.libvirt.discovery import LibvirtDiscoverer
from agent.monitors.libvirt.storage_pools import parse_storage_pool
from tests.integration.libvirt.conftest import AgentOn
from tests.lab.libvirt import Libvirtd
from tests.lab.libvirt_discovery import discovering
from tests.lab.machine import require
from tests.lab.thin_guests import LoopDevice, run
from tests.lab.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20


@pytest.fixture
async def loop(folder: Path) -> AsyncIterator[LoopDevice]:
    if not LoopDevice.is_available():
        pytest.skip("loop devices need root")
    async with LoopDevice(folder / "loop.raw", 64 * MIB) as device:
        yield device


async def pools_of(libvirtd: Libvirtd) -> dict[str, LibvirtStoragePool]:
    """Return the pools that the agent lists over a read-only connection."""
    libvirt = LibvirtDiscoverer(libvirtd.read_only_uri, read_only=True)
    async with discovering(libvirt) as reports:
        await until(lambda: None in reports.statuses, 180)
        return {pool.name: pool for pool in await libvirt.storage_pools()}


async def info(libvirtd: Libvirtd, name: str) -> tuple[int, int]:
    """Return capacity and available bytes as virsh prints them."""
    lines = (await libvirtd.virsh("pool-info", "--bytes", name)).splitlines()
    values = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(values["Capacity"]), int(values["Available"])


async def start(libvirtd: Libvirtd, name: str, *definition: Any) -> None:
    await libvirtd.virsh("pool-define-as", name, *definition)
    await libvirtd.virsh("pool-build", name)
    await libvirtd.virsh("pool-start", name)


async def test_a_pool_in_a_directory_has_the_figures_of_its_file_system(libvirtd: Libvirtd, folder: Path) -> None:
    target = folder / "images"
    await start(libvirtd, "images", "--type", "dir", "--target", target)
    pool = (await pools_of(libvirtd))["images"]
    assert (pool.type, pool.target, pool.source) == ("dir", str(target), "")
    assert (pool.capacity, pool.available) == await info(libvirtd, "images")
    assert pool.capacity == os.statvfs(target).f_frsize * os.statvfs(target).f_blocks


async def test_figures_are_those_of_the_last_refresh(libvirtd: Libvirtd, folder: Path) -> None:
    target = folder / "stale"
    target.mkdir()
    # A file system of its own, because others use this machine's. Only libvirtd sees it.
    await libvirtd.run(f"mount -t tmpfs -o size=64M tmpfs {target}")
    await start(libvirtd, "stale", "--type", "dir", "--target", target)
    before = (await pools_of(libvirtd))["stale"]
    await libvirtd.run(f"head -c {32 * MIB} /dev/zero >{target}/image")
    assert (await pools_of(libvirtd))["stale"] == before
    await libvirtd.virsh("pool-refresh", "stale")
    assert (await pools_of(libvirtd))["stale"].available == before.available - 32 * MIB


async def test_a_file_system_and_a_partitioned_disk_are_listed(
    libvirtd: Libvirtd, folder: Path, loop: LoopDevice
) -> None:
    require("parted", "parted")
    target = folder / "mounted"
    target.mkdir()
    await run("mkfs.ext4", "-q", loop.path)
    await libvirtd.virsh(
        *("pool-define-as", "mounted", "--type", "fs", "--source-dev", loop.path),
        *("--source-format", "ext4", "--target", target),
    )
    await libvirtd.virsh("pool-start", "mounted")
    pool = (await pools_of(libvirtd))["mounted"]
    assert (pool.type, pool.target) == ("fs", str(target))
    assert (pool.capacity, pool.available) == await info(libvirtd, "mounted")
    assert 40 * MIB < pool.capacity < 64 * MIB
    await libvirtd.virsh("pool-destroy", "mounted")
    assert "mounted" not in await pools_of(libvirtd)  # it is inactive
    await libvirtd.virsh("pool-undefine", "mounted")

    definition = ("--type", "disk", "--source-dev", loop.path, "--source-format", "gpt", "--target", "/dev")
    await libvirtd.virsh("pool-define-as", "partitions", *definition)
    await libvirtd.virsh("pool-build", "partitions", "--overwrite")
    await libvirtd.virsh("pool-start", "partitions")
    pool = (await pools_of(libvirtd))["partitions"]
    assert (pool.type, pool.target) == ("disk", "/dev")
    assert (pool.capacity, pool.available) == await info(libvirtd, "partitions")
    assert 60 * MIB < pool.available <= 64 * MIB
    await libvirtd.virsh("pool-destroy", "partitions")


async def test_the_definition_of_a_volume_group_names_it(libvirtd: Libvirtd) -> None:
    definition = ("--type", "logical", "--source-name", "vg0", "--target", "/dev/vg0")
    await libvirtd.virsh("pool-define-as", "volumes", *definition)
    pool = parse_storage_pool(await libvirtd.virsh("pool-dumpxml", "volumes"), [0, 0, 0, 0])
    assert pool == LibvirtStoragePool("volumes", "logical", "/dev/vg0", "vg0", 0, 0)
    assert "volumes" not in await pools_of(libvirtd)


@contextlib.asynccontextmanager
async def another_qemu(folder: Path, uuid: str) -> AsyncIterator[None]:
    """Run a program that looks like a QEMU whose VM has this UUID, so that the QEMU of a domain is not certain."""
    (folder / "qemu-other").symlink_to(sys.executable)
    script = f"exec -a qemu-kvm {folder}/qemu-other -c 'import time; time.sleep(3600)' -uuid {uuid}"
    process = await asyncio.create_subprocess_exec("setpriv", "--pdeathsig", "KILL", "bash", "-c", script)
    try:
        await until(lambda: read_command_line(process.pid)[:1] == ["qemu-kvm"], 180)
        yield
    finally:
        process.kill()
        await process.wait()


async def test_the_pool_of_a_domain_without_a_known_process_is_libvirts(
    libvirtd: Libvirtd, agent_on: AgentOn, folder: Path
) -> None:
    domain = await libvirtd.domain("with-pool")
    read_only = {"libvirt": libvirtd.read_only_uri, "read_only": True}
    config = {"intervals": {"poll": "500ms", "storage": "1s"}}
    async with another_qemu(folder, domain.uuid), agent_on(read_only, **config) as agent:
        await agent.wait_for_record("vm.attached", vm=domain.uuid)
        storage = await agent.wait_for_record("sample.block_storage", vm=domain.uuid, device="virtio-disk1")
        assert "process of the VM is unknown" in storage["data"]["unknown"]
        await start(libvirtd, "domains", "--type", "dir", "--target", libvirtd.folder)
        await agent.wait_for_record("sample.block_storage", vm=domain.uuid, device="virtio-disk1", pool="domains")
        record = await agent.wait_for_record("sample.pool", pool="domains")
        assert (record["data"]["kind"], record["data"]["vm_names"]) == ("libvirt", ["with-pool"])
        assert (record["data"]["size_bytes"], record["data"]["free_bytes"]) == await info(libvirtd, "domains")
        assert "age_seconds" in record["data"]
    await libvirtd.virsh("pool-destroy", "domains")
