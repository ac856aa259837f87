"""All VMs' alerts where processes, monitors and the agent come and go; what is plain is in tests/unit."""

import json
from dataclasses import replace
from typing import Any

import pytest

from agent.alerts.manager import AWAY_SECONDS, NOTE, AlertManager, PendingAlert
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
    one.overseer.attached(VM)
    one.hear(one.qemu.look(with_nodes=True), 0.0)
    return one


def event(name: str, vm: Vm = VM, subject: str = "", time_ns: int = 7, **data: Any) -> Record:
    body: dict[str, Any] = {"event": name, "category": "x", "qemu": data}
    return Record(f"qemu.event.{name.lower()}", vm, body, time_ns, subject)


def hear(one: AlertManager, name: str, vm: Vm = VM, subject: str = "", **data: Any) -> list[tuple[str, str]]:
    return said(one.event(event(name, vm, subject, **data), name, 7))


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
    firing = [len(told.note[1]["firing"]) for told in one.overseer.tick(0, 0)]
    assert firing == []
    rungs = [value["disks"]["disk0"]["told"] for _, _, value in one.journal.coming]
    assert rungs == [["80%"], ["80%", "90%"], ["80%", "90%", "95%"]]
    assert [len(value["firing"]) for _, _, value in one.journal.coming] == [1, 2, 3]


def test_a_note_that_is_made_before_the_disks_were_seen_again_forgets_none_of_them() -> None:
    two = restarted(watching(850))
    two.overseer.attached(VM)
    (told,) = two.overseer.event(event("WATCHDOG", action="none"), "WATCHDOG", 7)
    assert told.note[1]["disks"]["disk0"]["told"] == ["80%"]


def test_a_vm_that_is_gone_leaves_nothing_behind_though_it_had_no_alert() -> None:
    one = watching()
    assert len(one.pending_commands()) == 1
    assert one.journal.coming[-1][2] is not None
    one.overseer.gone(VM, 0, for_good=True)
    assert one.overseer.forgotten() == []
    assert one.overseer.tick(1, 0) == []
    assert one.overseer.forgotten() == [UUID]
    assert one.overseer.note(UUID) == (NOTE + UUID, None)
    assert one.overseer.forgotten() == []


def test_what_was_kept_of_a_vm_that_never_comes_back_is_forgotten() -> None:
    one = watching()
    one.pending_commands()
    two = restarted(one)
    assert two.overseer.forgotten() == []
    two.overseer.tick(AWAY_SECONDS, 0)
    assert two.overseer.forgotten() == [UUID]


def test_fingerprints_are_the_same_over_restarts_and_processes() -> None:
    one = watching(850)
    two = restarted(one)
    assert [alert.fingerprint for alert in two.overseer.book] == [alert.fingerprint for alert in one.overseer.book]
    two.overseer.attached(TWIN)
    two.qemu.node.medium.size = 2 * SIZE
    two.tell(two.overseer.samples(TWIN, two.qemu.samples(two.qemu.look(with_nodes=True)), 1, 1)[0])
    assert two.told[0].data["state"] == "resolved"
    assert two.told[0].data["fingerprint"] == one.told[0].data["fingerprint"]


# --- Orders ---


def test_a_slot_is_not_written_on_an_old_look_at_it() -> None:
    one = watching()
    assert len(one.pending_commands()) == 1
    one.overseer.on_command_done(VM, "disk0", done=True)
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
    assert one.overseer.refreshes_due(VM) == {"nodes"}
    stale = replace(look, with_nodes=True, medium=replace(look.medium, size=SIZE))  # as QEMU believes
    one.hear(stale, 2.0)
    assert [record.data["state"] for record in one.told] == ["firing", "resolved"]
    assert one.told[1].data["limit_bytes"] == 2 * SIZE


# --- Disks that go ---


def test_the_only_disk_takes_its_alerts_with_it_too() -> None:
    one = watching(850)
    told, spaces = one.overseer.samples(VM, [], 1, 1, families=(BLOCK_LAYER,))
    assert (said(told), spaces) == ([("write_threshold", "resolved")], [])
    assert one.overseer.samples(VM, [], 2, 2, families=(BLOCK_LAYER,)) == ([], [])


def test_a_disk_that_went_while_the_agent_was_away_takes_its_alerts_with_it() -> None:
    two = restarted(watching(850))
    two.overseer.attached(VM)
    told, _ = two.overseer.samples(VM, [], 1, 1, families=(BLOCK_LAYER,))
    assert [one.record.data["resolved_by"] for one in told] == ["unplugged"]
    assert told[0].note == (NOTE + UUID, None)


# --- Events that are alerts ---


@pytest.mark.parametrize("end", ["RESUME", "RESET"])
def test_a_panic_lasts_until_the_guest_is_reset_or_goes_on_and_over_a_restart_of_the_agent(end: str) -> None:
    one = watching()
    one.tell(one.overseer.event(event("GUEST_PANICKED", action="pause"), "GUEST_PANICKED", 7))
    two = restarted(one)
    two.overseer.attached(VM)
    assert hear(two.overseer, "STOP") == []
    assert hear(two.overseer, end) == [("guest_panicked", "resolved")]


def test_a_panic_that_does_not_stop_the_guest_is_not_over_when_somebody_pauses_and_resumes_it() -> None:
    one = watching().overseer
    hear(one, "GUEST_PANICKED", action="run")
    assert hear(one, "RESUME") == []
    assert hear(one, "RESET") == [("guest_panicked", "resolved")]


def test_a_watchdog_is_over_by_time_alone() -> None:
    one = watching().overseer
    hear(one, "WATCHDOG", action="reset")
    assert hear(one, "RESET") == []
    assert one.tick(0, int(HOUR * 1e9) + 6) == []
    assert said(one.tick(0, int(HOUR * 1e9) + 7)) == [("watchdog", "resolved")]


def test_a_full_disk_that_old_qemus_name_by_its_node_is_told_by_its_device() -> None:
    one = watching(990).overseer
    (told,) = one.event(event("BLOCK_IO_ERROR", subject="format", **NO_SPACE), "BLOCK_IO_ERROR", 7)
    record = told.record
    assert (record.subject, record.severity, record.data["detected_by"]) == ("disk0", Severity.CRITICAL, "enospc")
    assert record.data["used_bytes"] == 990


def test_an_event_without_a_subject_is_of_no_disk() -> None:
    two = restarted(watching(850))
    two.overseer.attached(VM)
    (told,) = two.overseer.event(event("GUEST_PANICKED"), "GUEST_PANICKED", 7)
    assert told.record.subject == ""


def test_every_rules_severity_is_above_what_anybody_may_ignore() -> None:
    assert {rule.severity for rule in RULES} <= {Severity.ERROR, Severity.CRITICAL}


# --- What ended while nobody listened ---


@pytest.mark.parametrize("is_restarted", [True, False])
def test_a_guest_that_runs_when_it_is_met_again_has_got_over_what_stopped_it(is_restarted: bool) -> None:  # noqa: FBT001
    one = watching()
    one.tell(one.overseer.event(event("BLOCK_IO_ERROR", subject="disk0", **NO_SPACE), "BLOCK_IO_ERROR", 7))
    if is_restarted:
        one = restarted(one)
    else:
        one.overseer.gone(VM, 1, for_good=False)
    one.overseer.attached(VM)
    assert said(one.overseer.runs(VM, 9, running=True)) == [("disk_full", "resolved")]


def test_a_guest_that_is_stopped_when_it_is_met_again_has_not_and_later_polls_end_nothing() -> None:
    one = watching().overseer
    hear(one, "BLOCK_IO_ERROR", subject="disk0", **NO_SPACE)
    assert one.runs(VM, 9, running=True) == [], "a poll that was answered before the error"
    one.gone(VM, 1, for_good=False)
    one.attached(VM)
    assert one.runs(VM, 9, running=False) == []
    assert one.runs(VM, 9, running=True) == [], "RESUME tells that"
    assert hear(one, "RESUME") == [("disk_full", "resolved")]


def test_a_guest_that_is_stopped_again_as_it_is_met_is_still_stopped() -> None:
    one = watching().overseer
    hear(one, "BLOCK_IO_ERROR", subject="disk0", **NO_SPACE)
    one.gone(VM, 1, for_good=False)
    one.attached(VM)
    assert hear(one, "BLOCK_IO_ERROR", subject="disk0", **NO_SPACE) == []
    assert one.runs(VM, 9, running=True) == [], "a poll that was answered before the error"


def test_a_vm_that_is_shut_down_and_started_at_once_keeps_how_full_it_is_and_nothing_else() -> None:
    one = watching(850)
    hear(one.overseer, "GUEST_PANICKED", action="pause")
    one.overseer.gone(VM, 1, for_good=True)
    assert said(one.overseer.attached(VM, 9)) == [("guest_panicked", "resolved")]
    assert one.overseer.tick(2, 9) == []
    one.qemu.restart()
    one.hear(one.qemu.look(with_nodes=True), 3.0)
    assert [record.data["level"] for record in one.told] == ["80%"]


@pytest.mark.parametrize(
    ("status", "alert"), [("io-error", "io_error_stop"), ("guest-panicked", "guest_panicked"), ("paused", None)]
)
def test_a_guest_that_is_found_stopped_by_what_nobody_heard_of_is_told(status: str, alert: str | None) -> None:
    one = watching().overseer
    told = one.runs(VM, 9, running=False, status=status)
    assert said(told) == ([(alert, "firing")] if alert else [])
    assert [one.record.data["detected_by"] for one in told] == ["missed"] * len(told)
    assert one.runs(VM, 10, running=False, status=status) == []
    assert said(one.event(event("RESUME"), "RESUME", 11)) == ([(alert, "resolved")] if alert else [])
    assert one.runs(VM, 12, running=False, status=status) == [], "from here on, events tell"


def test_a_guest_that_is_found_stopped_by_what_was_told_is_not_told_of_again() -> None:
    one = watching()
    one.tell(one.overseer.event(event("BLOCK_IO_ERROR", subject="disk0", **NO_SPACE), "BLOCK_IO_ERROR", 7))
    two = restarted(one)
    two.overseer.attached(VM)
    assert two.overseer.runs(VM, 9, running=False, status="io-error") == []


# --- Two processes of one UUID ---


def test_a_migrations_source_counts_until_it_stops_and_its_destination_runs() -> None:
    one = watching(850)
    over = one.overseer
    over.runs(VM, 1, running=True)
    over.attached(TWIN)
    over.runs(TWIN, 1, running=False)
    assert over.pending_commands(TWIN) == []
    assert over.samples(TWIN, one.qemu.samples(one.qemu.look(with_nodes=True)), 1, 1) == ([], [])
    assert len(over.pending_commands(VM)) == 1, "it is the source that writes"
    assert hear(over, "STOP") == []
    assert over.refreshes_due(TWIN) == set()
    assert hear(over, "RESUME", TWIN) == []
    assert over.refreshes_due(TWIN) == {"block", "nodes"}
    told, spaces = over.samples(TWIN, one.qemu.samples(one.qemu.look(with_nodes=True)), 1, 1)
    assert (told, spaces[0].values["exceeded_levels"]) == ([], 1)
    assert len(over.pending_commands(TWIN)) == 1
    assert over.pending_commands(VM) == []
    over.gone(VM, 2, for_good=True)
    assert over.tick(1000, 0) == []


def test_a_source_whose_migration_failed_counts_on() -> None:
    one = watching(850)
    one.overseer.attached(TWIN)
    one.overseer.gone(TWIN, 1, for_good=True)
    assert one.overseer.tick(1000, 0) == []
    one.qemu.node.write(910)
    one.hear(one.qemu.look(with_nodes=True), 2.0)
    assert [record.data["level"] for record in one.told] == ["80%", "90%"]


def test_after_a_restart_the_process_that_runs_counts_whichever_is_met_first() -> None:
    for first, second in ((VM, TWIN), (TWIN, VM)):
        two = restarted(watching(850))
        two.overseer.attached(first)
        two.overseer.attached(second)
        two.overseer.runs(VM, 1, running=False)  # the source of a migration that is over
        two.overseer.runs(TWIN, 1, running=True)
        look = two.qemu.samples(two.qemu.look(with_nodes=True))
        assert two.overseer.samples(VM, look, 1, 1) == ([], [])
        assert len(two.overseer.samples(TWIN, look, 1, 1)[1]) == 1


def test_a_threshold_that_two_monitors_of_one_process_tell_of_is_told_once() -> None:
    one = watching(100)
    one.overseer.attached(TWIN)
    ((node, value),) = one.pending_commands()
    data: dict[str, Any] = {"node-name": node, "write-threshold": value, "amount-exceeded": 5}
    assert hear(one.overseer, "BLOCK_WRITE_THRESHOLD", TWIN, **data) == []
    assert hear(one.overseer, "BLOCK_WRITE_THRESHOLD", VM, **data) == [("write_threshold", "firing")]
    assert hear(one.overseer, "BLOCK_WRITE_THRESHOLD", TWIN, **data) == []


def test_the_answer_to_an_order_of_a_process_that_counts_no_more_is_nobodys() -> None:
    one = watching(100)
    one.pending_commands()
    one.overseer.runs(VM, 1, running=False)
    one.overseer.attached(TWIN)
    one.overseer.runs(TWIN, 1, running=True)
    one.overseer.refreshes_due(TWIN)
    one.overseer.on_command_done(VM, "disk0", done=False)
    assert one.overseer.refreshes_due(TWIN) == set()


# --- Whatever was kept ---


def test_what_is_kept_is_json() -> None:
    one = watching(850)
    one.pending_commands()
    name, value = one.overseer.note(UUID)
    assert json.loads(json.dumps(value)) == value
    assert name == f"{NOTE}{UUID}"
    assert value["disks"]["disk0"]["armed"] == ["storage1", 900]
    assert {alert.vm.host for alert in one.overseer.book} == {HOST}
