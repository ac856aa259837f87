"""Latency histograms in QEMU's replies: their shape in samples, their sums, and hostile ones."""

from itertools import accumulate
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.collectors.block import COLLECTOR
from agent.model.field_reader import MAX_BINS

STATS = {
    "wr_total_time_ns": 2_500_000_000,
    "wr_operations": 4,
    "failed_wr_operations": 1,
    "account_failed": True,
}
BINS = {"boundaries": [10_000, 1_000_000], "bins": [1, 0, 4]}


def histogram_of(bins: Any, **stats: Any) -> Any:
    """Return the histogram of writes in the sample of a disk; None if there is none."""
    (sample,) = COLLECTOR.collect([[{"qdev": "disk0", "stats": {"wr_latency_histogram": bins, **stats}}]])
    return sample.values.get("write_latency_seconds")


def test_a_histogram_has_its_boundaries_in_seconds_and_a_count_for_each_bin() -> None:
    assert histogram_of(BINS) == {"boundaries_seconds": [0.00001, 0.001], "counts": [1, 0, 4]}


@pytest.mark.parametrize(
    ("stats", "total"),
    [
        (STATS, 2.5),
        (STATS | {"wr_operations": 5}, None),  # one operation preceded the histogram
        (STATS | {"account_failed": False}, None),  # the time lacks the failed operation
        (STATS | {"account_failed": False, "failed_wr_operations": 0}, 2.5),
        (STATS | {"wr_operations": 3}, 2.5),  # an operation ended while QEMU read the counters
        (STATS | {"wr_operations": None}, None),
        (STATS | {"failed_wr_operations": "1"}, None),
        (STATS | {"wr_total_time_ns": -1}, None),
        (STATS | {"wr_total_time_ns": True}, None),
        ({}, None),
    ],
)
def test_a_histogram_has_a_sum_only_if_the_time_is_of_the_same_operations(stats: Any, total: float | None) -> None:
    assert histogram_of(BINS, **stats).get("sum_seconds") == total


@pytest.mark.parametrize(
    "bins",
    [
        5,
        [],
        {},
        {"boundaries": [1, 2]},
        {"boundaries": [1, 2], "bins": [1, 2]},
        {"boundaries": [1, 2], "bins": [1, 2, 3, 4]},
        {"boundaries": [1, 2], "bins": [1, -2, 3]},
        {"boundaries": [1, 2], "bins": [1, 2.0, 3]},
        {"boundaries": [1, 2], "bins": [1, True, 3]},
        {"boundaries": [1, 2], "bins": [2**63, 2**63, 0]},
        {"boundaries": [2, 1], "bins": [1, 2, 3]},
        {"boundaries": [1, 1], "bins": [1, 2, 3]},
        {"boundaries": [2**60, 2**60 + 1], "bins": [1, 2, 3]},  # equal in seconds
        {"boundaries": [-1, 1], "bins": [1, 2, 3]},
        {"boundaries": ["1"], "bins": [1, 2]},
    ],
)
def test_an_impossible_histogram_is_left_out(bins: Any) -> None:
    assert histogram_of(bins, **STATS) is None


@pytest.mark.parametrize("count", [MAX_BINS, MAX_BINS + 1, 200, 5000])
def test_adjacent_bins_of_a_large_histogram_are_added_up(count: int) -> None:
    found = histogram_of({"boundaries": list(range(1, count)), "bins": list(range(count))})
    assert len(found["counts"]) == len(found["boundaries_seconds"]) + 1 <= MAX_BINS
    assert sum(found["counts"]) == sum(range(count))
    below = {bound / 1e9: total for bound, total in enumerate(accumulate(range(count)), 1)}
    for bound, total in zip(found["boundaries_seconds"], accumulate(found["counts"]), strict=False):
        assert total == below[bound], "the number of operations below a boundary stays the same"


numbers = st.integers(-1, 2**64 - 1) | st.floats() | st.none() | st.text(max_size=2)


@given(
    st.lists(numbers, max_size=80), st.lists(numbers, max_size=80), st.dictionaries(st.sampled_from([*STATS]), numbers)
)
def test_any_lists_give_a_valid_histogram_or_none(bounds: list[Any], counts: list[Any], stats: dict[str, Any]) -> None:
    found = histogram_of({"boundaries": bounds, "bins": counts}, **stats)
    if found is not None:
        edges = found["boundaries_seconds"]
        assert edges == sorted(set(edges))
        assert len(found["counts"]) == len(edges) + 1 <= MAX_BINS
        assert min(found["counts"]) >= 0
    assert orjson.dumps(found)
