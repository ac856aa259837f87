"""Results of QMP commands from libvirt's statistics and XML: QEMU's names and units, and only values that libvirt reports."""

from collections.abc import Mapping
from typing import Any

import pytest

from agent.monitors.libvirt import qmp_results_from_stats
from agent.monitors.libvirt.devices import DomainDevices, parse_devices
from agent.monitors.libvirt.qmp_results_from_stats import FetchedDomainData
from agent.qmp.commands import Command
from agent.qmp.errors import CommandError

BACKING = (
    "<backingStore type='file' index='3'><format type='qcow2'/><source file='/b.qcow2'/><backingStore/></backingStore>"
)

STATS: Mapping[str, Any] = {
    "state.state": 1,
    "balloon.current": 65536,
    "balloon.maximum": 65536,
    "balloon.last-update": 1700000000,
    "balloon.unused": 1024,
    "block.count": 2,
    "block.0.name": "vda",
    "block.0.backingIndex": 1,
    "block.0.rd.reqs": 7,
    "block.0.wr.bytes": 4096,
    "block.0.allocation": 8192,
    "block.0.capacity": 1 << 26,
    "block.0.physical": 1 << 20,
    "block.0.threshold": 12345,
    "block.1.name": "vda",
    "block.1.backingIndex": 3,
    "block.1.capacity": 1 << 26,
    "block.1.physical": 1 << 19,
}


def disk_xml(kind: str = "file", source: str = "file='/a.qcow2' index='1'", chain: str = BACKING) -> str:
    return (
        f"<disk type='{kind}'><driver name='qemu' type='qcow2'/><source {source}/>{chain}"
        "<target dev='vda'/><alias name='virtio-disk0'/></disk>"
    )


def devices_of(*elements: str) -> DomainDevices:
    balloon = "<memballoon model='virtio'><stats period='10'/><alias name='balloon0'/></memballoon>"
    return parse_devices(f"<domain><devices>{''.join(elements)}{balloon}</devices></domain>")


def translate(command: str, stats: Mapping[str, Any] = STATS, devices: DomainDevices | None = None) -> Any:
    devices = devices_of(disk_xml()) if devices is None else devices
    return qmp_results_from_stats.build_qmp_result(
        Command(command), FetchedDomainData("uuid", "vm", stats, devices, {})
    )


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in STATS.items() if not key.endswith(keys)}


def test_values_that_libvirt_reports_have_qemus_names() -> None:
    (disk,) = translate("query-blockstats")
    assert (disk["qdev"], disk["node-name"], disk["parent"]["node-name"]) == (
        "virtio-disk0",
        "libvirt-1-format",
        "libvirt-1-storage",
    )
    assert disk["stats"] == {"rd_operations": 7, "wr_bytes": 4096}
    assert disk["parent"]["stats"] == {"wr_highest_offset": 8192}
    assert disk["backing"]["node-name"] == "libvirt-3-format"
    nodes = {node["node-name"]: node for node in translate("query-named-block-nodes")}
    assert nodes["libvirt-1-format"]["image"] == {"virtual-size": 1 << 26}
    assert nodes["libvirt-1-storage"]["image"] == {"actual-size": 1 << 20}
    assert [nodes[f"libvirt-{index}-format"]["backing_file_depth"] for index in (1, 3)] == [1, 0]
    assert translate("query-status") == {"status": "running", "running": True}


def test_a_threshold_is_absent_if_libvirt_has_not_queried_the_image() -> None:
    nodes = {node["node-name"]: node for node in translate("query-named-block-nodes")}
    assert nodes["libvirt-1-storage"]["write_threshold"] == 12345
    assert nodes["libvirt-3-storage"]["write_threshold"] == 0, (
        "libvirt leaves out an empty slot of an image that it queried"
    )
    for stats in (without(".capacity", ".physical", ".threshold"), {}):
        assert all("write_threshold" not in node for node in translate("query-named-block-nodes", stats))


def test_an_image_without_an_index_has_no_node_names() -> None:
    devices = devices_of(disk_xml(source="file='/a.qcow2'", chain=""))
    stats = {key: value for key, value in STATS.items() if "backingIndex" not in key and not key.startswith("block.1")}
    (disk,) = translate("query-blockstats", stats, devices)
    assert "node-name" not in disk
    assert "node-name" not in disk["parent"]
    assert disk["stats"]["rd_operations"] == 7
    assert translate("query-named-block-nodes", stats, devices) == []
    assert devices.libvirt_disk_name_of_node("libvirt--1-storage") is None


@pytest.mark.parametrize("chain", ["", BACKING.replace("<backingStore/>", "")])
def test_the_depth_of_a_backing_chain_is_absent_if_the_xml_lacks_its_end(chain: str) -> None:
    devices = devices_of(disk_xml(chain=chain))
    nodes = translate("query-named-block-nodes", STATS, devices)
    assert nodes
    assert all("backing_file_depth" not in node for node in nodes if node["node-name"].endswith("-format"))


def test_a_backing_image_has_no_read_only_flag() -> None:
    nodes = {node["node-name"]: node for node in translate("query-named-block-nodes")}
    assert nodes["libvirt-1-format"]["ro"] is False
    assert "ro" not in nodes["libvirt-3-format"], "a commit job opens it for writing"


@pytest.mark.parametrize(
    ("kind", "source", "size"),
    [
        ("block", "dev='/dev/vg/a' index='1'", "virtual-size"),
        ("network", "protocol='rbd' name='pool/a' index='1'", "actual-size"),
        ("file", "file='/a.qcow2' index='1'", "actual-size"),
    ],
)
def test_the_physical_size_is_the_size_of_block_devices_alone(kind: str, source: str, size: str) -> None:
    devices = devices_of(disk_xml(kind, source, "<backingStore/>"))
    nodes = {node["node-name"]: node for node in translate("query-named-block-nodes", STATS, devices)}
    assert nodes["libvirt-1-storage"]["image"] == {size: 1 << 20}


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("query-status", "state.state"),
        ("query-balloon", "balloon.current"),
        ("query-memory-size-summary", "balloon.maximum"),
    ],
)
def test_a_missing_value_fails_the_command_without_disabling_its_collector(command: str, missing: str) -> None:
    assert isinstance(translate(command), dict)
    result = translate(command, without(missing))
    assert isinstance(result, CommandError)
    assert result.error_class == "GenericError"
    assert missing.partition(".")[0] in result.desc


def test_guest_statistics_lack_the_update_time_if_libvirt_does_not_report_it() -> None:
    snapshot = FetchedDomainData("uuid", "vm", without("balloon.last-update"), devices_of(), {})
    command = Command("qom-get", {"path": "/machine/peripheral/balloon0", "property": "guest-stats"})
    assert qmp_results_from_stats.build_qmp_result(command, snapshot) == {"stats": {"stat-free-memory": 1 << 20}}


def test_devices_without_a_name_are_left_out() -> None:
    nameless = disk_xml().replace("<alias name='virtio-disk0'/>", "<alias/>")
    assert devices_of(nameless).disks == {}
    balloon = "<memballoon model='virtio'><alias/></memballoon>"
    assert parse_devices(f"<domain><devices>{balloon}</devices></domain>").balloon is None
