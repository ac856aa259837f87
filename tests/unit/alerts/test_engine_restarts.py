"""The alert manager when VM processes, monitors and the agent start and end."""

import json
from dataclasses import replace
from typing import Any

import pytest

from agent.alerts.disk_threshold_types import ThresholdMode
from agent.alerts.engine import REATTACH_SECONDS, AlertChange, AlertEngine
from agent.alerts.failure_rules import FAILURE_EVENT_RULES, HOUR
from agent.alerts.persistence import VM_ENTRY_PREFIX
from agent.model.metrics.block_layers import BLOCK_LAYER
from agent.model.record import Record, Severity, Vm
from tests.lab.threshold_model import HOST, UUID, VM, Agent, Journal, Qemu

VM_AT_OTHER_MONITOR = replace(VM, monitor="/run/other.qmp")
SIZE = 1000


def new_agent(qemu: Qemu | None = None, journal: Journal | None = None) -> Agent:
    """Return an agent without an attached VM."""
    return Agent(qemu or Qemu("host_device", SIZE), journal or Journal(), ThresholdMode.ARM, 0.0)


def polled_agent(used: int = 0) -> Agent:
    """Return an agent that has polled a disk with `used` bytes."""
    agent = new_agent()
    agent.qemu.node.write(max(used, 1))
    agent.engine.on_attached(VM)
    agent.on_reply(agent.qemu.reply(with_nodes=True), 0.0)
    return agent


def event(name: str, vm: Vm = VM, subject: str = "", time_ns: int = 7, **data: Any) -> Record:
    body: dict[str, Any] = {"event": name, "category": "x", "qemu": data}
    return Record(f"qemu.event.{name.lower()}", vm, body, time_ns, subject)


def send_event(manager: AlertEngine, name: str, vm: Vm = VM, subject: str = "", **data: Any) -> list[tuple[str, str]]:
    return alert_changes(manager.on_event(event(name, vm, subject, **data), name, 7))


def alert_changes(pending: list[AlertChange]) -> list[tuple[str, str]]:
    return [(alert.record.data["alert"], alert.record.data["state"]) for alert in pending]


def agent_of_next_run(agent: Agent) -> Agent:
    """Return the agent of the next run, after everything was committed."""
    agent.journal.commit()
    return new_agent(agent.qemu, agent.journal)


def vm_entries_to_store(agent: Agent) -> list[tuple[str, Any]]:
    """Return the entries of VMs that are due."""
    return [entry for entry in agent.engine.persistence.entries_to_store() if entry[0].startswith(VM_ENTRY_PREFIX)]


STOPPED_WITHOUT_SPACE: dict[str, Any] = {"action": "stop", "nospace": True, "operation": "write"}


# --- Persistent entries ---


def test_each_record_has_the_entry_as_of_that_record() -> None:
    agent = polled_agent(960)
    firing = [len(pending.entry[1]["firing"]) for pending in agent.engine.tick(0, 0)]
    assert firing == []
    levels = [value["processes"][0]["disks"]["disk0"]["exceeded"] for _, _, value in agent.journal.pending]
    assert levels == [["80%"], ["80%", "90%"], ["80%", "90%", "95%"]]
    assert [len(value["processes"][0]["firing"]) for _, _, value in agent.journal.pending] == [1, 2, 3]


def test_an_entry_before_the_first_poll_keeps_restored_disks() -> None:
    second = agent_of_next_run(polled_agent(850))
    second.engine.on_attached(VM)
    (pending,) = second.engine.on_event(event("WATCHDOG", action="none"), "WATCHDOG", 7)
    assert pending.entry[1]["processes"][0]["disks"]["disk0"]["exceeded"] == ["80%"]


def test_the_entry_of_a_gone_vm_without_alerts_is_removed() -> None:
    agent = polled_agent()
    assert len(agent.pending_commands()) == 1
    assert agent.journal.pending[-1][2] is not None
    agent.engine.on_detached(VM, 0, permanently=True)
    assert vm_entries_to_store(agent) == []
    assert agent.engine.tick(1, 0) == []
    assert vm_entries_to_store(agent) == [(VM_ENTRY_PREFIX + UUID, None)]
    assert vm_entries_to_store(agent) == []


def test_the_entry_of_a_vm_that_never_returns_is_removed() -> None:
    agent = polled_agent()
    agent.pending_commands()
    second = agent_of_next_run(agent)
    assert vm_entries_to_store(second) == []
    second.engine.tick(REATTACH_SECONDS, 0)
    assert vm_entries_to_store(second) == [(VM_ENTRY_PREFIX + UUID, None)]


def test_fingerprints_are_stable_over_restarts_and_processes() -> None:
    agent = polled_agent(850)
    second = agent_of_next_run(agent)
    assert [alert.fingerprint for alert in second.engine.store] == [alert.fingerprint for alert in agent.engine.store]
    second.engine.on_attached(VM_AT_OTHER_MONITOR)
    second.qemu.node.medium.size = 2 * SIZE
    second.emit(
        second.engine.on_disk_samples(
            VM_AT_OTHER_MONITOR, second.qemu.samples(second.qemu.reply(with_nodes=True)), 1, 1
        )[0]
    )
    assert second.emitted[0].data["state"] == "resolved"
    assert second.emitted[0].data["fingerprint"] == agent.emitted[0].data["fingerprint"]


# --- Commands ---


def test_a_slot_is_set_only_after_a_fresh_read() -> None:
    agent = polled_agent()
    assert len(agent.pending_commands()) == 1
    agent.engine.threshold_commands.on_command_done(VM, "disk0", done=True)
    agent.qemu.node.slot = 800
    data = agent.qemu.node.write(810)
    assert data is not None
    agent.on_event(data, 7)
    agent.on_reply(
        agent.qemu.reply(with_nodes=False), 1.0
    )  # another client may set a threshold before the layers are read
    assert agent.pending_commands() == []
    agent.on_reply(agent.qemu.reply(with_nodes=True), 2.0)
    assert [value for _, value in agent.pending_commands()] == [900]


def test_an_extended_device_has_the_size_that_the_host_reports() -> None:
    agent = polled_agent(850)
    agent.qemu.node.medium.size = 2 * SIZE
    reply = agent.qemu.reply(with_nodes=False)
    agent.on_reply(reply, 1.0)
    assert agent.engine.threshold_commands.pop_collectors_to_poll(VM) == {"nodes"}
    stale = replace(reply, with_nodes=True, medium=replace(reply.medium, size=SIZE))  # QEMU has the old size
    agent.on_reply(stale, 2.0)
    assert [record.data["state"] for record in agent.emitted] == ["firing", "resolved"]
    assert agent.emitted[1].data["limit_bytes"] == 2 * SIZE


# --- Unplugged disks ---


def test_unplugging_the_only_disk_resolves_its_alerts() -> None:
    agent = polled_agent(850)
    pending, spaces = agent.engine.on_disk_samples(VM, [], 1, 1, families=(BLOCK_LAYER,))
    assert (alert_changes(pending), spaces) == ([("write_threshold", "resolved")], [])
    assert agent.engine.on_disk_samples(VM, [], 2, 2, families=(BLOCK_LAYER,)) == ([], [])


def test_a_disk_unplugged_while_the_agent_was_away_resolves() -> None:
    second = agent_of_next_run(polled_agent(850))
    second.engine.on_attached(VM)
    pending, _ = second.engine.on_disk_samples(VM, [], 1, 1, families=(BLOCK_LAYER,))
    assert [alert.record.data["resolved_by"] for alert in pending] == ["unplugged"]
    assert pending[0].entry == (VM_ENTRY_PREFIX + UUID, None)


# --- Event rules ---


def test_a_panic_outlives_an_agent_restart_until_the_guest_runs() -> None:
    agent = polled_agent()
    agent.emit(agent.engine.on_event(event("GUEST_PANICKED", action="pause"), "GUEST_PANICKED", 7))
    second = agent_of_next_run(agent)
    second.engine.on_attached(VM)
    assert send_event(second.engine, "STOP") == []
    assert send_event(second.engine, "RESET") == [], "the guest stands still"
    assert send_event(second.engine, "RESUME") == [("guest_panicked", "resolved")]


def test_resume_does_not_resolve_a_panic_that_stopped_nothing() -> None:
    manager = polled_agent().engine
    send_event(manager, "GUEST_PANICKED", action="run")
    assert send_event(manager, "RESUME") == []
    assert send_event(manager, "RESET") == [("guest_panicked", "resolved")]


def test_a_watchdog_alert_expires() -> None:
    manager = polled_agent().engine
    send_event(manager, "WATCHDOG", action="reset")
    assert send_event(manager, "RESET") == []
    assert manager.tick(0, int(HOUR * 1e9) + 6) == []
    assert alert_changes(manager.tick(0, int(HOUR * 1e9) + 7)) == [("watchdog", "resolved")]


def test_disk_full_with_a_node_name_is_reported_by_device() -> None:
    manager = polled_agent(990).engine
    (pending,) = manager.on_event(
        event("BLOCK_IO_ERROR", subject="format", **STOPPED_WITHOUT_SPACE), "BLOCK_IO_ERROR", 7
    )
    record = pending.record
    assert (record.subject, record.severity, record.data["detected_by"]) == ("disk0", Severity.CRITICAL, "enospc")
    assert record.data["used_bytes"] == 990


def test_an_event_without_a_subject_names_no_disk() -> None:
    second = agent_of_next_run(polled_agent(850))
    second.engine.on_attached(VM)
    (pending,) = second.engine.on_event(event("GUEST_PANICKED"), "GUEST_PANICKED", 7)
    assert pending.record.subject == ""


def test_every_rule_is_at_least_an_error() -> None:
    assert {rule.severity for rule in FAILURE_EVENT_RULES} <= {Severity.ERROR, Severity.CRITICAL}


# --- Run state at attach ---


@pytest.mark.parametrize("is_restarted", [True, False])
def test_a_guest_found_running_resolves_its_pause(is_restarted: bool) -> None:  # noqa: FBT001
    agent = polled_agent()
    agent.emit(
        agent.engine.on_event(event("BLOCK_IO_ERROR", subject="disk0", **STOPPED_WITHOUT_SPACE), "BLOCK_IO_ERROR", 7)
    )
    if is_restarted:
        agent = agent_of_next_run(agent)
    else:
        agent.engine.on_detached(VM, 1, permanently=False)
    agent.engine.on_attached(VM)
    assert alert_changes(agent.engine.on_run_state(VM, 9, running=True)) == [("disk_full", "resolved")]


def test_a_guest_found_paused_stays_firing_until_resume() -> None:
    manager = polled_agent().engine
    send_event(manager, "BLOCK_IO_ERROR", subject="disk0", **STOPPED_WITHOUT_SPACE)
    assert manager.on_run_state(VM, 6, running=True) == [], "the poll is older than the error"
    manager.on_detached(VM, 1, permanently=False)
    manager.on_attached(VM)
    assert manager.on_run_state(VM, 9, running=False, status="io-error") == []
    assert manager.on_run_state(VM, 8, running=True) == [], "the poll is older than the last one"
    assert send_event(manager, "RESUME") == [], "the event is older than the last poll"
    assert alert_changes(manager.on_event(event("RESUME", time_ns=10), "RESUME", 10)) == [("disk_full", "resolved")]


def test_an_error_at_attach_outranks_an_older_poll() -> None:
    manager = polled_agent().engine
    send_event(manager, "BLOCK_IO_ERROR", subject="disk0", **STOPPED_WITHOUT_SPACE)
    manager.on_detached(VM, 1, permanently=False)
    manager.on_attached(VM)
    assert send_event(manager, "BLOCK_IO_ERROR", subject="disk0", **STOPPED_WITHOUT_SPACE) == []
    assert manager.on_run_state(VM, 6, running=True) == [], "the poll is older than the error"


def test_a_restarted_vm_keeps_its_disk_levels_only() -> None:
    agent = polled_agent(850)
    send_event(agent.engine, "GUEST_PANICKED", action="pause")
    agent.engine.on_detached(VM, 1, permanently=True)
    assert alert_changes(agent.engine.on_attached(VM, 9)) == [("guest_panicked", "resolved")]
    assert agent.engine.tick(2, 9) == []
    agent.qemu.restart()
    agent.on_reply(agent.qemu.reply(with_nodes=True), 3.0)
    assert [record.data["level"] for record in agent.emitted] == ["80%"]


@pytest.mark.parametrize(
    ("status", "alert"),
    [
        ("guest-panicked", "guest_panicked"),
        ("internal-error", "internal_error"),
        ("watchdog", "watchdog_stop"),
        ("paused", None),
    ],
)
def test_a_missed_pause_is_detected_by_the_run_state(status: str, alert: str | None) -> None:
    manager = polled_agent().engine
    pending = manager.on_run_state(VM, 9, running=False, status=status)
    assert alert_changes(pending) == ([(alert, "firing")] if alert else [])
    assert [alert.record.data["detected_by"] for alert in pending] == ["missed"] * len(pending)
    assert manager.on_run_state(VM, 10, running=False, status=status) == []
    resumed = manager.on_event(event("RESUME", time_ns=11), "RESUME", 11)
    assert alert_changes(resumed) == ([(alert, "resolved")] if alert else [])
    assert alert_changes(manager.on_run_state(VM, 12, running=False, status=status)) == (
        [(alert, "firing")] if alert else []
    )


def test_a_known_pause_is_not_reported_again() -> None:
    agent = polled_agent()
    agent.emit(
        agent.engine.on_event(event("BLOCK_IO_ERROR", subject="disk0", **STOPPED_WITHOUT_SPACE), "BLOCK_IO_ERROR", 7)
    )
    second = agent_of_next_run(agent)
    second.engine.on_attached(VM)
    assert second.engine.on_run_state(VM, 9, running=False, status="io-error") == []


# --- Two processes with one UUID ---


def test_a_migration_source_is_active_until_it_stops() -> None:
    agent = polled_agent(850)
    manager = agent.engine
    manager.on_run_state(VM, 1, running=True)
    manager.on_attached(VM_AT_OTHER_MONITOR)
    manager.on_run_state(VM_AT_OTHER_MONITOR, 1, running=False, status="inmigrate")
    assert manager.threshold_commands.pop_pending_commands(VM_AT_OTHER_MONITOR) == []
    assert manager.on_disk_samples(
        VM_AT_OTHER_MONITOR, agent.qemu.samples(agent.qemu.reply(with_nodes=True)), 1, 1
    ) == (
        [],
        [],
    )
    assert len(manager.threshold_commands.pop_pending_commands(VM)) == 1, "the source writes"
    assert send_event(manager, "STOP") == []
    assert manager.threshold_commands.pop_collectors_to_poll(VM_AT_OTHER_MONITOR) == set()
    assert send_event(manager, "RESUME", VM_AT_OTHER_MONITOR) == []
    assert manager.threshold_commands.pop_collectors_to_poll(VM_AT_OTHER_MONITOR) == set(), (
        "the source may have stopped for another reason"
    )
    manager.on_run_state(VM, 100, running=False, status="finish-migrate")
    assert manager.threshold_commands.pop_collectors_to_poll(VM_AT_OTHER_MONITOR) == {"block", "nodes"}
    pending, spaces = manager.on_disk_samples(
        VM_AT_OTHER_MONITOR, agent.qemu.samples(agent.qemu.reply(with_nodes=True)), 1, 1
    )
    assert (pending, spaces[0].values["exceeded_levels"]) == ([], 1)
    assert len(manager.threshold_commands.pop_pending_commands(VM_AT_OTHER_MONITOR)) == 1
    assert manager.threshold_commands.pop_pending_commands(VM) == []
    manager.on_detached(VM, 2, permanently=True)
    assert manager.tick(1000, 0) == []


def test_the_source_of_a_failed_migration_stays_active() -> None:
    agent = polled_agent(850)
    agent.engine.on_attached(VM_AT_OTHER_MONITOR)
    agent.engine.on_detached(VM_AT_OTHER_MONITOR, 1, permanently=True)
    assert agent.engine.tick(1000, 0) == []
    agent.qemu.node.write(910)
    agent.on_reply(agent.qemu.reply(with_nodes=True), 2.0)
    assert [record.data["level"] for record in agent.emitted] == ["80%", "90%"]


def test_after_a_restart_the_running_process_is_active() -> None:
    for first, second in ((VM, VM_AT_OTHER_MONITOR), (VM_AT_OTHER_MONITOR, VM)):
        agent = agent_of_next_run(polled_agent(850))
        agent.engine.on_attached(first)
        agent.engine.on_attached(second)
        agent.engine.on_run_state(VM, 1, running=False, status="postmigrate")  # the source of a completed migration
        agent.engine.on_run_state(VM_AT_OTHER_MONITOR, 1, running=True)
        reply = agent.qemu.samples(agent.qemu.reply(with_nodes=True))
        assert agent.engine.on_disk_samples(VM, reply, 1, 1) == ([], [])
        assert len(agent.engine.on_disk_samples(VM_AT_OTHER_MONITOR, reply, 1, 1)[1]) == 1


def test_an_event_from_two_monitors_is_reported_once() -> None:
    agent = polled_agent(100)
    agent.engine.on_attached(VM_AT_OTHER_MONITOR)
    ((node, value),) = agent.pending_commands()
    data: dict[str, Any] = {"node-name": node, "write-threshold": value, "amount-exceeded": 5}
    assert send_event(agent.engine, "BLOCK_WRITE_THRESHOLD", VM_AT_OTHER_MONITOR, **data) == []
    assert send_event(agent.engine, "BLOCK_WRITE_THRESHOLD", VM, **data) == [("write_threshold", "firing")]
    assert send_event(agent.engine, "BLOCK_WRITE_THRESHOLD", VM_AT_OTHER_MONITOR, **data) == []


def test_a_response_for_an_inactive_process_is_ignored() -> None:
    agent = polled_agent(100)
    agent.pending_commands()
    agent.engine.on_run_state(VM, 1, running=False, status="postmigrate")
    agent.engine.on_attached(VM_AT_OTHER_MONITOR)
    agent.engine.on_run_state(VM_AT_OTHER_MONITOR, 1, running=True)
    agent.engine.threshold_commands.pop_collectors_to_poll(VM_AT_OTHER_MONITOR)
    agent.engine.threshold_commands.on_command_done(VM, "disk0", done=False)
    assert agent.engine.threshold_commands.pop_collectors_to_poll(VM_AT_OTHER_MONITOR) == set()


# --- Format of the entry ---


def test_the_entry_is_json() -> None:
    agent = polled_agent(850)
    agent.pending_commands()
    name, value = agent.engine.persistence.entry_of_vm(UUID)
    assert json.loads(json.dumps(value)) == value
    assert name == f"{VM_ENTRY_PREFIX}{UUID}"
    assert value["processes"][0]["disks"]["disk0"]["threshold"] == ["storage1", 900]
    assert {alert.vm.host for alert in agent.engine.store} == {HOST}
