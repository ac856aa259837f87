"""`top` without a terminal: what fits, what sorts, what a key does."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli.top.columns import COLUMNS, by_column
from agent.cli.top.screen import TopScreen, table
from agent.cli.top.text import fit, number, seconds, size


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
    return {"vms": {one["uuid"]: one for one in vms}, "alerts": [], "monitors": [], "agent": agent}


def names(screen: TopScreen) -> list[str]:
    return [str(one["name"]) for one in screen.vms()]


@given(st.text(), st.integers(0, 40), st.booleans())
def test_text_takes_the_columns_it_is_given_and_no_control_characters(text: str, width: int, right: bool) -> None:  # noqa: FBT001 - hypothesis gives it by place
    said = fit(text, width, right=right)
    if said.isascii():
        assert len(said) == width
    assert not any(ord(character) < 32 or ord(character) == 127 for character in said)


@pytest.mark.parametrize(
    ("text", "width", "said"),
    [
        ("abc", 5, "abc  "),
        ("abcdef", 4, "abc+"),
        ("日本語", 5, "日本+"),
        ("日本語", 4, "日+ "),
        ("e\u0301x", 3, "e\u0301x "),
        ("x", 0, ""),
    ],
)
def test_what_is_too_long_is_cut_and_wide_characters_count_twice(text: str, width: int, said: str) -> None:
    assert fit(text, width) == said


def test_figures_are_short() -> None:
    assert [size(v) for v in (None, 0, 12, 999, 1000, 1536, 340 << 10, 5 << 30)] == [
        "",
        "0",
        "12",
        "999",
        "1.0K",
        "1.5K",
        "340K",
        "5.0G",
    ]
    assert [number(v) for v in (None, 0.5, 99.94, 140, 12_345)] == ["", "0.5", "99.9", "140", "12.3k"]
    assert [seconds(v) for v in (None, 45, 720, 18_000, 86400 * 31, 1e9)] == ["", "45s", "12m", "5h", "31d", ">3y"]


def test_a_vm_is_ordered_by_a_column_and_last_where_it_has_no_value() -> None:
    cpu = next(column for column in COLUMNS if column.title == "CPU%")
    vms = [vm("a"), vm("b", now={"cpu": 0.1}), vm("c", now={"cpu": 0.9})]
    assert [one["name"] for one in by_column(vms, cpu, reverse=False)] == ["c", "b", "a"]
    assert [one["name"] for one in by_column(vms, cpu, reverse=True)] == ["b", "c", "a"]


def test_vm_names_are_in_natural_order() -> None:
    name = next(column for column in COLUMNS if column.title == "VM")
    expected = ["db", "VM1", "vm1-a", "vm02", "vm3", "vm10", "vm10b", "vm20", f"vm{'9' * 5000}"]
    vms = [vm(text) for text in reversed(expected)]
    assert [shown["name"] for shown in by_column(vms, name, reverse=False)] == expected
    assert [shown["name"] for shown in by_column(vms, name, reverse=True)] == expected[::-1]
    cpu = next(column for column in COLUMNS if column.title == "CPU%")
    assert [shown["name"] for shown in by_column(vms, cpu, reverse=False)] == expected


def test_a_column_that_nobody_has_anything_for_is_not_shown() -> None:
    head, _ = table([vm("a", alerts=0)], 0)
    assert head.text.split() == ["VM", "STATE"]
    head, _ = table([vm("a", alerts=2, now={"write": 5})], 0)
    assert head.text.split() == ["VM", "STATE", "WR/s", "ALERTS"]


@pytest.mark.parametrize("width", [1, 10, 24, 40, 80, 200])
@pytest.mark.parametrize("height", [1, 3, 10, 50])
def test_the_screen_is_filled_and_never_overrun(width: int, height: int) -> None:
    vms = [
        vm(f"vm{n}" * 9, now={"cpu": n, "read": n, "write": n}, disks=[{"device": "d", "used_bytes": 5}])
        for n in range(30)
    ]
    screen = TopScreen(host(*vms))
    for key in ("", "END", "ENTER", "?"):
        screen.key(key)
        lines = screen.lines(width, height)
        assert len(lines) == height
        assert all(len(line.text) <= width for line in lines)


def test_the_bar_moves_stays_on_its_vm_and_is_always_seen() -> None:
    screen = TopScreen(host(*(vm(f"vm{n:02}") for n in range(30))))
    screen.lines(80, 13)
    screen.key("END")
    lines = screen.lines(80, 13)
    assert [line.text[:4] for line in lines if line.look == "chosen"] == ["vm29"]
    screen.key("PAGE_UP")
    screen.key("UP")
    chosen = screen.chosen
    screen.host = host(vm("new"), *(vm(f"vm{n:02}") for n in range(5, 30)))
    screen.lines(80, 13)
    assert screen.chosen == chosen


def test_keys_filter_open_and_quit() -> None:
    screen = TopScreen(host(vm("db-1"), vm("web-1", status="paused")))
    for key in "/PAU":
        screen.key(key)
    assert names(screen) == ["web-1"]
    screen.key("BACKSPACE")
    screen.key("ENTER")
    screen.lines(80, 20)
    screen.key("ENTER")
    assert screen.opened == "uuid-web-1"
    screen.host = host(vm("db-1"))
    assert any("gone" in line.text for line in screen.lines(80, 20))
    screen.key("ESCAPE")
    assert (screen.opened, names(screen)) == ("", [])
    screen.key("ESCAPE")
    assert names(screen) == ["db-1"]
    screen.key("q")
    assert screen.ended
