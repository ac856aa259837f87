"""The screen of `qmp-agent top`: layout, order and keys."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli.top.columns import COLUMNS, sort_by_column
from agent.cli.top.detail import detail
from agent.cli.top.screen import TopScreen, table
from agent.cli.top.text import fit_to_width, format_number, format_seconds, format_size


def vm(name: str, **more: Any) -> dict[str, Any]:
    return {
        "uuid": f"uuid-{name}",
        "name": name,
        "state": "up",
        "status": "running",
        "qemu": "7.2.22",
        "monitor": "/run/x",
    } | more


def host(*vms: dict[str, Any]) -> dict[str, Any]:
    agent = {"host": "hv7", "unready_reasons": []}
    return {"vms": {entry["uuid"]: entry for entry in vms}, "alerts": [], "monitors": [], "agent": agent}


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
    lines = [line.text for line in detail(vm("web-3", guest=GUEST), (), (), 0)]
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


def test_a_column_has_the_fullest_file_system_of_each_guest() -> None:
    column = next(column for column in COLUMNS if column.title == "GUEST%")
    assert column.text(column.value(vm("web-3", guest=GUEST))) == "90.0"
    assert column.value(vm("db-1")) is None


def names(screen: TopScreen) -> list[str]:
    return [str(entry["name"]) for entry in screen.vms()]


@given(st.text(), st.integers(0, 40), st.booleans())
def test_fitted_text_has_the_given_width_and_no_control_characters(text: str, width: int, right: bool) -> None:  # noqa: FBT001 - hypothesis passes it by position
    fitted = fit_to_width(text, width, right=right)
    if fitted.isascii():
        assert len(fitted) == width
    assert not any(ord(character) < 32 or ord(character) == 127 for character in fitted)


@pytest.mark.parametrize(
    ("text", "width", "fitted"),
    [
        ("abc", 5, "abc  "),
        ("abcdef", 4, "abc+"),
        ("日本語", 5, "日本+"),
        ("日本語", 4, "日+ "),
        ("e\u0301x", 3, "e\u0301x "),
        ("x", 0, ""),
    ],
)
def test_long_text_is_cut_and_wide_characters_take_two_columns(text: str, width: int, fitted: str) -> None:
    assert fit_to_width(text, width) == fitted


def test_values_are_short() -> None:
    assert [format_size(v) for v in (None, 0, 12, 999, 1000, 1536, 340 << 10, 5 << 30)] == [
        "",
        "0",
        "12",
        "999",
        "1.0K",
        "1.5K",
        "340K",
        "5.0G",
    ]
    assert [format_number(v) for v in (None, 0.5, 99.94, 140, 12_345)] == ["", "0.5", "99.9", "140", "12.3k"]
    assert [format_seconds(v) for v in (None, 45, 720, 18_000, 86400 * 31, 1e9)] == [
        "",
        "45s",
        "12m",
        "5h",
        "31d",
        ">3y",
    ]


def test_vms_are_sorted_by_a_column_with_missing_values_last() -> None:
    cpu = next(column for column in COLUMNS if column.title == "CPU%")
    vms = [vm("a"), vm("b", now={"cpu": 0.1}), vm("c", now={"cpu": 0.9})]
    assert [entry["name"] for entry in sort_by_column(vms, cpu, reverse=False)] == ["c", "b", "a"]
    assert [entry["name"] for entry in sort_by_column(vms, cpu, reverse=True)] == ["b", "c", "a"]


def test_vm_names_are_in_natural_order() -> None:
    name = next(column for column in COLUMNS if column.title == "VM")
    expected = ["db", "VM1", "vm1-a", "vm02", "vm3", "vm10", "vm10b", "vm20", f"vm{'9' * 5000}"]
    vms = [vm(text) for text in reversed(expected)]
    assert [shown["name"] for shown in sort_by_column(vms, name, reverse=False)] == expected
    assert [shown["name"] for shown in sort_by_column(vms, name, reverse=True)] == expected[::-1]
    cpu = next(column for column in COLUMNS if column.title == "CPU%")
    assert [shown["name"] for shown in sort_by_column(vms, cpu, reverse=False)] == expected


def test_an_empty_column_is_hidden() -> None:
    head, _ = table([vm("a", alerts=0)], 0)
    assert head.text.split() == ["VM", "STATE"]
    head, _ = table([vm("a", alerts=2, now={"write": 5})], 0)
    assert head.text.split() == ["VM", "STATE", "WR/s", "ALERTS"]


@pytest.mark.parametrize("width", [1, 10, 24, 40, 80, 200])
@pytest.mark.parametrize("height", [1, 3, 10, 50])
def test_the_screen_is_filled_exactly(width: int, height: int) -> None:
    vms = [
        vm(f"vm{n}" * 9, now={"cpu": n, "read": n, "write": n}, disks=[{"device": "d", "used_bytes": 5}])
        for n in range(30)
    ]
    screen = TopScreen(host(*vms))
    for key in ("", "END", "ENTER", "?"):
        screen.on_key(key)
        lines = screen.lines(width, height)
        assert len(lines) == height
        assert all(len(line.text) <= width for line in lines)


def test_the_selection_moves_follows_its_vm_and_stays_visible() -> None:
    screen = TopScreen(host(*(vm(f"vm{n:02}") for n in range(30))))
    screen.lines(80, 13)
    screen.on_key("END")
    lines = screen.lines(80, 13)
    assert [line.text[:4] for line in lines if line.style == "selected"] == ["vm29"]
    screen.on_key("PAGE_UP")
    screen.on_key("UP")
    selected = screen.selected
    screen.host = host(vm("new"), *(vm(f"vm{n:02}") for n in range(5, 30)))
    screen.lines(80, 13)
    assert screen.selected == selected


def test_the_second_line_shows_the_worst_problem() -> None:
    overview = host(vm("a"))
    agent = overview["agent"]
    screen = TopScreen(overview)
    assert screen.lines(80, 10)[1].text == ""
    agent["warnings"] = ["a: collector block is off: not JSON", "UUID clash"]
    assert screen.lines(80, 10)[1].text.rstrip() == "a: collector block is off: not JSON; UUID clash"
    assert screen.lines(80, 10)[1].style == "warning"
    agent["unready_reasons"] = ["nothing is delivered"]
    assert (screen.lines(80, 10)[1].text.rstrip(), screen.lines(80, 10)[1].style) == ("nothing is delivered", "bad")
    screen.error = "no agent answers"
    assert screen.lines(80, 10)[1].text.rstrip() == "no agent answers"


def test_keys_filter_open_and_quit() -> None:
    screen = TopScreen(host(vm("db-1"), vm("web-1", status="paused")))
    for key in "/PAU":
        screen.on_key(key)
    assert names(screen) == ["web-1"]
    screen.on_key("BACKSPACE")
    screen.on_key("ENTER")
    screen.lines(80, 20)
    screen.on_key("ENTER")
    assert screen.opened == "uuid-web-1"
    screen.host = host(vm("db-1"))
    assert any("gone" in line.text for line in screen.lines(80, 20))
    screen.on_key("ESCAPE")
    assert (screen.opened, names(screen)) == ("", [])
    screen.on_key("ESCAPE")
    assert names(screen) == ["db-1"]
    screen.on_key("q")
    assert screen.ended


POOL = {
    "pool": "/srv/images",
    "kind": "filesystem",
    "type": "xfs",
    "responsive": True,
    "size_bytes": 100 << 30,
    "used_bytes": 60 << 30,
    "free_bytes": 20 << 30,
    "commitment_ratio": 1.5,
    "growth_bytes_per_second": 1 << 20,
    "time_to_full_seconds": 20_480,
    "exceeded_levels": 0,
    "vms": 6,
}


def test_the_storage_view_has_the_fullest_pool_first_and_names_what_is_wrong() -> None:
    hung = {"pool": "/nfs", "kind": "filesystem", "type": "nfs4", "responsive": False, "vms": 2}
    full = POOL | {"pool": "pve/data", "kind": "lvm_thin", "type": "", "free_bytes": 0, "exceeded_levels": 2}
    screen = TopScreen(host(vm("web-3")) | {"pools": [hung, POOL, full]})
    screen.on_key("S")
    lines = screen.lines(120, 12)
    rows = [line.text.split() for line in lines[3:6]]
    assert rows == [
        ["pve/data", "lvm_thin", "100G", "60G", "0", "100", "150", "1.0M", "6h", "6"],
        ["/srv/images", "xfs", "100G", "60G", "20G", "75.0", "150", "1.0M", "6h", "6"],
        ["/nfs", "nfs4", "2", "does", "not", "answer"],
    ]
    assert [line.style for line in lines[3:6]] == ["warning", "", "bad"]
    screen.on_key("ESCAPE")
    assert "web-3" in screen.lines(120, 12)[3].text


def test_a_host_without_known_storage_gets_a_hint() -> None:
    screen = TopScreen(host(vm("web-3")) | {"pools": []}, storage=True)
    assert "qmp-agent doctor" in screen.lines(120, 6)[3].text


def test_a_disks_line_has_what_limits_it() -> None:
    disks = [
        {"device": "disk0", "limited_by": "pool", "pool": "/srv/images", "used_bytes": 1, "limit_bytes": 2},
        {"device": "disk1", "limited_by": "virtual_size", "used_bytes": 1, "limit_bytes": 2},
    ]
    lines = [line.text for line in detail(vm("web-3", disks=disks), (), (), 0)]
    assert [line.split("limit: ")[1] for line in lines if "limit: " in line] == ["/srv/images", "virtual size"]
