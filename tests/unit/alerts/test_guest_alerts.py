"""Alerts about the inside of guests."""

import pytest

from agent.alerts.disk_levels import parse_disk_level
from agent.alerts.guest_policy import GuestAlertPolicy
from agent.model.family import Sample
from agent.model.metrics.guest import GUEST_AGENT_SESSION, GUEST_CLOCK, GUEST_FREEZE
from agent.model.record import Severity
from tests.lab.alert_scenario import SECOND, AlertScenario, Change
from tests.lab.thin_disks import VM

LOST = ("guest_agent_lost", "")
DATA = ("guest_filesystem_space", "/data")
FROZEN = ("guest_frozen", "")
CLOCK = ("guest_clock_offset", "")


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


# --- The session with the guest agent ---


def session(scenario: AlertScenario, at: float, state: str) -> list[Change]:
    return scenario.guest(at, GUEST_AGENT_SESSION, Sample(GUEST_AGENT_SESSION, (), {"state": state}))


def test_an_agent_that_does_not_respond_for_five_minutes_is_lost(scenario: AlertScenario) -> None:
    scenario.guest_channel(10, connected=True)
    session(scenario, 20, "unresponsive")
    session(scenario, 200, "unresponsive")
    assert scenario.tick(319) == []
    assert scenario.tick(320) == [(*LOST, "firing")]
    assert scenario.emitted[-1].data["reason"] == "unresponsive"
    assert scenario.guest_channel(330, connected=True) == [], "an open channel is no response"
    assert session(scenario, 340, "up") == [(*LOST, "resolved")]


def test_an_agent_that_is_not_queried_is_not_unresponsive(scenario: AlertScenario) -> None:
    scenario.guest_channel(10, connected=True)
    session(scenario, 20, "suspended")
    session(scenario, 30, "busy")
    assert scenario.tick(1000) == []


# --- File systems ---


def test_a_file_system_fires_each_level_that_it_exceeds_and_resolves_it(scenario: AlertScenario) -> None:
    assert scenario.guest_filesystems(10, data=89, root=50) == []
    assert scenario.guest_filesystems(20, data=91) == [(*DATA, "firing")]
    assert scenario.emitted[-1].data["free_bytes"] == 9 << 30
    assert scenario.guest_filesystems(30, data=96) == [(*DATA, "firing")]
    assert scenario.guest_filesystems(40, data=94) == [], "within the hysteresis"
    assert scenario.guest_filesystems(50, data=92.5) == [(*DATA, "resolved")]
    assert scenario.emitted[-1].data["level"] == "95%"
    assert [record.severity for record in scenario.emitted[:2]] == [Severity.WARNING, Severity.CRITICAL]
    assert scenario.guest_filesystems(60, data=10) == [(*DATA, "resolved")]
    assert scenario.emitted[-1].data["resolved_by"] == "space"


def test_a_usage_that_equals_a_level_does_not_exceed_it(scenario: AlertScenario) -> None:
    assert scenario.guest_filesystems(10, data=90) == []


def test_an_unmounted_file_system_has_no_alert(scenario: AlertScenario) -> None:
    scenario.guest_filesystems(10, data=91)
    assert scenario.guest_filesystems(20, root=50) == [(*DATA, "resolved")]
    assert scenario.emitted[-1].data["resolved_by"] == "unmounted"


def test_a_lost_guest_agent_resolves_nothing(scenario: AlertScenario) -> None:
    scenario.guest_channel(5, connected=True)
    scenario.guest_filesystems(10, data=91)
    scenario.guest_channel(20, connected=False)
    session(scenario, 21, "absent")
    assert scenario.tick(100) == []
    assert DATA in scenario.firing()


def test_the_alert_of_a_file_system_survives_a_restart(scenario: AlertScenario) -> None:
    scenario.guest_filesystems(10, data=91)
    scenario.restart(20)
    scenario.attach(at=21)
    assert scenario.guest_filesystems(30, data=91) == []
    assert scenario.guest_filesystems(40, data=50) == [(*DATA, "resolved")]


def test_the_levels_depend_on_the_vm_and_the_mountpoint(scenario: AlertScenario) -> None:
    levels = {"/data": (parse_disk_level("free 20GiB"),)}
    scenario.engine.set_guest_policy(GuestAlertPolicy(lambda _vm, mountpoint: levels.get(mountpoint, ())))
    assert scenario.guest_filesystems(10, data=81, root=99) == [(*DATA, "firing")]


def test_a_level_that_is_no_longer_configured_is_resolved(scenario: AlertScenario) -> None:
    scenario.guest_filesystems(10, data=91)
    scenario.engine.set_guest_policy(GuestAlertPolicy(lambda _vm, _mountpoint: ()))
    assert scenario.guest_filesystems(20, data=91) == [(*DATA, "resolved")]
    assert scenario.emitted[-1].data["resolved_by"] == "level_gone"


# --- Freezes and clocks ---


def freeze(scenario: AlertScenario, at: float, *, frozen: bool) -> list[Change]:
    return scenario.guest(at, GUEST_FREEZE, Sample(GUEST_FREEZE, (), {"frozen": frozen}))


def test_file_systems_that_stay_frozen_fire_until_they_thaw(scenario: AlertScenario) -> None:
    freeze(scenario, 10, frozen=True)
    assert freeze(scenario, 129, frozen=True) == []
    assert freeze(scenario, 130, frozen=True) == [(*FROZEN, "firing")]
    assert scenario.emitted[-1].data["frozen_since_timestamp_seconds"] == 10
    assert freeze(scenario, 160, frozen=False) == [(*FROZEN, "resolved")]


def test_a_snapshot_freezes_only_for_a_short_time(scenario: AlertScenario) -> None:
    freeze(scenario, 10, frozen=True)
    freeze(scenario, 40, frozen=False)
    assert freeze(scenario, 200, frozen=True) == []


def test_a_reset_ends_a_freeze(scenario: AlertScenario) -> None:
    freeze(scenario, 10, frozen=True)
    freeze(scenario, 130, frozen=True)
    assert scenario.event("RESET", 140) == [(*FROZEN, "resolved")]


def clock(scenario: AlertScenario, at: float, offset: float, uncertainty: float = 0.0) -> list[Change]:
    values = {"offset_seconds": offset, "uncertainty_seconds": uncertainty}
    return scenario.guest(at, GUEST_CLOCK, Sample(GUEST_CLOCK, (), values))


@pytest.mark.parametrize("offset", [11.0, -11.0])
def test_a_clock_that_is_off_in_two_polls_fires_until_it_is_right(scenario: AlertScenario, offset: float) -> None:
    assert clock(scenario, 10, offset) == []
    assert clock(scenario, 310, offset) == [(*CLOCK, "firing")]
    assert clock(scenario, 610, 0.1) == [(*CLOCK, "resolved")]


def test_an_offset_within_the_uncertainty_fires_nothing(scenario: AlertScenario) -> None:
    for at in (10, 310, 610):
        assert clock(scenario, at, 11.0, 2.0) == []
    clock(scenario, 910, 11.0)
    clock(scenario, 1210, 0.0)
    assert clock(scenario, 1510, 11.0) == [], "not in a row"


@pytest.mark.parametrize("values", [{}, {"uncertainty_seconds": 0.0}, {"offset_seconds": 0.1}])
def test_a_sample_without_the_offset_of_the_clock_or_its_error_changes_nothing(
    scenario: AlertScenario, values: dict[str, float]
) -> None:
    clock(scenario, 10, 11.0)
    assert scenario.guest(310, GUEST_CLOCK, Sample(GUEST_CLOCK, (), values)) == []
    assert clock(scenario, 610, 11.0) == [(*CLOCK, "firing")], "the polls that know the offset count in a row"
    assert scenario.guest(910, GUEST_CLOCK, Sample(GUEST_CLOCK, (), values)) == []


def test_alerts_of_a_guest_that_is_no_longer_queried_end(scenario: AlertScenario) -> None:
    scenario.guest_channel(5, connected=True)
    scenario.guest_filesystems(10, data=91)
    freeze(scenario, 10, frozen=True)
    freeze(scenario, 200, frozen=True)
    scenario.engine.on_guest_queries_disabled(VM, 300 * SECOND)
    assert scenario.firing() == set()


def test_an_agent_that_closed_its_channel_stays_lost_without_queries(scenario: AlertScenario) -> None:
    scenario.guest_channel(10, connected=True)
    scenario.guest_channel(20, connected=False)
    scenario.tick(320)
    assert scenario.engine.on_guest_queries_disabled(VM, 330 * SECOND) == []
    assert scenario.firing() == {LOST}
