"""Rates of counters between two polls."""

import pytest

from agent.exposition.rates import PackedCounterLayoutCache, PollPair, ValuesBySubject
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK
from tests.lab.snapshots import SECOND


def test_a_rate_is_a_counters_rise_per_second_between_the_last_two_polls() -> None:
    polls = PollPair()
    for at, value in ((10, 100), (12, 300), (14, 800)):
        polls.update({("a",): {"x_total": value}}, at * SECOND)
    assert polls.rates_for_labels(("a",), ("x_total",)).get("x_total") == 250


def test_a_new_a_restarted_and_an_absent_counter_have_no_rate() -> None:
    polls = PollPair()
    polls.update({("a",): {"x_total": 5}}, 10 * SECOND)
    assert polls.rates_for_labels(("a",), ("x_total",)).get("x_total") is None
    polls.update({("a",): {"x_total": 4}, ("b",): {"x_total": 9}}, 12 * SECOND)
    assert [polls.rates_for_labels((name,), ("x_total",)).get("x_total") for name in "abc"] == [None, None, None]
    assert polls.total_rate("x_total") is None


def test_each_counter_of_both_polls_has_a_rate_whatever_other_fields_they_have() -> None:
    polls = PollPair()
    polls.update({(): {"node": "a", "x_total": 1, "idle": 3, "y_total": 1 << 63}}, 10 * SECOND)
    polls.update({(): {"y_total": 1 << 63, "z_total": 5, "x_total": 2.5, "node": "b"}}, 12 * SECOND)
    assert polls.rates_for_labels((), ("x_total", "y_total", "z_total", "w_total")) == {"x_total": 0.75, "y_total": 0}
    polls.update({(): {"z_total": 7}}, 14 * SECOND)
    polls.update({(): {"z_total": 8}}, 16 * SECOND)
    assert polls.total_rate("z_total") == 0.5


def test_the_cache_of_counter_layouts_is_bounded() -> None:
    layouts = PackedCounterLayoutCache(max_layouts=3)
    polls = PollPair(layouts=layouts)
    for at in range(1, 20):
        polls.update({(): {f"{at}": 0, "x_total": 10 * at}}, at * SECOND)
        assert 0 < len(layouts) <= 3 or at == 1
    assert polls.rates_for_labels((), ("x_total",)).get("x_total") == 10


def test_polls_close_together_count_as_one() -> None:
    polls = PollPair()
    for at, value in ((10.0, 0), (12.0, 200), (12.001, 201)):
        polls.update({(): {"x_total": value}}, round(at * SECOND))
    assert polls.rates_for_labels((), ("x_total",)).get("x_total") == pytest.approx(201 / 2.001)


@pytest.mark.parametrize("interval", [0.1, 0.25, 0.4])
def test_steady_fast_polls_have_the_rate_of_the_last_second(interval: float) -> None:
    polls = PollPair()
    for number in range(1, 101):
        at = 10 + number * interval
        polls.update({(): {"x_total": 10 * at if number < 80 else 1000 * at}}, round(at * SECOND))
        rate = polls.rates_for_labels((), ("x_total",)).get("x_total")
        if 1 <= number * interval < 79 * interval:
            assert rate == pytest.approx(10)
    assert rate == pytest.approx(1000), "the rate before the change is forgotten"


def test_a_total_is_the_sum_over_all_subjects_with_a_known_rate() -> None:
    polls = PollPair()
    polls.update({("a",): {"x_total": 0}, ("b",): {"x_total": 0}}, 10 * SECOND)
    polls.update({("a",): {"x_total": 2}, ("b",): {"x_total": 4}, ("c",): {"x_total": 99}}, 12 * SECOND)
    assert polls.total_rate("x_total") == 3


def sample(name: str, **values: object) -> Sample:
    return Sample(BLOCK, (name,), dict(values))


def test_values_of_the_same_subjects_and_series_replace_the_last_poll() -> None:
    polls = PollPair()
    polls.update({("a",): {"x_total": 1}, ("b",): {"y": 1}}, 10 * SECOND)
    assert polls.update_if_same_series([sample("a", x_total=9), sample("b", y=2)], 12 * SECOND)
    assert polls.current == {("a",): {"x_total": 9}, ("b",): {"y": 2}}
    assert polls.rates_for_labels(("a",), ("x_total",)) == {"x_total": 4}


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [sample("a", x_total=1)],
        [sample("b", y=1), sample("a", x_total=1)],
        [sample("a", x_total=1), sample("a", x_total=1)],
        [sample("a", x_total=1), sample("b", y=1), sample("c", y=1)],
        [sample("a", x_total=1), sample("b", y=1, z=2)],
        [sample("a", x_total=1), sample("b", z=1)],
    ],
)
def test_other_subjects_or_series_replace_nothing(samples: list[Sample]) -> None:
    polls = PollPair()
    before: ValuesBySubject = {("a",): {"x_total": 1}, ("b",): {"y": 1}}
    polls.update(before, 10 * SECOND)
    assert not polls.update_if_same_series(samples, 12 * SECOND)
    assert (polls.current, polls.time_ns) == (before, 10 * SECOND)


def test_a_histogram_replaces_nothing_because_its_bins_may_be_others() -> None:
    polls = PollPair()
    histogram = {"boundaries_seconds": [1], "counts": [1, 2]}
    polls.update({("a",): {"read_latency_seconds": histogram}}, 10 * SECOND)
    assert not polls.update_if_same_series([sample("a", read_latency_seconds=histogram)], 12 * SECOND)
