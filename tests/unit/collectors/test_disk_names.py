"""Names of disks: each name that QEMU uses in events identifies the guest's disk, or no disk."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.collectors import ALL_COLLECTORS
from agent.collectors.disk_names import DiskNames
from agent.model.metrics.block import BLOCK
from agent.model.metrics.block_layers import BLOCK_NAMES
from tests.lab import golden_files
from tests.lab.transcript import Transcript

BY_NAME = {collector.name: collector for collector in ALL_COLLECTORS}
VERSIONS = ("7.2", "11.1")
REPLIES = {version: golden_files.load(f"block_graph/qemu-{version}.json") for version in VERSIONS}
"""Replies of a real QEMU: a mirror of `vb`, a backup of `scsi0`, a commit of `vo`, a copy-on-read and a throttle filter."""

FILTER_OF = {
    "7.2": {"#block650": "vb", "#block769": "scsi0", "#block890": "vo"},
    "11.1": {"#block658": "vb", "#block720": "scsi0", "#block835": "vo"},
}
NODE_OF = {
    "7.2": {"#block308": "scsi0", "#block227": "scsi0", "#block536": "device[0]", "#block157": "vo", "#block029": "vo"},
    "11.1": {
        "#block348": "scsi0",
        "#block221": "scsi0",
        "#block565": "device[0]",
        "#block123": "vo",
        "#block082": "vo",
    },
}


def names_of(version: str) -> DiskNames:
    replies = REPLIES[version]
    return DiskNames.from_replies(replies["stats"], replies["nodes"])


@pytest.mark.parametrize("version", VERSIONS)
def test_filters_of_jobs_lead_to_the_disk_below(version: str) -> None:
    disk_names = names_of(version)
    assert {name: disk_names.find_disk(name) for name in FILTER_OF[version]} == FILTER_OF[version]


@pytest.mark.parametrize("version", VERSIONS)
def test_nodes_backends_and_qom_paths_lead_to_their_disk(version: str) -> None:
    disk_names = names_of(version)
    names = {
        "drive-scsi0": "scsi0",
        "scsi0": "scsi0",
        "/machine/peripheral/vb/virtio-backend": "vb",
        "/machine/peripheral/vb": "vb",
        "b-s": "vb",
        "b-f": "vb",
        "libvirt-CoR-vda": "vc",
        "c-f": "vc",
        "c-s": "vc",
        "d-t": "vd",
        "d-s": "vd",
        "/machine/peripheral/usb0/usb0.0/legacy[0]": "usb0",
        "usb0": "usb0",
        "u-s": "usb0",
        "virtio0": "device[0]",
        "/machine/peripheral-anon/device[0]/virtio-backend": "device[0]",
        "f-s": "botdisk",
        **NODE_OF[version],
    }
    assert {name: disk_names.find_disk(name) for name in names} == names


@pytest.mark.parametrize("version", VERSIONS)
def test_nodes_of_no_disk_and_unknown_names_lead_nowhere(version: str) -> None:
    disk_names = names_of(version)
    for name in ("tgt", "tgt2", "#block999999", "", "/machine/peripheral/net0", None, 5, ["vb"]):
        assert disk_names.find_disk(name) is None
    assert disk_names.find_disk("", None, "tgt", "b-s") == "vb"
    assert disk_names.find_disk("/machine/peripheral/vd/virtio-backend", "drive-scsi0") == "vd"


@pytest.mark.parametrize("version", VERSIONS)
def test_each_disk_with_samples_has_a_sample_of_its_names(version: str) -> None:
    replies = REPLIES[version]
    names = BY_NAME["nodes"].collect([replies["nodes"], replies["stats"]])
    disks = BY_NAME["block"].collect([replies["stats"]])
    assert {s.subject for s in names if s.family is BLOCK_NAMES} == {s.subject for s in disks if s.family is BLOCK}


@pytest.mark.parametrize("version", ["2.6", "4.2", "5.2", "7.2", "10.0", "11.1"])
def test_every_name_in_a_transcript_leads_to_the_disk_of_its_samples(version: str) -> None:
    transcript = Transcript.load(f"qemu-{version}")
    stats, nodes = (
        transcript.answer(command, {})["return"] for command in ("query-blockstats", "query-named-block-nodes")
    )
    disk_names = DiskNames.from_replies(stats, nodes)
    for sample in BY_NAME["block"].collect([stats]):
        for key in ("node", "storage_node", "backend", "qdev"):
            if name := sample.values.get(key):
                assert disk_names.find_disk(name) == sample.subject, name
    assert all(disk_names.find_disk(node["node-name"]) for node in nodes)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_node_under_a_filter_is_no_backing_layer(version: str) -> None:
    replies = REPLIES[version]
    layers = {
        s.labels: s.values["node"]
        for s in BY_NAME["nodes"].collect([replies["nodes"], replies["stats"]])
        if len(s.labels) == 2
    }
    backing = [s.labels for s in BY_NAME["block"].collect([replies["stats"]]) if len(s.labels) == 2]
    assert backing == [("vo", "1")]
    assert [labels for labels in layers if labels[1].startswith("backing")] == [("vo", "backing-1")]
    assert (layers["vc", "format"], layers["vc", "storage"]) == ("c-f", "c-s")


def test_a_name_that_two_disks_share_identifies_neither() -> None:
    shared = {"node-name": "base"}
    stats = [{"qdev": name, "node-name": f"{name}-top", "backing": shared} for name in ("a", "b")]
    nodes = [
        {"node-name": "#block1", "drv": "commit_top", "file": "f"},
        {"node-name": "base", "drv": "raw", "file": "f"},
    ]
    disk_names = DiskNames.from_replies(stats, nodes)
    assert disk_names.find_disk("base") is disk_names.find_disk("#block1") is None
    assert disk_names.find_disk("base", "b-top") == "b"
    assert disk_names.unshared_names_by_disk() == {"a": ["a-top"], "b": ["b-top"]}


def test_a_filter_on_a_filter_leads_to_the_disk_below_both() -> None:
    stats = [{"qdev": "a", "node-name": "top"}]
    nodes = [
        {
            "node-name": "outer",
            "drv": "mirror_top",
            "file": "x",
            "children": [{"child": "backing", "node-name": "inner"}],
        },
        {"node-name": "inner", "drv": "throttle", "file": "x", "children": [{"child": "file", "node-name": "top"}]},
        {"node-name": "top", "drv": "qcow2", "file": "x", "children": [{"child": "data-file", "node-name": "data"}]},
        {"node-name": "data", "drv": "file", "file": "y", "children": []},
        {
            "node-name": "other",
            "drv": "copy-before-write",
            "file": "x",
            "children": [{"child": "target", "node-name": "top"}],
        },
    ]
    disk_names = DiskNames.from_replies(stats, nodes)
    assert {name: disk_names.find_disk(name) for name in ("outer", "inner", "data")} == dict.fromkeys(
        ("outer", "inner", "data"), "a"
    )
    assert disk_names.find_disk("other") is None


@pytest.mark.parametrize("driver", [["throttle"], {"throttle": 1}, 5, None])
def test_a_node_whose_driver_is_no_string_is_no_filter(driver: Any) -> None:
    node = {"node-name": "n", "drv": driver, "file": "f"}
    assert DiskNames.from_replies([], [node]).find_disk("n") is None


@pytest.mark.parametrize("kind", [["target"], {"target": 1}, 5, None])
def test_a_child_whose_kind_is_no_string_belongs_to_its_node(kind: Any) -> None:
    node = {"node-name": "top", "drv": "qcow2", "children": [{"child": kind, "node-name": "below"}]}
    assert DiskNames.from_replies([{"qdev": "a", "node-name": "top"}], [node]).find_disk("below") == "a"


def test_names_that_exceed_a_fields_size_are_truncated_and_not_dropped() -> None:
    layer: dict[str, Any] = {"node-name": "n"}
    for depth in range(200):
        layer = {"node-name": f"node-{depth}-{'x' * 60}", "backing": layer}
    samples = list(BY_NAME["nodes"].collect([[], [layer | {"qdev": "a"}]]))
    (names,) = [sample.values["names"] for sample in samples if sample.family is BLOCK_NAMES]
    assert 100 < len(names) < 200


def test_a_new_job_invalidates_the_layers() -> None:
    jobs = BY_NAME["jobs"]
    none, mirror = jobs.collect([[]]), jobs.collect([[{"device": "m", "type": "mirror"}]])
    assert jobs.topology(list(none)) != jobs.topology(list(mirror))
    assert jobs.invalidates == ("nodes",)


json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(0, 9)
    | st.sampled_from(["a", "b", "throttle", "file", "/machine/peripheral/a"]),
    lambda v: (
        st.lists(v, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["node-name", "qdev", "device", "parent", "backing", "drv", "file", "children", "child", "inserted"]
            ),
            v,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json, json)
def test_each_name_in_any_reply_belongs_to_one_disk(stats: Any, nodes: Any) -> None:
    disk_names = DiskNames.from_replies(stats, nodes)
    for device, names in disk_names.unshared_names_by_disk().items():
        assert all(disk_names.find_disk(name) == device for name in names)
