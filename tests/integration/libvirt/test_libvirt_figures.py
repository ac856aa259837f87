"""The figures of libvirt's domains equal those of virsh and of QEMU."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
import pytest_asyncio

from tests.integration.libvirt.conftest import AgentOn
from tests.lab.agent_process import AgentProcess, Scrape
from tests.lab.libvirt import Domain, Libvirtd
from tests.lab.thin_guests import run
from tests.lab.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

# virsh's name, the series, and virsh's units in one of the series'; written by hand, not taken from the agent's table.
FIGURES: Final = {
    "rd.reqs": ("reads_total", 1),
    "rd.bytes": ("read_bytes_total", 1),
    "rd.times": ("read_seconds_total", 1e9),
    "wr.reqs": ("writes_total", 1),
    "wr.bytes": ("write_bytes_total", 1),
    "wr.times": ("write_seconds_total", 1e9),
    "fl.reqs": ("flushes_total", 1),
    "fl.times": ("flush_seconds_total", 1e9),
    "allocation": ("storage_write_highest_offset_bytes", 1),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def domains(libvirtd: Libvirtd) -> AsyncIterator[list[Domain]]:
    started = [await libvirtd.domain(name) for name in ("one", "two", "three")]

    async def has_written() -> bool:
        return all([int((await libvirtd.stats(domain))["block.1.wr.reqs"]) > 0 for domain in started])

    await until(has_written, 180)
    yield started


@asynccontextmanager
async def paused(libvirtd: Libvirtd, agent: AgentProcess, domain: Domain) -> AsyncIterator[Scrape]:
    """Pause a domain while the `with` block runs. Yield a scrape whose figures were polled after the pause began."""
    await libvirtd.virsh("suspend", domain.name)
    try:
        mark = agent.mark()
        await agent.wait_for_record("sample.block", vm=domain.uuid, since=mark, device="virtio-disk1")
        await agent.wait_for_record("sample.balloon", vm=domain.uuid)
        await agent.wait_for_record("sample.runstate", vm=domain.uuid, status="paused")
        await agent.wait_for_record("sample.block_layer", vm=domain.uuid, device="virtio-disk1", layer="format")
        yield await agent.metrics()
    finally:
        await libvirtd.virsh("resume", domain.name)


async def test_all_figures_of_all_domains_equal_those_of_virsh_domstats(
    libvirtd: Libvirtd, domains: list[Domain], agent_on: AgentOn
) -> None:
    async with agent_on() as agent:
        for domain in domains:
            async with paused(libvirtd, agent, domain) as series:
                stats = await libvirtd.stats(domain)
            for number, device in enumerate(("virtio-disk0", "virtio-disk1")):
                for key, (name, unit) in FIGURES.items():
                    value = int(stats[f"block.{number}.{key}"])
                    assert series.value(f"qemu_block_{name}", vm_uuid=domain.uuid, device=device) == value / unit, key
            assert int(stats["block.1.wr.reqs"]) > 0
            assert (
                series.value("qemu_balloon_actual_bytes", vm_uuid=domain.uuid) == int(stats["balloon.current"]) * 1024
            )
            assert stats["state.state"] == "3"
            assert series.value("qemu_runstate_status", vm_uuid=domain.uuid, status="paused") == 1
            of_disk = {"vm_uuid": domain.uuid, "device": "virtio-disk1"}
            size = series.value("qemu_block_layer_size_bytes", layer="format", **of_disk)
            assert size == int(stats["block.1.capacity"])


async def test_a_disk_has_the_same_names_and_figures_over_libvirt_as_over_qmp(
    libvirtd: Libvirtd, domains: list[Domain], agent_on: AgentOn
) -> None:
    domain = domains[0]
    async with agent_on() as agent, paused(libvirtd, agent, domain) as series:
        reply = await libvirtd.virsh("qemu-monitor-command", domain.name, '{"execute":"query-blockstats"}')
        disks = {disk["qdev"].split("/")[3]: disk for disk in json.loads(reply)["return"]}
        records = {r["subject"]: r["data"] for r in agent.find_records("sample.block", vm=domain.uuid)}
    assert disks.keys() == records.keys() == {"virtio-disk0", "virtio-disk1"}
    for device, disk in disks.items():
        assert (records[device]["node"], records[device]["storage_node"]) == (
            disk["node-name"],
            disk["parent"]["node-name"],
        )
        assert records[device]["write_bytes_total"] == disk["stats"]["wr_bytes"]
        offset = series.value("qemu_block_storage_write_highest_offset_bytes", vm_uuid=domain.uuid, device=device)
        assert offset == disk["parent"]["stats"]["wr_highest_offset"]


async def test_the_layers_of_a_disk_equal_those_of_qemu(
    libvirtd: Libvirtd, domains: list[Domain], agent_on: AgentOn
) -> None:
    domain = domains[1]
    await libvirtd.virsh("suspend", domain.name)
    await libvirtd.virsh(
        "snapshot-create-as", domain.name, "--disk-only", "--no-metadata", "--diskspec", "vda,snapshot=no"
    )
    await run("sync", "--file-system", str(libvirtd.folder))  # a later write-back would change the allocated bytes
    async with agent_on() as agent:
        await agent.wait_for_record("sample.block_layer", vm=domain.uuid, device="virtio-disk1", layer="backing-1")
        layers = {
            (r["data"]["device"], r["data"]["layer"]): r["data"]
            for r in agent.find_records("sample.block_layer", vm=domain.uuid)
        }
        backing = await agent.wait_for_record("sample.block_backing", vm=domain.uuid, device="virtio-disk1")
    reply = await libvirtd.virsh(
        "qemu-monitor-command", domain.name, '{"execute":"query-named-block-nodes","arguments":{"flat":true}}'
    )
    nodes = {node["node-name"]: node for node in json.loads(reply)["return"]}
    await libvirtd.virsh("resume", domain.name)
    assert {layer for device, layer in layers if device == "virtio-disk1"} == {"format", "storage", "backing-1"}
    for layer in layers.values():
        node = nodes[layer["node"]]
        assert layer["driver"] == node["drv"]
        assert layer.get("read_only", node["ro"]) == node["ro"]
        assert layer.get("size_bytes", node["image"]["virtual-size"]) == node["image"]["virtual-size"]
        if "allocated_bytes" in layer:
            assert layer["allocated_bytes"] == node["image"]["actual-size"]
        if layer["layer"] == "storage":
            assert layer["path"] == node["file"]
            assert layer["write_threshold_bytes"] == node["write_threshold"] == 0
    assert layers["virtio-disk1", "storage"].keys() >= {"size_bytes", "allocated_bytes"}
    assert layers["virtio-disk1", "format"].keys() >= {"size_bytes", "read_only"}
    assert backing["data"]["node"] == layers["virtio-disk1", "backing-1"]["node"]
