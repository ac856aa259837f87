"""The screen of `qmp-agent top`: layout, order and keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli.top.columns import COLUMNS, sort_by_column
from agent.cli.top.screen_state import TopScreenState, TopView, table_lines
from agent.cli.top.text import fit_to_width, format_latency, format_number, format_seconds, format_size
from tests.lab.top_values import host, vm


def names(screen: TopScreenState) -> list[str]:
    return [str(entry["name"]) for entry in screen.filtered_vms()]


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
        ">2y",
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
    head, _ = table_lines([vm("a", alerts=0)], 0)
    assert head.text.split() == ["VM", "STATE"]
    head, _ = table_lines([vm("a", alerts=2, now={"write": 5})], 0)
    assert head.text.split() == ["VM", "STATE", "ALERTS", "WR/s"]


@pytest.mark.parametrize("width", [1, 10, 24, 40, 80, 200])
@pytest.mark.parametrize("height", [1, 3, 10, 50])
def test_the_screen_is_filled_exactly(width: int, height: int) -> None:
    vms = [
        vm(f"vm{n}" * 9, now={"cpu": n, "read": n, "write": n}, disks=[{"device": "d", "used_bytes": 5}])
        for n in range(30)
    ]
    screen = TopScreenState(host(*vms))
    for key in ("", "END", "ENTER", "?"):
        screen.on_key(key)
        lines = screen.render(width, height)
        assert len(lines) == height
        assert all(len(line.text) <= width for line in lines)


def test_the_selection_moves_follows_its_vm_and_stays_visible() -> None:
    screen = TopScreenState(host(*(vm(f"vm{n:02}") for n in range(30))))
    screen.render(80, 13)
    screen.on_key("END")
    lines = screen.render(80, 13)
    assert [line.text[:4] for line in lines if line.style == "selected"] == ["vm29"]
    screen.on_key("PAGE_UP")
    screen.on_key("UP")
    selected = screen.selected_vm
    screen.overview = host(vm("new"), *(vm(f"vm{n:02}") for n in range(5, 30)))
    screen.render(80, 13)
    assert screen.selected_vm == selected


def test_the_second_line_shows_the_worst_problem() -> None:
    overview = host(vm("a"))
    agent = overview["agent"]
    screen = TopScreenState(overview)
    assert screen.render(80, 10)[1].text == ""
    agent["warnings"] = ["a: collector block is off: not JSON", "UUID clash"]
    assert screen.render(80, 10)[1].text.rstrip() == "a: collector block is off: not JSON; UUID clash"
    assert screen.render(80, 10)[1].style == "warning"
    agent["unready_reasons"] = ["nothing is delivered"]
    assert (screen.render(80, 10)[1].text.rstrip(), screen.render(80, 10)[1].style) == ("nothing is delivered", "bad")
    screen.error = "no agent answers"
    assert screen.render(80, 10)[1].text.rstrip() == "no agent answers"


def test_keys_filter_open_and_quit() -> None:
    screen = TopScreenState(host(vm("db-1"), vm("web-1", status="paused")))
    for key in "/PAU":
        screen.on_key(key)
    assert names(screen) == ["web-1"]
    screen.on_key("BACKSPACE")
    screen.on_key("ENTER")
    screen.render(80, 20)
    screen.on_key("ENTER")
    assert screen.opened_vm == "uuid-web-1"
    screen.overview = host(vm("db-1"))
    assert any("gone" in line.text for line in screen.render(80, 20))
    screen.on_key("ESCAPE")
    assert (screen.opened_vm, names(screen)) == ("", [])
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


def test_the_storage_view_has_problems_first_and_then_the_pools_that_fill_first() -> None:
    hung = {"pool": "/nfs", "kind": "filesystem", "type": "nfs4", "responsive": False, "vms": 2}
    full = POOL | {"pool": "pve/data", "kind": "lvm_thin", "type": "", "free_bytes": 0, "exceeded_levels": 2}
    del full["time_to_full_seconds"]
    screen = TopScreenState(host(vm("web-3")) | {"pools": [full, hung, POOL]})
    screen.on_key("S")
    lines = screen.render(120, 12)
    rows = [line.text.split() for line in lines[3:6]]
    assert rows == [
        ["/nfs", "nfs4", "2", "does", "not", "answer"],
        ["/srv/images", "xfs", "100G", "60G", "20G", "75.0", "150", "1.0M", "6h", "6"],
        ["pve/data", "lvm_thin", "100G", "60G", "0", "100", "150", "1.0M", "6"],
    ]
    assert [line.style for line in lines[3:6]] == ["bad", "", "warning"]
    screen.on_key("ESCAPE")
    assert "web-3" in screen.render(120, 12)[3].text


def test_a_host_without_known_storage_gets_a_hint() -> None:
    screen = TopScreenState(host(vm("web-3")) | {"pools": []}, view=TopView.STORAGE)
    assert "qmp-agent doctor" in screen.render(120, 6)[3].text


FILTERED = {
    "db-1": vm("db-1", status="paused", labels={"tier": "gold"}),
    "db-2": vm("db-2", degraded=[{"collector": "block", "cause": "x"}], migration={"status": "active"}),
    "web-1": vm("web-1", status="io-error", jobs=[{"job": "j"}], migration={"status": "completed"}),
}
ALERTS = [
    {"alert": "write_threshold", "severity": "warning", "uuid": "uuid-db-2", "vm": "db-2", "subject": "disk0"},
    {"alert": "pool_space", "severity": "critical", "uuid": "", "vm": "", "subject": "/srv"},
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DB", ["db-1", "db-2"]),
        ("state:pau", ["db-1"]),
        ("db state:running", ["db-2"]),
        ("state:stopped", ["web-1"]),
        ("alert:any", ["db-2"]),
        ("alert:warning", ["db-2"]),
        ("alert:critical", []),
        ("alert:threshold", ["db-2"]),
        ("label:tier", ["db-1"]),
        ("label:tier=gold", ["db-1"]),
        ('label:"tier=gol"', []),
        ("is:degraded", ["db-2"]),
        ("is:busy", ["db-2", "web-1"]),
        ("is:unknown", []),
        ("uuid-web", ["web-1"]),
        ("", ["db-1", "db-2", "web-1"]),
    ],
)
def test_a_filter_matches_texts_states_alerts_and_labels(text: str, expected: list[str]) -> None:
    screen = TopScreenState(host(*FILTERED.values()) | {"alerts": ALERTS}, filter=text, sort="name")
    assert names(screen) == expected


RESOURCES = {
    "vcpus": 12,
    "vcpu_commitment_ratio": 3.0,
    "unknown_vms": 1,
    "guest_memory_bytes": 12 << 30,
    "memory_commitment_ratio": 1.5,
    "hugepages": [{"size": "2M", "pool_bytes": 4 << 30, "free_bytes": 1 << 30}, {"size": "1G", "pool_bytes": 0}],
    "swap_bytes": 2 << 30,
    "swap_free_bytes": 1 << 30,
    "swap_in_bytes_per_second": 5 << 20,
    "waiting_for_cpu_ratio": 0.25,
    "contention": [{"sentence": "2 VMs wait for a CPU of the host: a, b. The VMs that take most: c."}],
}


def test_the_host_view_has_the_known_figures_and_the_vms_that_wait_for_others() -> None:
    screen = TopScreenState(host(vm("web-3")) | {"resources": RESOURCES})
    screen.on_key("H")
    lines = screen.render(120, 20)
    assert [line.text.rstrip() for line in lines[2:11]] == [
        "HOST",
        "vCPUs of running VMs    12, 300 % of the CPUs, without 1 unknown VMs",
        "memory of all guests    12 GiB, 150 % of the memory",
        "huge pages              1 GiB of 4 GiB free (2M)",
        "swap                    1 GiB of 2 GiB free, 5 MiB/s read",
        "tasks wait for          a CPU 25 %",
        "",
        "VMS THAT WAIT FOR OTHERS",
        "2 VMs wait for a CPU of the host: a, b. The VMs that take most: c.",
    ]
    assert [line.style for line in lines[3:7]] == ["", "warning", "", "warning"]
    assert all(len(line.text) <= 40 for line in screen.render(40, 20)[2:])


def test_the_host_view_says_that_there_is_no_sample_yet() -> None:
    assert "no sample yet" in TopScreenState(host(), view=TopView.HOST).render(80, 6)[3].text


def test_keys_switch_between_the_lists() -> None:
    monitors = [
        {"monitor": "/run/vm10", "state": "up", "vm": "vm10", "reason": ""},
        {"monitor": "/run/vm2", "state": "up", "vm": "vm2", "reason": ""},
        {"monitor": "/run/vm3", "state": "busy", "vm": "", "reason": "held by another client"},
    ]
    alerts = [alert | {"since": 0.0, "level": "90%", "free_bytes": 5 << 30} for alert in ALERTS]
    screen = TopScreenState(host(*FILTERED.values()) | {"alerts": alerts, "monitors": monitors})

    def rows() -> list[list[str]]:
        return [line.text.split() for line in screen.render(120, 12)[2:6]]

    screen.on_key("A")
    head, first, second, _ = rows()
    assert head == ["SEVERITY", "SINCE", "ALERT", "VM", "SUBJECT"]
    assert first[3:] == ["write_threshold", "db-2", "disk0", "past", "90%", "5.0G", "free"]
    assert second[0] == "critical"
    screen.on_key("M")
    assert [row[0] for row in rows()] == ["MONITOR", "/run/vm3", "/run/vm2", "/run/vm10"]
    screen.on_key("M")
    assert rows()[0][0] == "VM"


def test_eighty_columns_have_the_most_important_values() -> None:
    disks = [{"device": "d", "used_bytes": 5, "free_bytes": 7, "time_to_full_seconds": 60}]
    now = dict.fromkeys(("cpu", "steal", "read", "write", "reads", "writes", "latency", "receive", "transmit"), 0.5)
    head, row = table_lines(
        [vm("web-1", alerts=1, now=now, disks=disks, memory={"used_bytes": 9, "total_bytes": 10})], 80
    )
    titles = ["VM", "STATE", "ALERTS", "CPU%", "STEAL%", "RD/s", "WR/s", "LAT", "MEM", "FREE"]
    assert head.text.split() == titles
    assert row.text.split() == ["web-1", "running", "1", "50.0", "50.0", "0", "0", "500m", "9", "7"]
    assert [format_latency(value) for value in (None, 4e-4, 0.0012, 0.08, 2.5)] == ["", "400u", "1.2m", "80m", "2.5s"]
