"""What `qmp-agent top` shows of one VM: its details, and its values in columns for guests and latency."""

import time
from typing import Any

import pytest

from agent.cli.top.columns import COLUMNS, sort_by_column
from agent.cli.top.detail import detail_lines
from tests.lab.top_values import vm

GUEST = {
    "agent": "up",
    "system": "Debian GNU/Linux 12 (bookworm)",
    "hostname": "web-3",
    "addresses": ["192.0.2.7", "2001:db8::7"],
    "filesystems": [
        {"mountpoint": "/", "device": "vda1", "type": "ext4", "used_bytes": 50 << 30, "size_bytes": 100 << 30},
        {"mountpoint": "/data", "device": "vdb", "type": "xfs", "used_bytes": 99 << 30, "size_bytes": 110 << 30},
        {"mountpoint": "/old", "device": "vdc", "type": "xfs"},
    ],
}


def test_a_vms_details_have_its_guests_file_systems_the_fullest_first() -> None:
    lines = [line.text for line in detail_lines(vm("web-3", guest=GUEST), (), (), 0)]
    (about,) = [line for line in lines if "guest agent" in line]
    assert about.split("   ") == [
        "guest agent up",
        "web-3",
        "Debian GNU/Linux 12 (bookworm)",
        "192.0.2.7 2001:db8::7",
    ]
    rows = [line.split() for line in lines[lines.index(about) + 1 :]]
    assert rows == [
        ["FILE", "SYSTEM", "SIZE", "USED", "FREE", "USED%", "DEVICE"],
        ["/data", "110G", "99G", "11G", "90.0", "vdb", "xfs"],
        ["/", "100G", "50G", "50G", "50.0", "vda1", "ext4"],
    ]


@pytest.mark.parametrize("change", [{"agent": "suspended"}, {"frozen": True}])
def test_the_old_values_of_a_guest_that_is_not_queried_have_their_time(change: dict[str, Any]) -> None:
    def words(guest: dict[str, Any]) -> list[str]:
        (about,) = [
            line.text for line in detail_lines(vm("web-3", guest=guest), (), (), 0) if "guest agent" in line.text
        ]
        return about.split("   ")

    answered = GUEST | {"last_response": time.mktime((2026, 11, 30, 12, 5, 9, 0, 0, -1))}
    assert "values of 12:05:09" in words(answered | change)
    assert not [word for word in words(answered) if word.startswith("values")]


LATENCIES = {
    "read": {"p50": 0.0001, "p99": 0.002, "p999": 0.25, "operations": 600, "seconds": 60, "last_boundary": 0.5},
    "zone_append": {"p50": 0.01, "p99": 1.5, "p999": 2.5, "operations": 30, "seconds": 60, "last_boundary": 2.5},
}


def test_a_vms_details_have_the_latency_of_disks_with_histograms() -> None:
    disks = [{"device": "disk0", "latencies": LATENCIES}, {"device": "disk1"}]
    lines = [line.text.split() for line in detail_lines(vm("web-3", disks=disks), (), (), 0)]
    start = lines.index(["LATENCY", "P50", "P99", "P99.9", "OPS/s", "OPERATION"])
    assert lines[start + 1 :] == [
        ["disk0", "100u", "2.0m", "250m", "10.0", "read"],
        ["disk0", "10m", "1.5s", ">=2.5s", "0.5", "zone", "append"],
    ]
    without = detail_lines(vm("web-3", disks=disks[1:]), (), (), 0)
    assert not any("LATENCY" in line.text for line in without)


@pytest.mark.parametrize(
    ("owner", "text"), [("agent", "histogram set by the agent"), ("other", "histogram set by another client")]
)
def test_a_vms_details_name_the_client_that_set_a_histogram(owner: str, text: str) -> None:
    """As on the page: the agent changes only its own histograms."""
    disks = [{"device": "disk0", "latencies": LATENCIES, "histogram_owner": owner}]
    rows = [line.text for line in detail_lines(vm("web-3", disks=disks), (), (), 0) if line.text.startswith("disk0 ")]
    assert [row.split("   ")[-1].strip() for row in rows[-2:]] == [text, text]
    assert [row.rpartition("  histogram")[0].split()[5:] for row in rows[-2:]] == [["read"], ["zone", "append"]]


def test_a_column_has_the_longest_99th_percentile_of_each_vm() -> None:
    column = next(column for column in COLUMNS if column.title == "P99")
    assert (
        column.format_value(column.value_of(vm("web-3", disks=[{"device": "disk0", "latencies": LATENCIES}]))) == "1.5s"
    )
    assert column.value_of(vm("db-1", disks=[{"device": "disk0"}])) is None
    assert column.format_value(None) == ""


def test_a_percentile_in_the_last_bin_is_a_lower_bound_in_the_column_too() -> None:
    """The bin has no end, so a percentile in it may be longer than any other of the same length."""
    column = next(column for column in COLUMNS if column.title == "P99")
    read, write = LATENCIES["read"] | {"p99": 0.5}, LATENCIES["read"] | {"p99": 0.5, "last_boundary": 1.0}
    for latencies in ({"read": read, "write": write}, {"write": write, "read": read}):
        bounded = vm("web-3", disks=[{"device": "disk0", "latencies": latencies}])
        assert column.format_value(column.value_of(bounded)) == ">=500m"
    other = vm("db-1", disks=[{"device": "disk0", "latencies": {"write": write}}])
    assert sort_by_column([other, bounded], column, reverse=False) == [bounded, other]
    assert len(column.format_value((9999.0, True))) <= column.width


def test_a_column_has_the_fullest_file_system_of_each_guest() -> None:
    column = next(column for column in COLUMNS if column.title == "GUEST%")
    assert column.format_value(column.value_of(vm("web-3", guest=GUEST))) == "90.0"
    assert column.value_of(vm("db-1")) is None


def test_a_disks_line_has_what_limits_it() -> None:
    disks = [
        {"device": "disk0", "limited_by": "pool", "pool": "/srv/images", "used_bytes": 1, "limit_bytes": 2},
        {"device": "disk1", "limited_by": "virtual_size", "used_bytes": 1, "limit_bytes": 2},
    ]
    lines = [line.text for line in detail_lines(vm("web-3", disks=disks), (), (), 0)]
    assert [line.split("limit: ")[1] for line in lines if "limit: " in line] == ["/srv/images", "virtual size"]
