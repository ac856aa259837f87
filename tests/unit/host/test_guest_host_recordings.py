"""Reports of a real kernel and its tools on a host with virtual functions, cgroups of version 2 and quotas of XFS."""

import base64
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.collectors.process_and_cgroup import CGROUPS
from agent.host.interfaces import find_process_interfaces
from agent.host.process import Process
from agent.host.rtnetlink import parse_link_reply
from agent.host.types import KernelFileContents, KernelFilesToRead
from tests.lab.rtnetlink_reply import SentFunction, function, functions_in_ip_output

GOLDEN = Path(__file__).parents[2] / "golden" / "guest_host"
RECORDINGS = {path.stem: json.loads(path.read_text()) for path in sorted(GOLDEN.glob("linux-*.json"))}
Recording = dict[str, Any]

each_recording = pytest.mark.parametrize("recording", RECORDINGS.values(), ids=RECORDINGS)


def test_there_are_recordings() -> None:
    assert RECORDINGS


def series(recording: Recording, name: str, **labels: str) -> float:
    """Return the value of the only series of the agent's /metrics with this name and these labels."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    found = [
        line for line in recording["metrics"] if line.startswith(f"{name}{{") and all(each in line for each in wanted)
    ]
    (line,) = found
    return float(line.rpartition(" ")[2])


# --- Virtual functions ---


def netlink(recording: Recording, section: str) -> bytes:
    return base64.b64decode(recording[section]["netlink"])


@each_recording
@pytest.mark.parametrize("section", ["uncounted", "counted"])
def test_the_agent_reads_the_functions_of_a_card_as_iproute2_does(recording: Recording, section: str) -> None:
    read = [(each.number, each.mac, each.counters) for each in parse_link_reply(netlink(recording, section))]
    assert len(read) == 2
    assert read == functions_in_ip_output(recording[section]["ip"])


@each_recording
def test_a_driver_without_counters_has_zeros_and_one_with_counters_has_them(recording: Recording) -> None:
    """The kernel sends all counters in both cases."""
    uncounted, counted = (parse_link_reply(netlink(recording, section)) for section in ("uncounted", "counted"))
    assert not any(any(each.counters.values()) for each in uncounted)
    assert all(each.counters["rx_bytes"] > 0 and each.counters["tx_bytes"] > 0 for each in counted)
    assert [each.counters.keys() for each in uncounted] == [each.counters.keys() for each in counted]


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the content of each attribute."""
    while data:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]


def vf_infos(message: bytes) -> list[bytes]:
    """Return each IFLA_VF_INFO in a message."""
    (listed,) = (content for kind, content in attributes(message[32:]) if kind == 22)
    return [content for _, content in attributes(listed)]


def shape(vf_info: bytes) -> list[tuple[int, int]]:
    """Return the type and the size of each attribute of a function."""
    return [(kind, len(content)) for kind, content in attributes(vf_info)]


@each_recording
def test_the_tests_encoder_writes_what_the_kernel_writes(recording: Recording) -> None:
    for vf_info, read in zip(
        vf_infos(netlink(recording, "counted")), parse_link_reply(netlink(recording, "counted")), strict=True
    ):
        sent = SentFunction(
            read.number, bytes.fromhex(read.mac.replace(":", "")), {**read.counters, "broadcast": 0, "multicast": 0}
        )
        ((_, encoded),) = attributes(function(sent))
        assert shape(encoded) == shape(vf_info)
        counters, expected = (dict(attributes(dict(attributes(info))[8])) for info in (encoded, vf_info))
        assert counters == expected


@each_recording
def test_the_function_of_a_qemu_is_found_in_the_kernels_tree(recording: Recording, tmp_path: Path) -> None:
    """The tree has the links of a real /sys, and the descriptors of a real QEMU."""
    root = tmp_path
    for line in recording["sysfs"]:
        path, _, target = line.partition(" -> ")
        link = root / path.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
        if link.name == "physfn":
            (link.parent / target).mkdir()  # the next lines are inside the physical function
    for path in recording["interfaces"]:
        (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    process = root / "proc/70"
    for name in ("fd", "ns"):
        (process / name).mkdir(parents=True)
    (root / "proc/self/ns").mkdir(parents=True)
    for place in (process, root / "proc/self"):
        (place / "ns/net").symlink_to("net:[1]")
    for number, target in enumerate(recording["descriptors"]):
        (process / f"fd/{number}").symlink_to(target)
    (process / "cmdline").write_text("\0".join((*recording["arguments"], "")))
    opened = Process(70, root)
    try:
        (found,) = find_process_interfaces(opened, {})
    finally:
        opened.close()
    assert (found.name, dict(found.extra_values)) == (
        "eth0v0",
        {"kind": "vf", "host_address": "0000:01:10.0", "device": "hostdev0"},
    )


@each_recording
def test_the_agents_series_of_a_function_are_the_kernels_counters(recording: Recording) -> None:
    (_, mac, counters), _ = functions_in_ip_output(recording["counted"]["ip"])
    assert mac == "52:54:00:12:34:56"
    for name in ("bytes", "packets"):
        labels = {"vm": "passed", "interface": "eth0v0"}
        assert series(recording, f"qemu_net_receive_{name}_total", **labels) == counters[f"rx_{name}"]
        assert series(recording, f"qemu_net_transmit_{name}_total", **labels) == counters[f"tx_{name}"]


# --- A cgroup at its memory limit ---


def cgroup_values(recording: Recording, section: str) -> dict[str, Any]:
    files = recording["cgroup"][section]
    request = KernelFilesToRead("/sys/fs/cgroup/x", tuple(files), "/sys/fs/cgroup/x")
    (sample,) = CGROUPS.collect([KernelFileContents(request, [text.encode() for text in files.values()])])
    return dict(sample.values)


@each_recording
def test_the_files_of_a_cgroup_show_the_process_that_the_kernel_killed(recording: Recording) -> None:
    before, after = cgroup_values(recording, "before"), cgroup_values(recording, "after")
    assert (before["oom_total"], before["oom_kills_total"]) == (0, 0)
    assert "memory_limit_bytes" not in before
    assert after["oom_total"] >= 1
    assert after["oom_kills_total"] == 1
    assert after["memory_limit_bytes"] > after["memory_bytes"] > 0
    assert after["memory_limit_reached_total"] > 0
    assert after["pressure_memory_waiting_seconds_total"] > 0


def records_of(recording: Recording, vm: str) -> list[Recording]:
    return [record for record in recording["records"] if record["vmname"] == vm]


@each_recording
def test_the_agent_reported_the_helper_that_the_kernel_killed(recording: Recording) -> None:
    (fired,) = [record for record in records_of(recording, "helped") if record["type"] == "qemu.alert.cgroup_oom"]
    limit = int(recording["cgroup"]["after"]["memory.max"])
    assert fired["data"]["state"] == "firing"
    assert (fired["data"]["oom_kills_total"], fired["data"]["memory_limit_bytes"]) == (1, limit)
    assert fired["data"]["path"] == "/sys/fs/cgroup/machine.slice/helped"


@each_recording
def test_the_agent_reported_the_qemu_that_the_kernel_killed_before_its_end(recording: Recording) -> None:
    assert re.search(r"^oom_kill 1$", recording["killed"], re.MULTILINE)
    types = [record["type"] for record in records_of(recording, "killed")]
    assert types == ["qemu.vm.attached", "qemu.alert.cgroup_oom", "qemu.vm.gone"]
    assert "shutdown_reason" not in records_of(recording, "killed")[-1]["data"]


# --- A quota ---


@each_recording
def test_the_agents_pool_has_the_size_of_the_quota(recording: Recording) -> None:
    (line,) = [line for line in recording["quota"].splitlines() if line.startswith("#42 ")]
    _, used_kib, _, limit_kib, *_ = line.split()
    labels = {"pool": "/tmp/xfs/images"}
    assert int(limit_kib) == 60 << 10
    assert series(recording, "qemu_pool_size_bytes", **labels) == int(limit_kib) << 10
    assert series(recording, "qemu_pool_used_bytes", **labels) == int(used_kib) << 10
    assert series(recording, "qemu_pool_free_bytes", **labels) == int(limit_kib) - int(used_kib) << 10


@each_recording
def test_the_disk_can_grow_as_far_as_the_quota_allows(recording: Recording) -> None:
    """The image is 200 MiB large, the quota 60 MiB, and the file system 512 MiB."""
    limits = [line for line in recording["metrics"] if "qemu_block_space_limited_by" in line and 'vm="passed"' in line]
    assert [re.findall(r'limited_by="(\w+)"', line) for line in limits] == [["pool"]]
