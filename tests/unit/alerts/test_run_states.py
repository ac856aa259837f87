"""Alerts of stopped guests: they are resolved when the guest runs, and an older event or poll never changes them."""

from collections.abc import Callable

import pytest

from agent.alerts.failure_rules import FAILURE_EVENT_RULES, RUN_STATE_RULES, RunStateRule
from tests.lab.alert_scenario import SECOND, AlertScenario, Change, event_record
from tests.lab.thin_disks import GIB, VM, Disk

DISK_FULL = ("disk_full", "disk0")


@pytest.fixture
def scenario() -> AlertScenario:
    """A scenario with an attached VM that runs."""
    scenario = AlertScenario()
    scenario.attach()
    scenario.run_state("running", 1)
    scenario.disks(1, disk0=Disk(offset=50 * GIB))
    return scenario


# --- Order ---


def test_an_error_older_than_resume_fires_nothing(scenario: AlertScenario) -> None:
    assert scenario.io_error(10.0) == [(*DISK_FULL, "firing")]
    scenario.event("STOP", 10.1)
    assert scenario.event("RESUME", 11.0) == [(*DISK_FULL, "resolved")]
    assert scenario.io_error(10.05) == [], "one of the requests that failed before the stop"
    assert scenario.firing() == set()
    assert scenario.io_error(11.5) == [(*DISK_FULL, "firing")], "the guest is stopped again"


def test_a_resume_older_than_the_error_resolves_nothing(scenario: AlertScenario) -> None:
    scenario.io_error(10.0)
    assert scenario.event("RESUME", 9.0) == []
    assert scenario.run_state("running", 9.5) == []
    assert scenario.firing() == {DISK_FULL}


def test_a_repeated_error_outranks_a_delayed_resume(scenario: AlertScenario) -> None:
    scenario.io_error(10.0)
    scenario.io_error(12.0)
    assert scenario.event("RESUME", 11.0) == []
    assert scenario.event("RESUME", 13.0) == [(*DISK_FULL, "resolved")]


def test_a_later_poll_of_a_running_guest_resolves_the_pause(scenario: AlertScenario) -> None:
    scenario.io_error(10.0)
    scenario.event("STOP", 10.1)
    assert scenario.run_state("io-error", 10.2) == []
    assert scenario.run_state("running", 20.0) == [(*DISK_FULL, "resolved")], "RESUME was lost"


def test_a_poll_between_the_error_and_the_stop_resolves_nothing(scenario: AlertScenario) -> None:
    scenario.io_error(10.0)
    assert scenario.run_state("running", 10.001) == [], "QEMU stops the guest after it has emitted the event"
    scenario.event("STOP", 10.002)
    assert scenario.firing() == {DISK_FULL}


def test_a_pause_is_polled_until_it_ends(scenario: AlertScenario) -> None:
    assert "runstate" not in scenario.engine.threshold_commands.pop_collectors_to_poll(VM)
    scenario.io_error(10.0)
    scenario.tick(11.0)
    assert "runstate" in scenario.engine.threshold_commands.pop_collectors_to_poll(VM)


def test_a_reset_does_not_end_what_stops_the_guest(scenario: AlertScenario) -> None:
    scenario.io_error(10.0)
    scenario.event("STOP", 10.1)
    assert scenario.event("RESET", 12.0) == []
    assert scenario.run_state("prelaunch", 12.1) == []
    assert scenario.firing() == {DISK_FULL}
    assert scenario.event("RESUME", 13.0) == [(*DISK_FULL, "resolved")]


def test_thirty_quick_pauses_end_without_an_alert(scenario: AlertScenario) -> None:
    for n in range(30):
        begin = 10 + n * 0.03
        for request in range(8):
            scenario.io_error(begin + request / 1e6)
        scenario.event("STOP", begin + 0.001)
        scenario.event("RESUME", begin + 0.02)
    assert scenario.firing() == set()
    assert [record.data["state"] for record in scenario.emitted] == ["firing", "resolved"] * 30


def test_an_event_from_a_clock_that_is_ahead_counts_as_of_now(scenario: AlertScenario) -> None:
    ahead = event_record("BLOCK_IO_ERROR", 4000, action="stop", nospace=True, device="disk0")
    assert len(scenario.engine.on_event(ahead, "BLOCK_IO_ERROR", 10 * SECOND)) == 1
    assert scenario.run_state("io-error", 11) == []
    assert scenario.run_state("running", 20) == [(*DISK_FULL, "resolved")]


def test_a_clock_that_is_set_back_keeps_no_alert_for_ever(scenario: AlertScenario) -> None:
    scenario.run_state("running", 4000)
    scenario.io_error(4001)
    scenario.run_state("io-error", 4002)
    assert scenario.run_state("io-error", 402) == []
    assert scenario.event("RESUME", 403) == [(*DISK_FULL, "resolved")]
    assert scenario.io_error(404) == [(*DISK_FULL, "firing")]
    scenario.event("STOP", 404.1)
    assert scenario.run_state("running", 410) == [(*DISK_FULL, "resolved")]


# --- Run states ---


@pytest.mark.parametrize("rule", [rule for rule in RUN_STATE_RULES if not rule.seconds], ids=lambda rule: rule.status)
def test_a_run_state_without_an_event_fires_and_resolves(scenario: AlertScenario, rule: RunStateRule) -> None:
    status = rule.status
    expected = DISK_FULL if status == "io-error" else (rule.alert, "")
    changes = scenario.run_state(status, 10)
    changes += scenario.io_status(10.5, disk0="nospace")
    assert changes == [(*expected, "firing")]
    assert scenario.run_state(status, 20) == []
    assert scenario.run_state("running", 30) == [(*expected, "resolved")]


@pytest.mark.parametrize("rule", [rule for rule in RUN_STATE_RULES if rule.seconds], ids=lambda rule: rule.status)
def test_a_run_state_past_its_time_fires_and_resolves(scenario: AlertScenario, rule: RunStateRule) -> None:
    status, alert, seconds = rule.status, rule.alert, rule.seconds
    scenario.run_state(status, 10)
    assert scenario.tick(9 + seconds) == []
    assert scenario.tick(10 + seconds) == [(alert, "", "firing")]
    assert scenario.tick(20 + seconds) == []
    assert scenario.run_state("running", 30 + seconds) == [(alert, "", "resolved")]


def test_a_vm_that_waits_for_its_operator_fires_nothing() -> None:
    scenario = AlertScenario()
    scenario.attach()
    for status in ("prelaunch", "paused", "inmigrate", "finish-migrate", "debug"):
        assert scenario.run_state(status, 10) == []
        assert scenario.tick(1000) == []


def test_every_event_that_stops_a_guest_has_a_rule_for_its_run_state() -> None:
    assert {rule.status for rule in FAILURE_EVENT_RULES if rule.status} <= {rule.status for rule in RUN_STATE_RULES}


def test_a_guest_that_migrated_while_it_stood_resolves_at_its_source(scenario: AlertScenario) -> None:
    scenario.io_error(10.0)
    assert scenario.run_state("postmigrate", 20) == [(*DISK_FULL, "resolved")]


# --- Postcopy ---


def test_a_paused_postcopy_fires_until_the_migration_continues(scenario: AlertScenario) -> None:
    assert scenario.event("MIGRATION", 10, status="postcopy-paused") == [("postcopy_paused", "", "firing")]
    assert scenario.migration("postcopy-active", 9) == [], "the poll is older"
    assert scenario.migration("postcopy-recover", 11) == []
    assert scenario.migration("postcopy-active", 13) == [("postcopy_paused", "", "resolved")]


POSTCOPY_PAUSED = ("postcopy_paused", "")
RECOVERY_FAILED = ("postcopy_recovery_failed", "")
MigrationInput = Callable[[AlertScenario, str, float], list[Change]]
BY_EVENT_AND_BY_POLL: list[MigrationInput] = [
    lambda scenario, status, at: scenario.event("MIGRATION", at, status=status),
    lambda scenario, status, at: scenario.migration(status, at),
]


@pytest.mark.parametrize("status", ["postcopy-paused", "postcopy-recover-setup", "postcopy-recover"])
@pytest.mark.parametrize("report", BY_EVENT_AND_BY_POLL, ids=["event", "poll"])
def test_a_postcopy_that_waits_fires_from_the_first_status(
    scenario: AlertScenario, report: MigrationInput, status: str
) -> None:
    assert report(scenario, status, 10) == [(*POSTCOPY_PAUSED, "firing")]
    assert report(scenario, status, 11) == []


@pytest.mark.parametrize("attempt", [("postcopy-recover",), ("postcopy-recover-setup", "postcopy-recover")])
@pytest.mark.parametrize("report", BY_EVENT_AND_BY_POLL, ids=["event", "poll"])
def test_a_failed_recovery_fires_until_a_recovery_succeeds(
    scenario: AlertScenario, report: MigrationInput, attempt: tuple[str, ...]
) -> None:
    report(scenario, "postcopy-paused", 10)
    for number, status in enumerate(attempt):
        assert report(scenario, status, 11 + number) == []
    assert report(scenario, "postcopy-paused", 14) == [(*RECOVERY_FAILED, "firing")]
    assert report(scenario, "postcopy-recover", 15) == [], "the next attempt has not succeeded yet"
    assert report(scenario, "postcopy-paused", 16) == []
    assert report(scenario, "postcopy-recover", 17) == []
    changes = report(scenario, "postcopy-active", 18)
    assert changes == [(*POSTCOPY_PAUSED, "resolved"), (*RECOVERY_FAILED, "resolved")]


@pytest.mark.parametrize("before", ["postcopy-paused", "postcopy-recover-setup", "postcopy-recover"])
@pytest.mark.parametrize("end", ["failing", "failed", "cancelled"])
@pytest.mark.parametrize("report", BY_EVENT_AND_BY_POLL, ids=["event", "poll"])
def test_a_paused_postcopy_that_fails_fires_as_long_as_the_process_lives(
    scenario: AlertScenario, report: MigrationInput, end: str, before: str
) -> None:
    report(scenario, before, 10)
    assert report(scenario, end, 11) == [(*POSTCOPY_PAUSED, "resolved"), (*RECOVERY_FAILED, "firing")]
    assert report(scenario, end, 12) == []
    scenario.detach(at=20, permanently=True)
    assert scenario.tick(100) == [(*RECOVERY_FAILED, "resolved")]


def test_a_failed_precopy_migration_is_no_failed_recovery(scenario: AlertScenario) -> None:
    for at, status in enumerate(("setup", "active", "failed")):
        assert scenario.migration(status, 10 + at) == []


def test_a_recovery_that_failed_is_known_after_a_restart_of_the_agent(scenario: AlertScenario) -> None:
    scenario.migration("postcopy-paused", 10)
    scenario.restart()
    scenario.attach()
    assert scenario.migration("failed", 20) == [(*POSTCOPY_PAUSED, "resolved"), (*RECOVERY_FAILED, "firing")]
    scenario.restart()
    scenario.attach()
    assert scenario.migration("failed", 30) == []
    assert scenario.migration("setup", 40) == [(*RECOVERY_FAILED, "resolved")]


# --- Restarts ---


@pytest.mark.parametrize(("has_run", "pid", "fires"), [(True, 7, True), (False, 7, False), (True, 8, False)])
def test_a_reset_of_a_stopped_guest_is_known_after_a_restart_of_the_agent(
    has_run: bool,  # noqa: FBT001 - a parameter of the test
    pid: int,
    fires: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    scenario = AlertScenario()
    scenario.live_pids = {7}
    scenario.attach(pid=7)
    scenario.run_state("running" if has_run else "prelaunch", 1)
    scenario.tick(2)
    scenario.restart(3)
    scenario.attach(at=4, pid=pid)
    scenario.run_state("prelaunch", 5)
    assert scenario.tick(64) == []
    assert scenario.tick(66) == ([("reset_stopped", "", "firing")] if fires else [])


def test_a_guest_that_runs_is_stored_once() -> None:
    scenario = AlertScenario()
    scenario.attach(at=2, pid=7)
    scenario.run_state("running", 3)
    assert len(scenario.engine.persistence.entries_to_store()) == 1
    assert scenario.engine.persistence.entries_to_store() == []
    scenario.run_state("paused", 4)
    assert scenario.engine.persistence.entries_to_store() == []


def test_a_pause_outlives_a_restart_of_the_agent(scenario: AlertScenario) -> None:
    scenario.io_error(10.0)
    scenario.restart()
    scenario.attach()
    assert scenario.run_state("io-error", 20) == []
    assert scenario.event("RESUME", 15) == [], "older than the poll"
    assert scenario.run_state("running", 30) == [(*DISK_FULL, "resolved")]
