"""All VMs' alerts where processes, monitors and the agent come and go; what is plain is in tests/unit."""

import json
from dataclasses import replace
from typing import Any

import pytest

from agent.alerts.manager import AWAY_SECONDS, NOTE_PREFIX, AlertManager, PendingAlert
from agent.alerts.rules import HOUR, RULES
from agent.alerts.threshold_types import ThresholdMode
from agent.model.metrics.block import BLOCK_LAYER
from agent.model.record import Record, Severity, Vm
from tests.lab.threshold_model import HOST, UUID, VM, Agent, Journal, Qemu

TWIN = replace(VM, monitor="/run/other.qmp")
SIZE = 1000


def agent(qemu: Qemu | None = None, journal: Journal | None = None) -> Agent:
    """Return an agent that has not met anybody yet."""
    return Agent(qemu or Qemu("host_device", SIZE), journal or Journal(), ThresholdMode.ARM, 0.0)


def watching(used: int = 0) -> Agent:
    """Return an agent that has looked at the disk, which is written so far."""
    one = agent()
    one.qemu.node.write(max(used, 1))
    one.alert_manager.on_attached(VM)
    one.hear(one.qemu.look(with_nodes=True), 0.0)
    return one


def event(name: str, vm: Vm = VM, subject: str = "", time_ns: int = 7, **data: Any) -> Record:
    body: dict[str, Any] = {"event": name, "category": "x", "qemu": data}
    return Record(f"qemu.event.{name.lower()}", vm, body, time_ns, subject)


def hear(one: AlertManager, name: str, vm: Vm = VM, subject: str = "", **data: Any) -> list[tuple[str, str]]:
    return said(one.on_event(event(name, vm, subject, **data), name, 7))


def said(told: list[PendingAlert]) -> list[tuple[str, str]]:
    return [(one.record.data["alert"], one.record.data["state"]) for one in told]


def restarted(one: Agent) -> Agent:
    """Return the agent of the next run, everything having been on disk."""
    one.journal.commit()
    return agent(one.qemu, one.journal)


NO_SPACE: dict[str, Any] = {"action": "stop", "nospace": True, "operation": "write"}


# --- What is kept, and when ---


def test_each_of_several_records_has_the_note_of_what_was_told_by_then() -> None:
    one = watching(960)
    firing = [len(told.note[1]["firing"]) for told in one.alert_manager.tick(0, 0)]
    assert firing == []
    rungs = [value["disks"]["disk0"]["exceeded"] for _, _, value in one.journal.coming]
    assert rungs == [["80%"], ["80%", "90%"], ["80%", "90%", "95%"]]
    assert [len(value["firing"]) for _, _, value in one.journal.coming] == [1, 2, 3]


def test_a_note_that_is_made_before_the_disks_were_seen_again_forgets_none_of_them() -> None:
    two = restarted(watching(850))
    two.alert_manager.on_attached(VM)
    (told,) = two.alert_manager.on_event(event("WATCHDOG", action="none"), "WATCHDOG", 7)
    assert told.note[1]["disks"]["disk0"]["exceeded"] == ["80%"]


def test_a_vm_that_is_gone_leaves_nothing_behind_though_it_had_no_alert() -> None:
    one = watching()
    assert len(one.pending_commands()) == 1
    assert one.journal.coming[-1][2] is not None
    one.alert_manager.on_gone(VM, 0, for_good=True)
    assert one.alert_manager.stale_notes() == []
    assert one.alert_manager.tick(1, 0) == []
    assert one.alert_manager.stale_notes() == [UUID]
    assert one.alert_manager.state_note(UUID) == (NOTE_PREFIX + UUID, None)
    assert one.alert_manager.stale_notes() == []


def test_what_was_kept_of_a_vm_that_never_comes_back_is_forgotten() -> None:
    one = watching()
    one.pending_commands()
    two = restarted(one)
    assert two.alert_manager.stale_notes() == []
    two.alert_manager.tick(AWAY_SECONDS, 0)
    assert two.alert_manager.stale_notes() == [UUID]


def test_fingerprints_are_the_same_over_restarts_and_processes() -> None:
    one = watching(850)
    two = restarted(one)
    assert [alert.fingerprint for alert in two.alert_manager.store] == [
        alert.fingerprint for alert in one.alert_manager.store
    ]
    two.alert_manager.on_attached(TWIN)
    two.qemu.node.medium.size = 2 * SIZE
    two.tell(two.alert_manager.on_samples(TWIN, two.qemu.samples(two.qemu.look(with_nodes=True)), 1, 1)[0])
    assert two.told[0].data["state"] == "resolved"
    assert two.told[0].data["fingerprint"] == one.told[0].data["fingerprint"]


# --- Orders ---


def test_a_slot_is_not_written_on_an_old_look_at_it() -> None:
    one = watching()
    assert len(one.pending_commands()) == 1
    one.alert_manager.on_command_done(VM, "disk0", done=True)
    one.qemu.node.slot = 800
    data = one.qemu.node.write(810)
    assert data is not None
    one.event(data, 7)
    one.hear(one.qemu.look(with_nodes=False), 1.0)  # a poll comes first, and a rival sets a threshold meanwhile
    assert one.pending_commands() == []
    one.hear(one.qemu.look(with_nodes=True), 2.0)
    assert [value for _, value in one.pending_commands()] == [900]


def test_a_device_that_was_extended_under_qemu_is_as_large_as_the_host_says() -> None:
    one = watching(850)
    one.qemu.node.medium.size = 2 * SIZE
    look = one.qemu.look(with_nodes=False)
    one.hear(look, 1.0)
    assert one.alert_manager.refreshes_due(VM) == {"nodes"}
    stale = replace(look, with_nodes=True, medium=replace(look.medium, size=SIZE))  # as QEMU believes
    one.hear(stale, 2.0)
    assert [record.data["state"] for record in one.told] == ["firing", "resolved"]
    assert one.told[1].data["limit_bytes"] == 2 * SIZE


# --- Disks that go ---


def test_the_only_disk_takes_its_alerts_with_it_too() -> None:
    one = watching(850)
    told, spaces = one.alert_manager.on_samples(VM, [], 1, 1, families=(BLOCK_LAYER,))
    assert (said(told), spaces) == ([("write_threshold", "resolved")], [])
    assert one.alert_manager.on_samples(VM, [], 2, 2, families=(BLOCK_LAYER,)) == ([], [])


def test_a_disk_that_went_while_the_agent_was_away_takes_its_alerts_with_it() -> None:
    two = restarted(watching(850))
    two.alert_manager.on_attached(VM)
    told, _ = two.alert_manager.on_samples(VM, [], 1, 1, families=(BLOCK_LAYER,))
    assert [one.record.data["resolved_by"] for one in told] == ["unplugged"]
    assert told[0].note == (NOTE_PREFIX + UUID, None)


# --- Events that are alerts ---


@pytest.mark.parametrize("end", ["RESUME", "RESET"])
def test_a_panic_lasts_until_the_guest_is_reset_or_goes_on_and_over_a_restart_of_the_agent(end: str) -> None:
    one = watching()
    one.tell(one.alert_manager.on_event(event("GUEST_PANICKED", action="pause"), "GUEST_PANICKED", 7))
    two = restarted(one)
    two.alert_manager.on_attached(VM)
    assert hear(two.alert_manager, "STOP") == []
    assert hear(two.alert_manager, end) == [("guest_panicked", "resolved")]


def test_a_panic_that_does_not_stop_the_guest_is_not_over_when_somebody_pauses_and_resumes_it() -> None:
    one = watching().alert_manager
    hear(one, "GUEST_PANICKED", action="run")
    assert hear(one, "RESUME") == []
    assert hear(one, "RESET") == [("guest_panicked", "resolved")]


def test_a_watchdog_is_over_by_time_alone() -> None:
    one = watching().alert_manager
    hear(one, "WATCHDOG", action="reset")
    assert hear(one, "RESET") == []
    assert one.tick(0, int(HOUR * 1e9) + 6) == []
    assert said(one.tick(0, int(HOUR * 1e9) + 7)) == [("watchdog", "resolved")]


def test_a_full_disk_that_old_qemus_name_by_its_node_is_told_by_its_device() -> None:
    one = watching(990).alert_manager
    (told,) = one.on_event(event("BLOCK_IO_ERROR", subject="format", **NO_SPACE), "BLOCK_IO_ERROR", 7)
    record = told.record
    assert (record.subject, record.severity, record.data["detected_by"]) == ("disk0", Severity.CRITICAL, "enospc")
    assert record.data["used_bytes"] == 990


def test_an_event_without_a_subject_is_of_no_disk() -> None:
    two = restarted(watching(850))
    two.alert_manager.on_attached(VM)
    (told,) = two.alert_manager.on_event(event("GUEST_PANICKED"), "GUEST_PANICKED", 7)
    assert told.record.subject == ""


def test_every_rules_severity_is_above_what_anybody_may_ignore() -> None:
    assert {rule.severity for rule in RULES} <= {Severity.ERROR, Severity.CRITICAL}


# --- What ended while nobody listened ---


@pytest.mark.parametrize("is_restarted", [True, False])
def test_a_guest_that_runs_when_it_is_met_again_has_got_over_what_stopped_it(is_restarted: bool) -> None:  # noqa: FBT001
    one = watching()
    one.tell(one.alert_manager.on_event(event("BLOCK_IO_ERROR", subject="disk0", **NO_SPACE), "BLOCK_IO_ERROR", 7))
    if is_restarted:
        one = restarted(one)
    else:
        one.alert_manager.on_gone(VM, 1, for_good=False)
    one.alert_manager.on_attached(VM)
    assert said(one.alert_manager.on_run_state(VM, 9, running=True)) == [("disk_full", "resolved")]


def test_a_guest_that_is_stopped_when_it_is_met_again_has_not_and_later_polls_end_nothing() -> None:
    one = watching().alert_manager
    hear(one, "BLOCK_IO_ERROR", subject="disk0", **NO_SPACE)
    assert one.on_run_state(VM, 9, running=True) == [], "a poll that was answered before the error"
    one.on_gone(VM, 1, for_good=False)
    one.on_attached(VM)
    assert one.on_run_state(VM, 9, running=False) == []
    assert one.on_run_state(VM, 9, running=True) == [], "RESUME tells that"
    assert hear(one, "RESUME") == [("disk_full", "resolved")]


def test_a_guest_that_is_stopped_again_as_it_is_met_is_still_stopped() -> None:
    one = watching().alert_manager
    hear(one, "BLOCK_IO_ERROR", subject="disk0", **NO_SPACE)
    one.on_gone(VM, 1, for_good=False)
    one.on_attached(VM)
    assert hear(one, "BLOCK_IO_ERROR", subject="disk0", **NO_SPACE) == []
    assert one.on_run_state(VM, 9, running=True) == [], "a poll that was answered before the error"


def test_a_vm_that_is_shut_down_and_started_at_once_keeps_how_full_it_is_and_nothing_else() -> None:
    one = watching(850)
    hear(one.alert_manager, "GUEST_PANICKED", action="pause")
    one.alert_manager.on_gone(VM, 1, for_good=True)
    assert said(one.alert_manager.on_attached(VM, 9)) == [("guest_panicked", "resolved")]
    assert one.alert_manager.tick(2, 9) == []
    one.qemu.restart()
    one.hear(one.qemu.look(with_nodes=True), 3.0)
    assert [record.data["level"] for record in one.told] == ["80%"]


@pytest.mark.parametrize(
    ("status", "alert"), [("io-error", "io_error_stop"), ("guest-panicked", "guest_panicked"), ("paused", None)]
)
def test_a_guest_that_is_found_stopped_by_what_nobody_heard_of_is_told(status: str, alert: str | None) -> None:
    one = watching().alert_manager
    told = one.on_run_state(VM, 9, running=False, status=status)
    assert said(told) == ([(alert, "firing")] if alert else [])
    assert [one.record.data["detected_by"] for one in told] == ["missed"] * len(told)
    assert one.on_run_state(VM, 10, running=False, status=status) == []
    assert said(one.on_event(event("RESUME"), "RESUME", 11)) == ([(alert, "resolved")] if alert else [])
    assert one.on_run_state(VM, 12, running=False, status=status) == [], "from here on, events tell"


def test_a_guest_that_is_found_stopped_by_what_was_told_is_not_told_of_again() -> None:
    one = watching()
    one.tell(one.alert_manager.on_event(event("BLOCK_IO_ERROR", subject="disk0", **NO_SPACE), "BLOCK_IO_ERROR", 7))
    two = restarted(one)
    two.alert_manager.on_attached(VM)
    assert two.alert_manager.on_run_state(VM, 9, running=False, status="io-error") == []


# --- Two processes of one UUID ---


def test_a_migrations_source_counts_until_it_stops_and_its_destination_runs() -> None:
    one = watching(850)
    over = one.alert_manager
    over.on_run_state(VM, 1, running=True)
    over.on_attached(TWIN)
    over.on_run_state(TWIN, 1, running=False)
    assert over.pending_commands(TWIN) == []
    assert over.on_samples(TWIN, one.qemu.samples(one.qemu.look(with_nodes=True)), 1, 1) == ([], [])
    assert len(over.pending_commands(VM)) == 1, "it is the source that writes"
    assert hear(over, "STOP") == []
    assert over.refreshes_due(TWIN) == set()
    assert hear(over, "RESUME", TWIN) == []
    assert over.refreshes_due(TWIN) == {"block", "nodes"}
    told, spaces = over.on_samples(TWIN, one.qemu.samples(one.qemu.look(with_nodes=True)), 1, 1)
    assert (told, spaces[0].values["exceeded_levels"]) == ([], 1)
    assert len(over.pending_commands(TWIN)) == 1
    assert over.pending_commands(VM) == []
    over.on_gone(VM, 2, for_good=True)
    assert over.tick(1000, 0) == []


def test_a_source_whose_migration_failed_counts_on() -> None:
    one = watching(850)
    one.alert_manager.on_attached(TWIN)
    one.alert_manager.on_gone(TWIN, 1, for_good=True)
    assert one.alert_manager.tick(1000, 0) == []
    one.qemu.node.write(910)
    one.hear(one.qemu.look(with_nodes=True), 2.0)
    assert [record.data["level"] for record in one.told] == ["80%", "90%"]


def test_after_a_restart_the_process_that_runs_counts_whichever_is_met_first() -> None:
    for first, second in ((VM, TWIN), (TWIN, VM)):
        two = restarted(watching(850))
        two.alert_manager.on_attached(first)
        two.alert_manager.on_attached(second)
        two.alert_manager.on_run_state(VM, 1, running=False)  # the source of a migration that is over
        two.alert_manager.on_run_state(TWIN, 1, running=True)
        look = two.qemu.samples(two.qemu.look(with_nodes=True))
        assert two.alert_manager.on_samples(VM, look, 1, 1) == ([], [])
        assert len(two.alert_manager.on_samples(TWIN, look, 1, 1)[1]) == 1


def test_a_threshold_that_two_monitors_of_one_process_tell_of_is_told_once() -> None:
    one = watching(100)
    one.alert_manager.on_attached(TWIN)
    ((node, value),) = one.pending_commands()
    data: dict[str, Any] = {"node-name": node, "write-threshold": value, "amount-exceeded": 5}
    assert hear(one.alert_manager, "BLOCK_WRITE_THRESHOLD", TWIN, **data) == []
    assert hear(one.alert_manager, "BLOCK_WRITE_THRESHOLD", VM, **data) == [("write_threshold", "firing")]
    assert hear(one.alert_manager, "BLOCK_WRITE_THRESHOLD", TWIN, **data) == []


def test_the_answer_to_an_order_of_a_process_that_counts_no_more_is_nobodys() -> None:
    one = watching(100)
    one.pending_commands()
    one.alert_manager.on_run_state(VM, 1, running=False)
    one.alert_manager.on_attached(TWIN)
    one.alert_manager.on_run_state(TWIN, 1, running=True)
    one.alert_manager.refreshes_due(TWIN)
    one.alert_manager.on_command_done(VM, "disk0", done=False)
    assert one.alert_manager.refreshes_due(TWIN) == set()


# --- Whatever was kept ---


def test_what_is_kept_is_json() -> None:
    one = watching(850)
    one.pending_commands()
    name, value = one.alert_manager.state_note(UUID)
    assert json.loads(json.dumps(value)) == value
    assert name == f"{NOTE_PREFIX}{UUID}"
    assert value["disks"]["disk0"]["threshold"] == ["storage1", 900]
    assert {alert.vm.host for alert in one.alert_manager.store} == {HOST}
