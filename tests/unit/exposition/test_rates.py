"""Rates of counters between two polls."""

import pytest

from agent.exposition.rates import CounterLayouts, PollPair
from tests.lab.snapshots import SECOND


def test_a_rate_is_a_counters_rise_per_second_between_the_last_two_polls() -> None:
    polls = PollPair()
    for at, value in ((10, 100), (12, 300), (14, 800)):
        polls.update({("a",): {"x_total": value}}, at * SECOND)
    assert polls.rates(("a",), ("x_total",)).get("x_total") == 250


def test_a_new_a_restarted_and_an_absent_counter_have_no_rate() -> None:
    polls = PollPair()
    polls.update({("a",): {"x_total": 5}}, 10 * SECOND)
    assert polls.rates(("a",), ("x_total",)).get("x_total") is None
    polls.update({("a",): {"x_total": 4}, ("b",): {"x_total": 9}}, 12 * SECOND)
    assert [polls.rates((name,), ("x_total",)).get("x_total") for name in "abc"] == [None, None, None]
    assert polls.total_rate("x_total") is None


def test_each_counter_of_both_polls_has_a_rate_whatever_other_fields_they_have() -> None:
    polls = PollPair()
    polls.update({(): {"node": "a", "x_total": 1, "idle": 3, "y_total": 1 << 63}}, 10 * SECOND)
    polls.update({(): {"y_total": 1 << 63, "z_total": 5, "x_total": 2.5, "node": "b"}}, 12 * SECOND)
    assert polls.rates((), ("x_total", "y_total", "z_total", "w_total")) == {"x_total": 0.75, "y_total": 0}
    polls.update({(): {"z_total": 7}}, 14 * SECOND)
    polls.update({(): {"z_total": 8}}, 16 * SECOND)
    assert polls.total_rate("z_total") == 0.5


def test_the_cache_of_counter_layouts_is_bounded() -> None:
    layouts = CounterLayouts(max_layouts=3)
    polls = PollPair(layouts=layouts)
    for at in range(1, 20):
        polls.update({(): {f"{at}": 0, "x_total": 10 * at}}, at * SECOND)
        assert 0 < len(layouts) <= 3 or at == 1
    assert polls.rates((), ("x_total",)).get("x_total") == 10


def test_polls_close_together_count_as_one() -> None:
    polls = PollPair()
    for at, value in ((10.0, 0), (12.0, 200), (12.001, 201)):
        polls.update({(): {"x_total": value}}, round(at * SECOND))
    assert polls.rates((), ("x_total",)).get("x_total") == pytest.approx(201 / 2.001)


def test_a_total_is_the_sum_over_all_subjects_with_a_known_rate() -> None:
    polls = PollPair()
    polls.update({("a",): {"x_total": 0}, ("b",): {"x_total": 0}}, 10 * SECOND)
    polls.update({("a",): {"x_total": 2}, ("b",): {"x_total": 4}, ("c",): {"x_total": 99}}, 12 * SECOND)
    assert polls.total_rate("x_total") == 3
