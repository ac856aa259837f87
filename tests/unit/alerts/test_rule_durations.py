"""Durations of conditions that have not elapsed yet: they go on when the agent restarts, as long as the VM's process is the same."""

from typing import Any, Final

import pytest

from agent.alerts.persistence import PENDING_SECONDS
from agent.alerts.rules.sample_rules import HOUR
from agent.model.family import Sample
from agent.model.metrics.jobs import JOB
from tests.lab.alert_scenario import SECOND, AlertScenario

PAUSED: Final = Sample(JOB, ("backup0", "backup"), {"status": "paused"})
RUNNING: Final = Sample(JOB, ("backup0", "backup"), {"status": "running"})


def hold_until_restart(scenario: AlertScenario, seconds: float) -> None:
    """Let a condition hold for some time, with ticks, and restart the agent."""
    scenario.detach(permanently=True)
    scenario.tick(0)
    scenario.attach(pid=7)
    scenario.samples(0, JOB, PAUSED)
    for at in (1, PENDING_SECONDS - 1, PENDING_SECONDS, seconds):
        if at <= seconds:
            scenario.tick(at)
    scenario.restart()


def test_a_clock_that_is_set_back_starts_the_time_of_a_condition_again(scenario: AlertScenario) -> None:
    assert scenario.samples(10 * HOUR, JOB, PAUSED) == []
    assert scenario.samples(HOUR, JOB, PAUSED) == []
    assert scenario.samples(2 * HOUR - 1, JOB, PAUSED) == []
    assert scenario.samples(2 * HOUR, JOB, PAUSED) == [("job_paused", "backup0", "firing")]


def test_the_time_of_a_condition_goes_on_when_the_agent_restarts(scenario: AlertScenario) -> None:
    hold_until_restart(scenario, HOUR - 10)
    scenario.attach(pid=7)
    assert scenario.samples(HOUR - 1, JOB, PAUSED) == []
    assert scenario.samples(HOUR, JOB, PAUSED) == [("job_paused", "backup0", "firing")]


def test_the_time_of_a_condition_begins_again_in_another_process(scenario: AlertScenario) -> None:
    hold_until_restart(scenario, HOUR - 10)
    scenario.attach(pid=8)
    assert scenario.samples(HOUR, JOB, PAUSED) == []
    assert scenario.samples(2 * HOUR, JOB, PAUSED) == [("job_paused", "backup0", "firing")]


def test_the_time_of_a_condition_that_ended_during_the_restart_begins_again(scenario: AlertScenario) -> None:
    hold_until_restart(scenario, HOUR - 10)
    scenario.attach(pid=7)
    assert scenario.samples(HOUR - 5, JOB, RUNNING) == []
    assert scenario.samples(HOUR, JOB, PAUSED) == []
    assert scenario.samples(2 * HOUR, JOB, PAUSED) == [("job_paused", "backup0", "firing")]


def test_a_condition_is_stored_once_it_has_held_for_a_minute_and_once_it_has_ended(scenario: AlertScenario) -> None:
    def due(at: float) -> list[Any]:
        entries = scenario.engine.persistence.entries_to_store(int(at * SECOND))
        return [value and value["processes"][0].get("pending") for _, value in entries]

    due(0)
    scenario.samples(1, JOB, PAUSED)
    assert due(PENDING_SECONDS) == []
    assert due(PENDING_SECONDS + 1) == [[["job_paused", "backup0", "", SECOND]]]
    assert due(PENDING_SECONDS + 2) == []
    scenario.samples(PENDING_SECONDS + 3, JOB, RUNNING)
    assert due(PENDING_SECONDS + 3) == [None]
    assert due(PENDING_SECONDS + 4) == []


@pytest.mark.parametrize("entry", [None, 5, [[]], [["a", "b", "c", "d"]], [["a", 1, "c", 1]], {"a": 1}])
def test_a_damaged_entry_of_conditions_is_ignored(scenario: AlertScenario, entry: Any) -> None:
    hold_until_restart(scenario, HOUR - 10)
    (name,) = [name for name in scenario.entries if name.startswith("alerts/")]
    scenario.entries[name]["processes"][0]["pending"] = entry
    scenario.restart()
    scenario.attach(pid=7)
    assert scenario.samples(HOUR, JOB, PAUSED) == []
