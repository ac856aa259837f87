"""Alerts about the inside of guests."""

import pytest

from tests.lab.alert_scenario import AlertScenario

LOST = ("guest_agent_lost", "")


@pytest.fixture
def scenario() -> AlertScenario:
    """A scenario with an attached VM that runs."""
    scenario = AlertScenario()
    scenario.attach()
    scenario.run_state("running", 1)
    return scenario


def test_an_agent_that_stays_away_for_five_minutes_is_lost_until_it_is_back(scenario: AlertScenario) -> None:
    scenario.guest_channel(10, connected=True)
    scenario.guest_channel(20, connected=False)
    scenario.guest_channel(250, connected=False)
    assert scenario.tick(319) == []
    assert scenario.tick(320) == [(*LOST, "firing")]
    assert scenario.tick(400) == []
    assert scenario.guest_channel(500, connected=True) == [(*LOST, "resolved")]
    assert scenario.tick(1000) == []


def test_a_reboot_does_not_lose_the_agent(scenario: AlertScenario) -> None:
    scenario.guest_channel(10, connected=True)
    scenario.guest_channel(20, connected=False)
    scenario.guest_channel(100, connected=True)
    assert scenario.tick(1000) == []


def test_a_guest_that_never_had_an_agent_has_lost_none(scenario: AlertScenario) -> None:
    scenario.guest_channel(10, connected=False)
    assert scenario.tick(1000) == []


def test_a_stopped_guest_has_not_lost_its_agent(scenario: AlertScenario) -> None:
    scenario.guest_channel(10, connected=True)
    scenario.run_state("paused", 15)
    scenario.guest_channel(20, connected=False)
    assert scenario.tick(1000) == []


def test_a_lost_agent_stays_lost_across_a_restart(scenario: AlertScenario) -> None:
    scenario.guest_channel(10, connected=True)
    scenario.guest_channel(20, connected=False)
    scenario.tick(320)
    scenario.restart(400)
    scenario.attach(at=401)
    scenario.run_state("running", 402)
    assert scenario.guest_channel(403, connected=False) == []
    assert scenario.firing() == {LOST}
    assert scenario.guest_channel(404, connected=True) == [(*LOST, "resolved")]
