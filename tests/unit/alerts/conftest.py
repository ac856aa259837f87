"""Fixture of the alert tests: a VM that runs."""

import pytest

from tests.lab.alert_scenario import AlertScenario


@pytest.fixture
def scenario() -> AlertScenario:
    """A scenario with an attached VM that runs."""
    scenario = AlertScenario()
    scenario.attach()
    scenario.run_state("running", 1)
    return scenario
