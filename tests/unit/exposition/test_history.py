"""Histories: their resolutions, their memory, and the activity of a VM and of the host in them."""

from dataclasses import replace
from math import isnan, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.exposition.history import RESOLUTIONS, History, HistoryBudget, full_history_bytes
from agent.exposition.history_recorder import HISTORY_COLUMNS, sum_vm_points
from agent.exposition.snapshot import MAX_DEPARTED, Snapshot
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK
from agent.model.metrics.vm_process_and_interfaces import NET, VCPU
from agent.model.record import Vm
from agent.session.shared_types import MonitorState
from tests.lab.snapshots import SECOND, OneVmSource, disk_counters, status, vm


def points(history: History, seconds: float) -> list[tuple[float, list[float]]]:
    return [(time, list(values)) for time, values in history.points(seconds)]


def test_each_range_has_its_resolution_and_coarse_points_are_means() -> None:
    history = History(1)
    for number in range(4321):
        history.append(1000 + 5 * number, [number % 6])
    end = 1000 + 5 * 4320
    for resolution in RESOLUTIONS:
        found = points(history, resolution.range_seconds)
        assert len(found) == resolution.max_points
        assert found[-1][0] == end
        assert found[0][0] == end - resolution.range_seconds + resolution.step
        if resolution.step > 5:
            assert {value for _, (value,) in found[1:]} == {2.5}
    assert points(history, 60) == [(end - 5 * back, [(4320 - back) % 6]) for back in reversed(range(12))]


def test_an_unknown_value_is_not_a_part_of_a_mean() -> None:
    history = History(2)
    for number in range(13):
        history.append(5 * number, [4.0 if number % 2 else nan, nan])
    for _, (known, unknown) in points(history, 3600)[1:]:
        assert known == 4
        assert isnan(unknown)


def test_a_point_is_due_after_a_step_and_after_the_clock_was_set_back() -> None:
    history = History(1)
    history.append(1000, [1])
    assert [history.is_due(time) for time in (1001, 1004, 1004.6, 1010)] == [False, False, True, True]
    assert history.is_due(100)
    history.append(100, [2])
    assert points(history, 21600) == [(100, [2])]


@given(st.integers(0, 3_000_000), st.integers(1, 40))
def test_histories_stay_within_their_memory(size: int, count: int) -> None:
    budget = HistoryBudget(size, len(HISTORY_COLUMNS), count)
    history = History(len(HISTORY_COLUMNS), budget)
    for number in range(200):
        history.append(number * 200.0, [1.0] * len(HISTORY_COLUMNS))
    assert memory(history) * count <= size


def memory(history: History) -> int:
    """Return the bytes of all points of a history."""
    rings = history._rings
    return sum(len(ring.times) * 8 + len(ring.values) * 4 for ring in rings)


def test_a_full_history_fits_its_budget_whole() -> None:
    budget = HistoryBudget(900 * full_history_bytes(len(HISTORY_COLUMNS)), len(HISTORY_COLUMNS), 900)
    assert budget.max_points_per_resolution == tuple(resolution.max_points for resolution in RESOLUTIONS)
    assert budget.bytes <= 17 << 20


# --- The activity of VMs ---


@pytest.fixture
def source() -> OneVmSource:
    return OneVmSource()


def columns(snapshot: Snapshot, owner: Vm, *names: str) -> list[list[float]]:
    """Return columns of a VM's history."""
    history = snapshot.vm_history(owner.uuid)
    assert history is not None
    return [[values[HISTORY_COLUMNS.index(name)] for name in names] for _, values in history.points(300)]


def test_rates_are_means_since_the_last_point_however_often_a_vm_is_polled(source: OneVmSource) -> None:
    for at in range(100, 111):
        source.put(VCPU, at, (("0",), {"cpu_seconds_total": float((at - 100) ** 2), "run_delay_seconds_total": 0.0}))
        source.put(BLOCK, at, (("disk0",), disk_counters(write=at)), (("disk1",), disk_counters(write=at)))
    assert columns(source.snapshot, vm(), "cpu", "write") == [[1, 2], [7, 2]]  # at 101 and 106 seconds


def test_a_counter_that_fell_and_an_unplugged_card_have_no_rate(source: OneVmSource) -> None:
    for at, written, cards in ((100, 50, 1), (110, 90, 1), (120, 10, 0), (130, 30, 0)):
        source.put(NET, at, *[(("tap0",), {"receive_bytes_total": at, "transmit_bytes_total": 0})] * cards)
        source.put(BLOCK, at, (("disk0",), disk_counters(write=written)))
    found = columns(source.snapshot, vm(), "write", "receive")
    assert [write for write, _ in found if not isnan(write)] == [4, 2]
    assert [isnan(write) for write, _ in found] == [False, True, False]
    assert [receive for _, receive in found if not isnan(receive)] == [1]


def test_the_host_has_the_sums_of_its_vms() -> None:
    one = [nan] * len(HISTORY_COLUMNS)
    two = list(one)
    for name, first, second in (
        ("cpu", 1.0, 2.0),
        ("reads", 10.0, 30.0),
        ("read_latency", 1.0, 6.0),
        ("writes", 0.0, 0.0),
    ):
        one[HISTORY_COLUMNS.index(name)], two[HISTORY_COLUMNS.index(name)] = first, second
    total = dict(zip(HISTORY_COLUMNS, sum_vm_points([one, two]), strict=True))
    assert (total["cpu"], total["reads"], total["writes"]) == (3, 40, 0)
    assert total["read_latency"] == pytest.approx(0.175)
    assert isnan(total["write"])
    assert isnan(total["write_latency"])
    assert all(map(isnan, sum_vm_points([])))


def put(snapshot: Snapshot, owner: Vm, at: int) -> None:
    sample = Sample(BLOCK, ("disk0",), disk_counters(write=at * 10))
    snapshot.replace_samples(owner, (BLOCK,), [sample], at * SECOND)


def test_without_memory_there_is_no_history() -> None:
    snapshot = Snapshot(history_bytes=0)
    snapshot.update_monitor_status(status(vm()))
    for at in (100, 110, 120):
        put(snapshot, vm(), at)
    history = snapshot.vm_history(vm().uuid)
    assert history is not None
    assert points(history, 21600) == points(snapshot.host_history, 21600) == []


def test_a_vm_that_returns_has_its_history_and_few_departed_vms_are_kept(source: OneVmSource) -> None:
    snapshot = source.snapshot
    for at in (100, 110, 120):
        put(snapshot, vm(), at)
    for state in (MonitorState.GONE, MonitorState.UP):
        snapshot.update_monitor_status(replace(status(vm()), state=state))
        assert columns(snapshot, vm(), "write") == [[10], [10]]
    for number in range(MAX_DEPARTED + 1):
        other = Vm("hv", f"uuid{number}", f"vm{number}", f"/run/{number}")
        snapshot.update_monitor_status(status(other, key=number))
        snapshot.update_monitor_status(replace(status(other, key=number), state=MonitorState.GONE))
    assert snapshot.vm_history("uuid0") is None
    assert snapshot.vm_history("uuid1") is not None
