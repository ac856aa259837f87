"""The Prometheus text format: equal to the golden file, valid for promtool, and parsed back without loss."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agent.exposition.prometheus import render_metrics
from agent.exposition.snapshot import Snapshot
from agent.session.shared_types import MonitorState
from tests.lab import golden_files
from tests.lab.prometheus import promtool_check
from tests.lab.snapshots import BY_NAME, event, poll, put, status, vm
from tests.unit.collectors.test_collectors import CASES, decode_replies

HOSTILE = 'a"b\\c\nd\\n{}=,#\u00e9'


def parse_series(snapshot: Snapshot) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Parse the text with prometheus_client and return the value of each series; fail on duplicates."""
    counts: Counter[Any] = Counter()
    values = {}
    for family in text_string_to_metric_families(render_metrics(snapshot)):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            counts[key] += 1
            values[key] = sample.value
    assert [key for key, count in counts.items() if count > 1] == []
    return values


def series_named(snapshot: Snapshot, name: str) -> list[tuple[dict[str, str], float]]:
    """Return the labels and the value of each series with this name."""
    return [(dict(labels), value) for (known, labels), value in parse_series(snapshot).items() if known == name]


def two_vms() -> Snapshot:
    """Return a VM with samples of many families, and a stalled one with hostile names."""
    snapshot = Snapshot()
    for name, index in (("block", 0), ("migration", 1), ("balloon", 1), ("guest_memory", 0), ("runstate", 0)):
        snapshot.update_monitor_status(status(vm()))
        poll(snapshot, vm(), name, *decode_replies(name, CASES[name][index]["replies"]))
    for name in ("STOP", "RESUME", "STOP", "NEVER_HEARD_OF"):
        snapshot.count_event(event(vm(), name))
    evil = vm(1, HOSTILE, f"/run/{HOSTILE}.qmp")
    snapshot.update_monitor_status(status(evil, package=HOSTILE))
    put(snapshot, evil, BY_NAME["block"], ((HOSTILE,), {"reads_total": 2**64 - 1, "read_seconds_total": 0.1 + 0.2}))
    put(snapshot, evil, BY_NAME["runstate"], ((), {"status": HOSTILE, "running": False}))
    snapshot.update_monitor_status(status(evil, MonitorState.STALLED))
    return snapshot


def test_the_text_equals_the_golden_file_and_passes_promtool() -> None:
    text = render_metrics(two_vms())
    assert golden_files.same_text("metrics.txt", text)
    assert promtool_check(text) == []


def test_without_vms_the_text_is_empty() -> None:
    assert render_metrics(Snapshot()) == ""


def test_values_are_parsed_back_unchanged() -> None:
    snapshot = two_vms()
    evil = {"vm": HOSTILE, "vm_uuid": vm(1).uuid}
    assert ({**evil, "device": HOSTILE}, 2**64 - 1) in series_named(snapshot, "qemu_block_reads_total")
    assert ({**evil, "device": HOSTILE}, 0.1 + 0.2) in series_named(snapshot, "qemu_block_read_seconds_total")
    assert series_named(snapshot, "qemu_runstate_running") == [({"vm": "vm1", "vm_uuid": vm().uuid}, 1), (evil, 0)]
    assert ({**evil, "status": HOSTILE}, 1) in series_named(snapshot, "qemu_runstate_status")
    assert [value for _, value in series_named(snapshot, "qemu_vm_up")] == [1, 0]
    assert [value for _, value in series_named(snapshot, "qemu_vm_last_response_timestamp_seconds")] == [7, 7]
    assert {labels["event"]: value for labels, value in series_named(snapshot, "qemu_vm_events_total")} == {
        "STOP": 2,
        "RESUME": 1,
        "unknown": 1,
    }
    info = {labels["vm"]: labels for labels, _ in series_named(snapshot, "qemu_vm_info")}
    assert (info["vm1"]["qemu_version"], info["vm1"]["qemu_package"]) == ("7.2.22", "Debian")
    assert info[HOSTILE]["monitor"] == f"/run/{HOSTILE}.qmp"


def test_every_sample_of_the_golden_files_has_a_series() -> None:
    for name, cases in CASES.items():
        for case in cases:
            snapshot = Snapshot()
            snapshot.update_monitor_status(status(vm()))
            poll(snapshot, vm(), name, *decode_replies(name, case["replies"]))
            known = parse_series(snapshot)
            for sample in case["samples"]:
                family = BY_NAME[sample["family"]]
                own = {"vm": "vm1", "vm_uuid": vm().uuid, **dict(zip(family.labels, sample["labels"], strict=True))}
                for field in family.fields:
                    value = sample["values"].get(field.name)
                    if isinstance(value, int | float) and field.kind.value in ("counter", "gauge", "flag"):
                        assert known[family.metric_name(field), frozenset(own.items())] == value, case["case"]


def test_a_vm_that_is_gone_has_no_series() -> None:
    snapshot = two_vms()
    snapshot.update_monitor_status(status(vm(), MonitorState.GONE))
    assert {own["vm"] for _, labels in parse_series(snapshot) if "vm" in (own := dict(labels))} == {HOSTILE}


def test_two_monitors_of_one_vm_export_each_series_once() -> None:
    snapshot = two_vms()

    def read() -> list[float]:
        return [
            value for labels, value in series_named(snapshot, "qemu_block_read_bytes_total") if labels["vm"] == "vm1"
        ]

    before = read()
    for monitor in ("/run/b", "/run/c"):
        twin = vm(monitor=monitor)
        snapshot.update_monitor_status(status(twin))
        poll(snapshot, twin, "block", [{"qdev": "disk0", "stats": {"rd_bytes": 9}}])
    assert read() == before
    snapshot.update_monitor_status(status(vm(), MonitorState.GONE))
    assert read() == [9]


def test_a_stalled_monitor_whose_path_a_new_one_took_exports_no_duplicate() -> None:
    snapshot = Snapshot()
    for inode in (1, 2):
        snapshot.update_monitor_status(status(vm(), MonitorState.STALLED, key=inode))
    labels = {"monitor": vm().monitor, "state": "stalled"}
    assert series_named(snapshot, "qmp_agent_monitor_state") == [(labels, 1)]


def test_a_field_that_qemu_does_not_report_has_no_series() -> None:
    snapshot = Snapshot()
    snapshot.update_monitor_status(status(vm()))
    poll(snapshot, vm(), "block", [{"qdev": "a", "stats": {"rd_bytes": 1}}, {"qdev": "b", "stats": {"wr_bytes": 2}}])
    assert [labels["device"] for labels, _ in series_named(snapshot, "qemu_block_read_bytes_total")] == ["a"]
    assert "unmap" not in render_metrics(snapshot)


def test_each_collector_that_is_off_has_a_series() -> None:
    snapshot = Snapshot()
    snapshot.update_monitor_status(replace(status(vm()), degraded=(("block", "not JSON"), ('a"b', "too long"))))
    labels = {"vm": "vm1", "vm_uuid": vm().uuid}
    assert series_named(snapshot, "qmp_agent_collector_degraded") == [
        ({**labels, "collector": "block"}, 1),
        ({**labels, "collector": 'a"b'}, 1),
    ]
    assert promtool_check(render_metrics(snapshot)) == []
    snapshot.update_monitor_status(status(vm()))
    assert series_named(snapshot, "qmp_agent_collector_degraded") == []


@pytest.mark.parametrize("family", BY_NAME)
def test_every_family_can_be_rendered(family: str) -> None:
    snapshot = Snapshot()
    snapshot.update_monitor_status(status(vm()))
    known = BY_NAME[family]
    bins = {"boundaries_seconds": [0.1], "counts": [2, 3], "sum_seconds": 5.0}
    by_kind: dict[str, Any] = {"flag": True, "state": "x", "name": "x", "text": "x", "detail": {}, "histogram": bins}
    values = {f.name: by_kind.get(f.kind.value, 1) for f in known.fields}
    put(snapshot, vm(), known, (tuple(f"label {n}" for n in range(len(known.labels))), values))
    assert promtool_check(render_metrics(snapshot)) == []
    rendered = {name for name, _ in parse_series(snapshot) if name.startswith(f"qemu_{family}_")}
    suffixes = {"histogram": ("_bucket", "_sum", "_count"), "text": (), "detail": ()}
    assert rendered == {
        known.metric_name(f) + suffix for f in known.fields for suffix in suffixes.get(f.kind.value, ("",))
    }


def test_a_latency_histogram_is_a_prometheus_histogram() -> None:
    snapshot = Snapshot()
    snapshot.update_monitor_status(status(vm()))
    bins = {"boundaries": [10_000, 1_000_000], "bins": [1, 0, 4]}
    counts = {"wr_operations": 5, "failed_wr_operations": 0, "wr_total_time_ns": 2_500_000_000}
    stats = {"wr_latency_histogram": bins, **counts}
    poll(snapshot, vm(), "block", [{"qdev": "disk0", "stats": stats}])
    assert promtool_check(render_metrics(snapshot)) == []
    name = "qemu_block_write_latency_seconds"
    assert {labels["le"]: value for labels, value in series_named(snapshot, f"{name}_bucket")} == {
        "1e-05": 1,
        "0.001": 1,
        "+Inf": 5,
    }
    assert [value for _, value in series_named(snapshot, f"{name}_count")] == [5]
    assert [value for _, value in series_named(snapshot, f"{name}_sum")] == [2.5]
    assert f"# TYPE {name} histogram\n" in render_metrics(snapshot)


def test_a_histogram_whose_sum_is_unknown_has_none() -> None:
    snapshot = Snapshot()
    snapshot.update_monitor_status(status(vm()))
    stats = {"wr_latency_histogram": {"boundaries": [10_000], "bins": [1, 4]}, "wr_operations": 6}
    poll(snapshot, vm(), "block", [{"qdev": "disk0", "stats": stats}])
    assert promtool_check(render_metrics(snapshot)) == []
    name = "qemu_block_write_latency_seconds"
    assert [value for _, value in series_named(snapshot, f"{name}_count")] == [5]
    assert series_named(snapshot, f"{name}_sum") == []


names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]) | st.sampled_from('\\"\n{},='), min_size=1)


@given(names, names, st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**64 - 1))
def test_any_name_and_any_number_are_parsed_back(name: str, disk: str, value: float) -> None:
    snapshot = Snapshot()
    owner = vm(0, name)
    snapshot.update_monitor_status(status(owner))
    put(snapshot, owner, BY_NAME["block"], ((disk,), {"idle_seconds": value}))
    assert series_named(snapshot, "qemu_block_idle_seconds") == [
        ({"vm": name, "vm_uuid": owner.uuid, "device": disk}, value)
    ]
