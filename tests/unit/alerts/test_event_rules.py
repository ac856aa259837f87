"""Alerts on events: the built-in rules, counted events, events that resolve an alert, and limits of memory."""

import pytest

from agent.alerts.rules.comparison import FieldComparison, Operator
from agent.alerts.rules.event_rules import EVENT_ALERT_RULES
from agent.alerts.rules.overrides import AlertOverride, AlertOverrides
from agent.alerts.rules.rule_types import EventAlertRule, EventMatch
from agent.alerts.rules.sample_rule_evaluator import MAX_RULE_SUBJECTS
from agent.model.event_table import EVENT_DEFINITIONS_BY_NAME
from agent.model.qmp_event_fields import EVENT_FIELDS
from agent.model.record import Severity
from tests.lab.alert_scenario import SECOND, AlertScenario, event_record
from tests.lab.thin_disks import VM


@pytest.mark.parametrize(
    ("alert", "kind"), [("vhost_user_lost", "VHOST_USER"), ("netdev_stream_lost", "STREAM")], ids=["vhost", "stream"]
)
def test_a_backend_that_stays_away_is_lost_until_it_connects(scenario: AlertScenario, alert: str, kind: str) -> None:
    scenario.event(f"NETDEV_{kind}_DISCONNECTED", 10, netdev_id="net0")
    assert scenario.tick(19) == []
    assert scenario.tick(20) == [(alert, "net0", "firing")]
    assert scenario.event(f"NETDEV_{kind}_CONNECTED", 30, netdev_id="net1") == []
    assert scenario.event(f"NETDEV_{kind}_CONNECTED", 31, netdev_id="net0") == [(alert, "net0", "resolved")]


def test_a_backend_that_restarts_within_ten_seconds_is_no_alert(scenario: AlertScenario) -> None:
    scenario.event("NETDEV_VHOST_USER_DISCONNECTED", 10, netdev_id="net0")
    scenario.event("NETDEV_VHOST_USER_CONNECTED", 15, netdev_id="net0")
    assert scenario.tick(60) == []
    assert scenario.engine.rules.events._delayed == {}


def test_the_time_of_a_lost_backend_begins_with_the_first_event(scenario: AlertScenario) -> None:
    scenario.event("NETDEV_VHOST_USER_DISCONNECTED", 10, netdev_id="net0")
    scenario.event("NETDEV_VHOST_USER_DISCONNECTED", 15, netdev_id="net0")
    assert scenario.tick(20) == [("vhost_user_lost", "net0", "firing")]


def test_an_older_event_does_not_end_an_alert_that_waits_or_fires(scenario: AlertScenario) -> None:
    scenario.event("NETDEV_VHOST_USER_DISCONNECTED", 10, netdev_id="net0")
    scenario.event("NETDEV_VHOST_USER_CONNECTED", 9, netdev_id="net0")
    assert scenario.tick(20) == [("vhost_user_lost", "net0", "firing")]
    assert scenario.event("NETDEV_VHOST_USER_CONNECTED", 9, netdev_id="net0") == []


def test_a_backend_of_a_vm_that_ended_is_no_alert(scenario: AlertScenario) -> None:
    scenario.event("NETDEV_VHOST_USER_DISCONNECTED", 10, netdev_id="net0")
    scenario.detach(at=12, permanently=True)
    assert scenario.tick(25) == []


def test_a_lost_backend_is_resolved_after_a_restart_of_the_agent(scenario: AlertScenario) -> None:
    scenario.event("NETDEV_VHOST_USER_DISCONNECTED", 10, netdev_id="net0")
    scenario.tick(20)
    scenario.restart()
    scenario.attach()
    assert scenario.event("NETDEV_VHOST_USER_CONNECTED", 30, netdev_id="net0") == [
        ("vhost_user_lost", "net0", "resolved")
    ]


def test_the_helper_of_reservations_is_lost_by_the_value_of_one_field(scenario: AlertScenario) -> None:
    scenario.event("PR_MANAGER_STATUS_CHANGED", 10, id="pr0", connected=True)
    scenario.event("PR_MANAGER_STATUS_CHANGED", 20, id="pr0", connected=False)
    assert scenario.tick(30) == [("pr_manager_lost", "pr0", "firing")]
    assert scenario.event("PR_MANAGER_STATUS_CHANGED", 40, id="pr0", connected=True) == [
        ("pr_manager_lost", "pr0", "resolved")
    ]


def test_five_resets_by_the_guest_within_a_quarter_of_an_hour_are_a_loop(scenario: AlertScenario) -> None:
    for at in (0, 200, 400, 600):
        assert scenario.event("RESET", at, guest=True, reason="guest-reset") == []
    assert scenario.event("RESET", 800, guest=False, reason="host-qmp-system-reset") == []
    assert scenario.event("RESET", 850, guest=True, reason="guest-reset") == [("reset_loop", "", "firing")]
    assert scenario.emitted[-1].data["count"] == 5
    assert scenario.event("RESET", 1000, guest=True, reason="guest-reset") == []
    assert scenario.tick(1000 + 899) == []
    assert scenario.tick(1000 + 900) == [("reset_loop", "", "resolved")]


def test_resets_over_a_day_are_no_loop(scenario: AlertScenario) -> None:
    for at in range(0, 86400, 300):
        assert scenario.event("RESET", at, guest=True, reason="guest-reset") == []


def test_the_config_changes_the_number_and_the_time_of_counted_events(scenario: AlertScenario) -> None:
    scenario.engine.set_overrides(AlertOverrides([AlertOverride("reset_loop", limit=2.0, seconds=60.0)]), ())
    assert scenario.event("RESET", 0, guest=True, reason="guest-reset") == []
    assert scenario.event("RESET", 60, guest=True, reason="guest-reset") == []
    assert scenario.event("RESET", 119, guest=True, reason="guest-reset") == [("reset_loop", "", "firing")]


def test_an_event_that_is_much_older_is_not_counted_with_newer_ones(scenario: AlertScenario) -> None:
    scenario.engine.set_overrides(AlertOverrides([AlertOverride("reset_loop", limit=2.0, seconds=60.0)]), ())
    for at in (1000, 900):
        assert scenario.event("RESET", at, guest=True, reason="guest-reset") == []
    assert scenario.event("RESET", 950, guest=True, reason="guest-reset") == [("reset_loop", "", "firing")]


def test_a_limit_below_one_event_is_one_event(scenario: AlertScenario) -> None:
    scenario.engine.set_overrides(AlertOverrides([AlertOverride("reset_loop", limit=0.0)]), ())
    assert scenario.event("RESET", 0, guest=True, reason="guest-reset") == [("reset_loop", "", "firing")]
    assert scenario.emitted[-1].data["count"] == 1


def own(alert: str = "vnc", **options: object) -> EventAlertRule:
    fields = {"match": EventMatch("VNC_CONNECTED"), "severity": Severity.INFO, "help": "VNC.", "custom": True} | options
    return EventAlertRule(alert=alert, **fields)  # type: ignore[arg-type]


def test_an_own_alert_on_an_event_is_resolved_by_events_of_the_same_client(scenario: AlertScenario) -> None:
    row = own(resolved_by=(EventMatch("VNC_DISCONNECTED"), EventMatch("SHUTDOWN")))
    scenario.engine.set_overrides(AlertOverrides(), [row])
    for host in ("10.0.0.1", "10.0.0.2"):
        assert scenario.event("VNC_CONNECTED", 10, client={"host": host}) == [("vnc", host, "firing")]
    assert scenario.emitted[-1].type == "qemu.alert.custom"
    assert scenario.event("VNC_DISCONNECTED", 20, client={"host": "10.0.0.1"}) == [("vnc", "10.0.0.1", "resolved")]
    assert scenario.event("SHUTDOWN", 30, guest=True, reason="guest-shutdown") == [("vnc", "10.0.0.2", "resolved")]


def test_an_own_alert_tests_fields_and_patterns_and_ends_by_time(scenario: AlertScenario) -> None:
    test = FieldComparison(("client", "host"), Operator.UNEQUAL, "10.0.0.1")
    row = own(match=EventMatch("VNC_CONNECTED", (test,)), device="10.*", resolve_after_seconds=60.0)
    scenario.engine.set_overrides(AlertOverrides(), [row])
    assert scenario.event("VNC_CONNECTED", 10, client={"host": "10.0.0.1"}) == []
    assert scenario.event("VNC_CONNECTED", 10, client={"host": "192.0.2.1"}) == []
    assert scenario.event("VNC_CONNECTED", 10, client={}) == []
    assert scenario.event("VNC_CONNECTED", 10, client={"host": "10.0.0.2"}) == [("vnc", "10.0.0.2", "firing")]
    assert scenario.tick(70) == [("vnc", "10.0.0.2", "resolved")]


def test_a_hostile_vm_cannot_fill_the_memory_of_events(scenario: AlertScenario) -> None:
    row = own(limit=2.0, seconds=60.0, resolve_after_seconds=60.0)
    scenario.engine.set_overrides(AlertOverrides(), [row])
    for number in range(2 * MAX_RULE_SUBJECTS):
        scenario.event("VNC_CONNECTED", 10, client={"host": f"h{number}"})
        scenario.event("NETDEV_VHOST_USER_DISCONNECTED", 10, netdev_id=f"net{number}")
    (state,) = scenario.engine._processes.processes_with_uuid(VM.uuid)
    scenario.event("NETDEV_VHOST_USER_DISCONNECTED", 11, netdev_id="net0")
    assert len(state.rule_state.events) == MAX_RULE_SUBJECTS
    assert len(scenario.tick(20)) == MAX_RULE_SUBJECTS
    assert scenario.engine.store.suppressed == 2 * MAX_RULE_SUBJECTS, "one that waits already is not suppressed"


def test_the_time_that_an_alert_lasts_begins_when_its_event_is_read(scenario: AlertScenario) -> None:
    scenario.engine.set_overrides(AlertOverrides(), [own(resolve_after_seconds=60.0)])
    event = event_record("VNC_CONNECTED", 10, client={"host": "h"})
    assert len(scenario.engine.on_event(event, "VNC_CONNECTED", 15 * SECOND)) == 1
    assert scenario.tick(74) == []
    assert scenario.tick(75) == [("vnc", "h", "resolved")]


def test_the_time_that_a_delayed_alert_lasts_begins_when_it_fires(scenario: AlertScenario) -> None:
    scenario.engine.set_overrides(AlertOverrides(), [own(seconds=100.0, resolve_after_seconds=60.0)])
    assert scenario.event("VNC_CONNECTED", 10, client={"host": "h"}) == []
    assert scenario.tick(110) == [("vnc", "h", "firing")]
    assert scenario.tick(169) == []
    assert scenario.tick(170) == [("vnc", "h", "resolved")]


def test_a_copied_field_of_an_event_is_a_safe_text_a_number_or_a_flag(scenario: AlertScenario) -> None:
    scenario.engine.set_overrides(AlertOverrides(), [own(copied_fields=("text", "number", "flag", "list", "absent"))])
    scenario.event("VNC_CONNECTED", 10, text="a\x1b[31m", number=5, flag=True, list=[1])
    copied = {
        name: value for name, value in scenario.emitted[-1].data.items() if name in ("text", "number", "flag", "list")
    }
    assert copied == {"text": "a\ufffd[31m", "number": 5, "flag": True}


def test_no_more_events_are_stored_than_the_limit_needs(scenario: AlertScenario) -> None:
    scenario.engine.set_overrides(AlertOverrides(), [own(limit=2.0, seconds=60.0, resolve_after_seconds=60.0)])
    for at in range(10):
        scenario.event("VNC_CONNECTED", at, client={"host": "h"})
    (state,) = scenario.engine._processes.processes_with_uuid(VM.uuid)
    assert [len(times) for times in state.rule_state.events.values()] == [2]


def test_each_row_names_events_and_fields_that_exist() -> None:
    assert len({row.alert for row in EVENT_ALERT_RULES}) == len(EVENT_ALERT_RULES)
    for row in EVENT_ALERT_RULES:
        for match in (row.match, *row.resolved_by):
            assert {".".join(test.path) for test in match.where} <= EVENT_FIELDS[match.event].keys()
        assert set(row.copied_fields) <= EVENT_FIELDS[row.match.event].keys()


def test_the_fields_of_events_are_known_for_each_event() -> None:
    assert EVENT_FIELDS.keys() == EVENT_DEFINITIONS_BY_NAME.keys()
    assert {kind for fields in EVENT_FIELDS.values() for kind in fields.values()} == {"flag", "number", "text"}
    for row in EVENT_DEFINITIONS_BY_NAME.values():
        assert set(row.subject_paths) <= EVENT_FIELDS[row.name].keys(), row.name
