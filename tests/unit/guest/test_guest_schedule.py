"""Due times of a guest agent's collectors."""

from math import inf

import pytest

from agent.collectors.guest import GUEST_COLLECTORS
from agent.guest.config import GuestIntervalsConfig
from agent.guest.schedule import (
    FIRST_FAILURE_DELAY_SECONDS,
    MAX_FAILURE_DELAY_SECONDS,
    MIN_SPACING_SECONDS,
    GuestSchedule,
)

NAMES = [collector.name for collector in GUEST_COLLECTORS]


def names(schedule: GuestSchedule, now: float) -> list[str]:
    return [collector.name for collector in schedule.due_collectors(now)]


@pytest.fixture
def schedule() -> GuestSchedule:
    return GuestSchedule(GUEST_COLLECTORS, GuestIntervalsConfig())


def test_everything_is_due_at_first_and_then_at_its_interval(schedule: GuestSchedule) -> None:
    assert names(schedule, 100) == NAMES
    for name in NAMES:
        schedule.on_success(name, 100)
    assert names(schedule, 129) == []
    assert names(schedule, 130) == ["freeze"]
    assert schedule.next_due_at() == 130
    assert names(schedule, 160) == ["freeze", "filesystems", "load", "cpu", "disks", "network", "users"]


def test_an_interval_of_zero_switches_a_collector_off() -> None:
    intervals = dict.fromkeys(NAMES, 0.0)
    schedule = GuestSchedule(GUEST_COLLECTORS, GuestIntervalsConfig(**intervals))
    assert names(schedule, 100) == []
    assert schedule.next_due_at() == inf


def test_a_failing_collector_runs_less_and_less_often(schedule: GuestSchedule) -> None:
    now, gaps = 100.0, []
    for _ in range(12):
        schedule.on_failure("load", now)
        due = next(at for at in range(int(now), int(now) + 10_000) if "load" in names(schedule, at))
        gaps.append(due - now)
        now = due
    assert gaps[:3] == [FIRST_FAILURE_DELAY_SECONDS, 2 * FIRST_FAILURE_DELAY_SECONDS, 4 * FIRST_FAILURE_DELAY_SECONDS]
    assert gaps[-1] == MAX_FAILURE_DELAY_SECONDS
    schedule.on_success("load", now)
    assert "load" in names(schedule, now + 60)


def test_a_demand_does_not_run_a_collector_that_failed(schedule: GuestSchedule) -> None:
    for name in NAMES:
        schedule.on_success(name, 100)
    schedule.on_failure("load", 100)
    schedule.schedule_all_now()
    assert names(schedule, 100 + MIN_SPACING_SECONDS) == [name for name in NAMES if name != "load"]
    schedule.clear_failures_and_schedule_all()
    assert names(schedule, 100 + MIN_SPACING_SECONDS) == NAMES


def test_a_guest_that_starts_again_and_again_is_not_queried_more_often(schedule: GuestSchedule) -> None:
    for name in NAMES:
        schedule.on_success(name, 100)
    for now in (101, 105, 109):
        schedule.clear_failures_and_schedule_all()
        assert names(schedule, now) == []
    assert names(schedule, 100 + MIN_SPACING_SECONDS) == NAMES
    schedule.on_failure("os", 110)
    schedule.schedule_all_now()
    assert schedule.next_due_at() == 110, "those that have not run since"
    schedule.clear_failures_and_schedule_all()
    assert "os" not in names(schedule, 119)
    assert "os" in names(schedule, 120)


def test_a_collector_with_a_short_interval_keeps_it_after_a_start() -> None:
    schedule = GuestSchedule(GUEST_COLLECTORS, GuestIntervalsConfig(freeze=2))
    schedule.on_success("freeze", 100)
    schedule.clear_failures_and_schedule_all()
    assert "freeze" in names(schedule, 102)
