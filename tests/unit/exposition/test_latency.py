"""Quantiles of latency: of one histogram, and of the last minute between polls."""

from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.exposition.latency import STEP_NS, WINDOW_NS, LatencyWindows, quantile
from agent.http.overview import vm_summary
from agent.model.metrics.block import BLOCK
from tests.lab.snapshots import OneVmSource

SECOND = 1_000_000_000
BOUNDARIES = [0.001, 0.01, 0.1]


@pytest.mark.parametrize(
    ("share", "counts", "expected"),
    [
        (0.5, [10, 0, 0, 0], 0.0005),
        (0.5, [0, 10, 0, 0], 0.0055),
        (1.0, [0, 10, 0, 0], 0.01),
        (0.99, [50, 50, 0, 0], 0.001 + 0.98 * 0.009),
        (0.5, [0, 0, 0, 7], 0.1),
        (0.999, [999, 0, 0, 1], 0.001),
        (0.9995, [999, 0, 0, 1], 0.1),
        (0.5, [0, 0, 0, 0], None),
    ],
)
def test_a_quantile_is_interpolated_within_its_bin(share: float, counts: list[int], expected: float | None) -> None:
    found = quantile(share, BOUNDARIES, counts)
    assert found == (pytest.approx(expected) if expected is not None else None)


def test_a_histogram_of_a_single_bin_has_no_quantile() -> None:
    assert quantile(0.5, [], [5]) is None


@given(
    st.lists(st.integers(0, 10**6), min_size=2, max_size=20).filter(any),
    st.floats(0.001, 1.0),
)
def test_a_quantile_is_in_the_bin_that_has_this_share(counts: list[int], share: float) -> None:
    boundaries = [float(number) for number in range(1, len(counts))]
    found = quantile(share, boundaries, counts)
    assert found is not None
    totals = list(accumulate(counts))
    at_most = totals[min(int(found), len(counts) - 1)]
    below = totals[int(found) - 1] if found >= 1 else 0
    assert at_most >= share * totals[-1] - 1e-6 * totals[-1] or found == boundaries[-1]
    assert below <= share * totals[-1] + 1e-6 * totals[-1]


def poll(windows: LatencyWindows, at: float, counts: list[int], boundaries: list[float] = BOUNDARIES) -> None:
    values: dict[str, Any] = {"write_latency_seconds": {"boundaries_seconds": boundaries, "counts": counts}}
    windows.add_poll({("disk0",): values, ("disk1",): {}}, int((100 + at) * SECOND))


def test_one_poll_has_no_quantiles() -> None:
    windows = LatencyWindows()
    poll(windows, 0, [5, 5, 5, 5])
    assert windows.quantiles_of("disk0") == {}


def test_quantiles_are_of_the_operations_between_polls() -> None:
    windows = LatencyWindows()
    poll(windows, 0, [10**6, 0, 0, 0])
    poll(windows, 10, [10**6, 100, 0, 0])
    summary = windows.quantiles_of("disk0")["write"]
    assert (summary["operations"], summary["seconds"]) == (100, 10)
    assert summary["last_boundary"] == BOUNDARIES[-1]
    assert summary["p50"] == pytest.approx(0.0055)
    assert summary["p50"] < summary["p99"] < summary["p999"] < 0.01
    assert windows.quantiles_of("disk1") == windows.quantiles_of("disk2") == {}


def test_operations_before_the_last_minute_do_not_count() -> None:
    windows = LatencyWindows()
    poll(windows, 0, [0, 0, 0, 0])
    poll(windows, 10, [0, 0, 50, 0])  # slow operations
    for at in range(20, 200, 10):
        poll(windows, at, [at, 0, 50, 0])
    summary = windows.quantiles_of("disk0")["write"]
    assert WINDOW_NS <= summary["seconds"] * SECOND <= WINDOW_NS + STEP_NS
    assert summary["p999"] <= 0.001


def test_rare_polls_have_quantiles_of_the_time_between_two() -> None:
    windows = LatencyWindows()
    for number in range(5):
        poll(windows, number * 300, [number, 0, 0, 0])
    assert windows.quantiles_of("disk0")["write"]["seconds"] == 300


@pytest.mark.parametrize("counts", [[0, 0, 0, 0], [1, 9, 0, 0]])
def test_counts_that_fall_start_the_window_again(counts: list[int]) -> None:
    windows = LatencyWindows()
    poll(windows, 0, [0, 0, 0, 0])
    poll(windows, 10, [5, 5, 0, 0])
    poll(windows, 20, counts)
    assert windows.quantiles_of("disk0") == {}
    poll(windows, 30, [counts[0], counts[1], 0, 3])
    assert windows.quantiles_of("disk0")["write"]["operations"] == 3


def test_other_boundaries_start_the_window_again() -> None:
    windows = LatencyWindows()
    poll(windows, 0, [0, 0, 0, 0])
    poll(windows, 10, [5, 5, 0, 0])
    poll(windows, 20, [50, 50], [0.5])
    assert windows.quantiles_of("disk0") == {}


def test_a_clock_that_is_set_back_starts_the_window_again() -> None:
    windows = LatencyWindows()
    poll(windows, 50, [0, 0, 0, 0])
    poll(windows, 0, [5, 5, 0, 0])
    assert windows.quantiles_of("disk0") == {}


def test_an_unplugged_disk_is_forgotten() -> None:
    windows = LatencyWindows()
    poll(windows, 0, [0, 0, 0, 0])
    windows.add_poll({}, 105 * SECOND)
    poll(windows, 10, [5, 5, 0, 0])
    assert windows.quantiles_of("disk0") == {}


def test_the_overview_has_the_latencies_of_disks_with_histograms() -> None:
    source = OneVmSource()
    for number in range(2):
        histogram = {"boundaries_seconds": BOUNDARIES, "counts": [100 * number, 0, 0, 0]}
        with_histogram = {"writes_total": 100 * number, "write_latency_seconds": histogram}
        source.put(BLOCK, 10 * number + 10, (("disk0",), with_histogram), (("disk1",), {"writes_total": 5}))
    ((known, view),) = source.snapshot.one_view_per_uuid()
    first, second = vm_summary(source, known, view)["disks"]
    assert first["latencies"]["write"]["p50"] == pytest.approx(0.0005)
    assert "latencies" not in second


def test_a_vm_without_histograms_has_no_windows() -> None:
    source = OneVmSource()
    for number in range(3):
        source.put(BLOCK, number, (("disk0",), {"writes_total": number}))
    ((_, view),) = source.snapshot.one_view_per_uuid()
    assert view.latency_windows is None
