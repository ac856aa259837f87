"""A page receives the whole state first, and then only what changed."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from agent.http.page_stream import ROW_COLUMNS, PageChangeTracker, SharedPageState
from agent.model.family import Sample
from agent.model.json_encoding import encode_json
from agent.model.metrics.block import BLOCK, BLOCK_SPACE
from agent.model.metrics.memory import BALLOON
from agent.model.metrics.storage_pool import POOL
from agent.model.metrics.vm_process_and_interfaces import VCPU
from agent.session.shared_types import MonitorState
from tests.lab.snapshots import OneVmSource, disk_counters, status, vm


@pytest.fixture
def source() -> OneVmSource:
    return OneVmSource()


async def received(cursor: PageChangeTracker) -> Any:
    """Return what the page receives next; None if nothing changed."""
    changes = await cursor.next_changes()
    return None if changes is None else orjson.loads(encode_json(changes))


async def rows(cursor: PageChangeTracker) -> Any:
    """Return the received rows as objects, by UUID."""
    changes = await received(cursor)
    return {uuid: dict(zip(ROW_COLUMNS, row, strict=True)) for uuid, row in changes["rows"]["set"].items()}


def monitor_names(monitors: dict[str, Any]) -> list[str]:
    """Return the names of received monitors."""
    return [known["monitor"] for known in monitors.values()]


async def test_a_page_gets_everything_then_the_changes_then_nothing(source: OneVmSource) -> None:
    cursor = PageChangeTracker(SharedPageState(source))
    assert (await received(cursor)).keys() == {"columns", "rows", "agent", "resources"}
    assert await received(cursor) is None
    source.put(BALLOON, 10, ((), {"actual_bytes": 100}))
    assert (await rows(cursor))[vm().uuid]["total"] == 100
    source.error = "x"
    changes = await received(cursor)
    assert changes.keys() == {"agent"}
    assert changes["agent"]["error"] == "x"


async def test_a_poll_that_changes_nothing_that_the_table_shows_sends_nothing(source: OneVmSource) -> None:
    state = SharedPageState(source)
    first, second = PageChangeTracker(state), PageChangeTracker(state)
    for at in (10, 20, 30, 40):
        source.put(BLOCK, at, (("disk0",), disk_counters(write=at * 1000)))
        source.put(BALLOON, at, ((), {"actual_bytes": 100}))
        for cursor in (first, second):
            changes = await received(cursor)
            assert (changes is not None) is (at < 30), at  # the rate is known after two polls, and then stays


async def test_a_slow_page_gets_only_the_last_of_several_changes(source: OneVmSource) -> None:
    cursor = PageChangeTracker(SharedPageState(source))
    await received(cursor)
    for size in range(1, 5):
        source.put(BALLOON, 10 + size, ((), {"actual_bytes": size}))
    assert (await rows(cursor))[vm().uuid]["total"] == 4
    assert await received(cursor) is None


async def test_a_vm_that_left_is_reported_gone(source: OneVmSource) -> None:
    cursor, other = PageChangeTracker(SharedPageState(source)), vm(1, "vm2", "/run/vm2.qmp")
    await received(cursor)
    source.snapshot.update_monitor_status(status(other, key=1))
    assert (await rows(cursor)).keys() == {other.uuid}
    source.snapshot.update_monitor_status(replace(status(other, key=1), state=MonitorState.GONE))
    assert (await received(cursor))["rows"] == {"set": {}, "gone": [other.uuid]}


async def test_the_fullest_disk_and_the_shortest_time_are_in_the_row(source: OneVmSource) -> None:
    cursor = PageChangeTracker(SharedPageState(source))
    await received(cursor)
    half, full = (
        {"used_bytes": 50, "limit_bytes": 100, "time_to_full_seconds": 7.0},
        {"used_bytes": 9, "limit_bytes": 10},
    )
    source.put(BLOCK_SPACE, 10, (("disk0",), half), (("disk1",), full))
    row = (await rows(cursor))[vm().uuid]
    assert (row["disk"], row["disk_used"], row["disk_size"], row["full_in"]) == ("disk1", 9, 10, 7)


async def test_steal_and_latency_are_in_the_row(source: OneVmSource) -> None:
    cursor = PageChangeTracker(SharedPageState(source))
    for at in (10, 20):
        source.put(VCPU, at, (("0",), {"cpu_seconds_total": at / 2, "run_delay_seconds_total": at / 4}))
        counters = disk_counters(reads=at, writes=at) | {"read_seconds_total": at / 100, "write_seconds_total": at / 50}
        source.put(BLOCK, at, (("disk0",), counters))
    row = (await rows(cursor))[vm().uuid]
    assert (row["cpu"], row["steal"], row["iops"], row["latency"]) == (0.5, 0.25, 2, 0.015)


async def test_only_monitors_that_are_not_up_are_sent_unless_all_are_wanted(source: OneVmSource) -> None:
    other = vm(1, "vm2", "/run/vm2.qmp")
    source.snapshot.update_monitor_status(
        replace(status(other, key=1), state=MonitorState.BUSY, reason="held by another")
    )
    some, every = (
        PageChangeTracker(SharedPageState(source)),
        PageChangeTracker(SharedPageState(source), all_monitors=True),
    )
    first = (await received(some))["monitors"]["set"]
    assert monitor_names(first) == ["/run/vm2.qmp"]
    assert monitor_names((await received(every))["monitors"]["set"]) == ["/run/vm1.qmp", "/run/vm2.qmp"]
    source.snapshot.update_monitor_status(status(other, key=1))
    assert (await received(some))["monitors"] == {"set": {}, "gone": list(first)}


async def test_two_monitors_of_one_name_are_both_sent(source: OneVmSource) -> None:
    source.snapshot.update_monitor_status(replace(status(vm()), state=MonitorState.STALLED))
    source.snapshot.update_monitor_status(status(vm(1, "vm2"), key=1))
    cursor = PageChangeTracker(SharedPageState(source), all_monitors=True)
    assert monitor_names((await received(cursor))["monitors"]["set"]) == ["/run/vm1.qmp", "/run/vm1.qmp"]


async def test_one_changed_pool_is_sent_alone(source: OneVmSource) -> None:
    cursor = PageChangeTracker(SharedPageState(source))
    for name in ("/a", "/b"):
        source.snapshot.replace_host_sample(Sample(POOL, (name, "filesystem"), {"free_bytes": 40}))
    assert len((await received(cursor))["pools"]["set"]) == 2
    source.snapshot.replace_host_sample(Sample(POOL, ("/a", "filesystem"), {"free_bytes": 39}))
    pool = {"pool": "/a", "kind": "filesystem", "free_bytes": 39}
    assert (await received(cursor))["pools"] == {"set": {"filesystem /a": pool}}


async def test_the_page_of_a_vm_gets_its_changed_families_and_no_rows(source: OneVmSource) -> None:
    source.put(BALLOON, 10, ((), {"actual_bytes": 100}))
    for at in (10, 20):
        source.put(BLOCK, at, (("disk0",), disk_counters(write=at * 10)))
    cursor = PageChangeTracker(SharedPageState(source), vm().uuid)
    first = await received(cursor)
    assert first.keys() == {"columns", "agent", "resources", "vm", "families"}
    assert first["families"]["set"].keys() == {"balloon", "block"}
    ((labels, values, rates),) = first["families"]["set"]["block"]["subjects"]
    assert (labels, values["write_bytes_total"], rates["write_bytes_total"]) == (["disk0"], 200, 10)
    source.put(BALLOON, 20, ((), {"actual_bytes": 100}))
    source.put(BLOCK, 30, (("disk0",), disk_counters(write=300)))
    assert (await received(cursor))["families"]["set"].keys() == {"block"}
    source.snapshot.update_monitor_status(replace(status(vm()), state=MonitorState.GONE))
    assert (await received(cursor))["vm"] is None


async def test_figures_beyond_64_bits_do_not_break_the_rows(source: OneVmSource) -> None:
    cursor = PageChangeTracker(SharedPageState(source))
    source.put(BALLOON, 10, ((), {"actual_bytes": 2**64 - 2}))
    assert (await rows(cursor))[vm().uuid]["total"] == pytest.approx(2**64, rel=0.01)
