"""Scheduling of polls: by timer, on demand, spaced out and spread over slots."""

from collections import Counter
from itertools import pairwise
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.common.backoff import retry_delay
from agent.qmp.commands import Command
from agent.session.scheduler import (
    SLACK_SECONDS,
    SPACING_SECONDS,
    VMS_PER_SLOT,
    Batch,
    Pacer,
    Schedule,
    commands_of_batch,
    next_poll_time,
    split_into_writes,
)


def scheduled(**at: float) -> Schedule:
    schedule = Schedule()
    for name, when in at.items():
        schedule.schedule_by(name, when)
    return schedule


def test_a_poll_is_due_at_its_time_and_once() -> None:
    schedule = scheduled(block=10)
    assert schedule.pop_due_polls(9.9) == []
    assert schedule.next_due_at() == 10
    assert schedule.pop_due_polls(10) == ["block"]
    assert schedule.pop_due_polls(10) == []
    assert schedule.next_due_at() == inf


def test_polls_within_the_slack_are_taken_together_in_order() -> None:
    schedule = scheduled(late=10 + SLACK_SECONDS, early=9, later=10.2)
    assert schedule.pop_due_polls(10) == ["early", "late"]
    assert schedule.next_due_at() == 10.2


def test_an_earlier_plan_stays_until_it_is_taken() -> None:
    schedule = scheduled(block=10)
    schedule.schedule_by("block", 20)
    assert schedule.next_due_at() == 10
    schedule.schedule_by("block", 5)
    assert schedule.next_due_at() == 5
    schedule.pop_due_polls(5)
    schedule.schedule_by("block", 20)
    assert schedule.next_due_at() == 20


def test_a_demand_is_due_at_once_or_after_the_spacing() -> None:
    schedule = scheduled(runstate=1)
    schedule.pop_due_polls(1)
    schedule.schedule_now(["runstate"], 100)
    assert schedule.pop_due_polls(100) == ["runstate"]
    schedule.schedule_now(["runstate"], 100.01)
    assert schedule.pop_due_polls(100.01) == []
    assert schedule.next_due_at() == 100 + SPACING_SECONDS
    assert schedule.pop_due_polls(100 + SPACING_SECONDS) == ["runstate"]


def test_a_demand_during_a_poll_leads_to_another_poll() -> None:
    schedule = scheduled(runstate=1)
    schedule.pop_due_polls(1)
    schedule.schedule_now(["runstate"], 1.001)  # the answer may predate the event
    schedule.schedule_by("runstate", 300)
    assert schedule.next_due_at() == 1 + SPACING_SECONDS


def test_the_spacing_holds_for_every_one_of_many_polls() -> None:
    schedule = scheduled(**dict.fromkeys("abcdefgh", 1))
    schedule.pop_due_polls(1)
    for name in "abcdefgh":
        schedule.schedule_now([name], 1.1)
    assert schedule.next_due_at() == 1 + SPACING_SECONDS


def test_without_polls_nothing_is_ever_due() -> None:
    assert Schedule().next_due_at() == inf


def test_a_demand_does_not_delay_an_earlier_poll() -> None:
    schedule = scheduled(block=1)
    schedule.pop_due_polls(1)
    schedule.schedule_by("block", 1.1)
    schedule.schedule_now(["block"], 1.05)
    assert schedule.next_due_at() == 1.1


def test_unknown_and_removed_polls_cannot_be_demanded() -> None:
    schedule = scheduled(block=inf)
    schedule.schedule_now(["unknown"], 1)
    schedule.remove_poll("block")
    schedule.remove_poll("block")
    schedule.schedule_now(["block"], 1)
    assert schedule.pop_due_polls(inf) == []


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=200))
def test_no_sequence_of_demands_exceeds_the_spacing(gaps: list[float]) -> None:
    schedule, now, taken = scheduled(block=0), 0.0, []
    for gap in gaps:
        now += gap
        schedule.schedule_now(["block"], now)
        taken += [now for _ in schedule.pop_due_polls(now)]
    between = [later - earlier for earlier, later in pairwise(taken)]
    assert all(gap >= SPACING_SECONDS - SLACK_SECONDS - 1e-9 for gap in between)
    assert len(taken) >= 1


@given(st.integers(0, 10**6), st.floats(0.001, 10), st.floats(0.001, 1000))
def test_the_back_off_doubles_is_jittered_and_capped(attempt: int, first: float, most: float) -> None:
    whole = min(most, first * 2 ** min(attempt, 30))
    assert whole / 2 <= retry_delay(attempt, first, most) <= whole


def test_the_pacer_spaces_moments_up_to_its_maximum_delay() -> None:
    pacer = Pacer(0.5, 1.2)
    assert [pacer.reserve_time(now) for now in (10, 10, 10.1, 10.3)] == [10, 10.5, 11, 11.5]
    assert [pacer.reserve_time(20) for _ in range(6)] == [20, 20.5, 21, 21.2, 21.2, 21.2]


@given(st.floats(0, 1e6), st.floats(0.2, 600), st.floats(0, 1, exclude_max=True), st.integers(0, 5000))
def test_each_interval_has_one_slot_of_a_vm(start: float, interval: float, phase: float, vms: int) -> None:
    first = next_poll_time(start, interval, interval, phase, vms)
    assert abs(first - start - interval) <= interval / 2 + SLACK_SECONDS + 1e-6
    assert abs(next_poll_time(first, interval, interval, phase, vms) - first - interval) < 1e-6


def test_slots_are_shared_evenly() -> None:
    shared = Counter(round(next_poll_time(1000, 10, 10, number / 1000, 1000), 6) for number in range(1000))
    assert len(shared) == 1000 // VMS_PER_SLOT
    assert set(shared.values()) == {VMS_PER_SLOT}


def test_few_vms_share_one_slot() -> None:
    assert {next_poll_time(101, 10, 10, phase, 3) for phase in (0.0, 0.5, 0.9)} == {110}


@pytest.mark.parametrize("start", [101, 109.99, 110 - SLACK_SECONDS, 110])
def test_the_next_slot_is_never_that_of_the_poll_itself(start: float) -> None:
    assert next_poll_time(start, 0.25, 0.25, 0.0, 1000) > start + 2 * SLACK_SECONDS
    assert next_poll_time(start, 0.06, 0.06, 0.0, 1000) == start + 0.06
    assert next_poll_time(start, 0, 10, 0.0, 1000) >= start + SLACK_SECONDS


# --- Batches of commands ---

STATUS, NAME = Command("query-status"), Command("query-name")


def test_a_batch_is_split_before_the_requester_whose_commands_do_not_fit() -> None:
    batch: Batch[str] = [("a", [STATUS] * 4), ("b", [STATUS] * 3), ("c", [STATUS]), ("d", [STATUS])]
    assert split_into_writes(batch) == (batch[:2], batch[2:])
    assert split_into_writes(batch[:2]) == (batch[:2], [])


def test_a_requester_with_too_many_commands_for_one_write_is_alone_in_its_batch() -> None:
    batch: Batch[str] = [("a", [STATUS] * 8), ("b", [STATUS])]
    assert split_into_writes(batch) == (batch[:1], batch[1:])


def test_the_commands_of_a_batch_are_in_the_order_of_its_requesters() -> None:
    assert commands_of_batch([("a", [STATUS, NAME])]) == [STATUS, NAME]
    assert commands_of_batch([("a", [NAME]), ("b", [STATUS, NAME])]) == [NAME, STATUS, NAME]
