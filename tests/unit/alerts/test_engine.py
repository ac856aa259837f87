"""The alert manager: alerts that fire and are resolved, state that is kept over a restart, and thresholds to set."""

import json
from dataclasses import replace
from typing import Any

import pytest

from agent.alerts.disk_threshold_types import ThresholdMode
from agent.alerts.engine import REATTACH_SECONDS, AlertChange, AlertEngine
from agent.alerts.failure_rules import FAILURE_EVENT_RULES
from agent.alerts.persistence import VM_ENTRY_PREFIX
from agent.alerts.store import Alert, AlertStore
from agent.model.record import Record, RecordEncoder, Severity, Vm
from agent.qmp.commands import AllowList, Command, OptInQemuChange
from tests.lab.record_validation import parse_cloudevent, schema_violations
from tests.lab.thin_disks import GIB, HOST, VM, Disk, alert_manager, policy, threshold_record

VM_AT_OTHER_MONITOR = Vm(VM.host, VM.uuid, VM.name, "/run/other.qmp")


def records(pending: list[AlertChange]) -> list[Record]:
    """Validate the records against their schemas and return them."""
    for alert in pending:
        body = RecordEncoder()(alert.record).body
        assert schema_violations(body) == []
        parse_cloudevent(body)
        assert alert.uuid == alert.record.vm.uuid
    return [alert.record for alert in pending]


def poll(manager: AlertEngine, disk: Disk, device: str = "disk0", vm: Vm = VM, now: float = 0) -> list[Record]:
    """Pass both polls of a disk to a manager; return its alert records."""
    samples = [disk.counter_sample(device), *disk.layer_samples(device)]
    return records(manager.on_disk_samples(vm, samples, now, int(now * 1e9))[0])


def attached_manager(disk: Disk, mode: ThresholdMode = ThresholdMode.ARM, *levels: str) -> AlertEngine:
    """Return a manager that has polled the disk of an attached VM."""
    manager = alert_manager(mode, *levels)
    manager.on_attached(VM)
    poll(manager, disk)
    return manager


def execute_commands(manager: AlertEngine, disk: Disk, vm: Vm = VM) -> list[Command]:
    """Execute the pending commands on the disk; return them."""
    commands = manager.threshold_commands.pop_pending_commands(vm)
    for device, command in commands:
        assert AllowList([OptInQemuChange.WRITE_THRESHOLD]).encode(command)
        assert command.arguments is not None
        disk.slot = command.arguments["write-threshold"]
        manager.threshold_commands.on_command_done(vm, device, done=True)
    return [command for _, command in commands]


def event(name: str, data: dict[str, Any], subject: str = "", vm: Vm = VM, time_ns: int = 7) -> Record:
    return Record(f"qemu.event.{name.lower()}", vm, {"event": name, "category": "x", "qemu": data}, time_ns, subject)


def send_event(
    manager: AlertEngine, name: str, data: dict[str, Any] | None = None, subject: str = "", vm: Vm = VM
) -> list[Record]:
    return records(manager.on_event(event(name, data or {}, subject, vm), name, 7))


def alert_changes(records: list[Record]) -> list[tuple[Any, ...]]:
    return [(r.data["alert"], r.subject, r.data.get("level"), r.data["state"]) for r in records]


# --- Write thresholds ---


def test_a_threshold_is_set_and_fires_and_the_next_one_is_set() -> None:
    disk = Disk()
    manager = attached_manager(disk)
    assert execute_commands(manager, disk) == [
        Command("block-set-write-threshold", {"node-name": "storage", "write-threshold": 80 * GIB})
    ]
    assert manager.threshold_commands.pop_collectors_to_poll(VM) == {
        "block"
    }  # a write may have exceeded it in the meantime
    assert execute_commands(manager, disk) == []
    (alert,) = records(manager.on_event(threshold_record(disk.write(81 * GIB)), "BLOCK_WRITE_THRESHOLD", 9))
    assert (alert.type, alert.subject, alert.severity, alert.time_ns) == (
        "qemu.alert.write_threshold",
        "disk0",
        Severity.WARNING,
        5,
    )
    expected = {
        "level": "80%",
        "detected_by": "event",
        "owner": "agent",
        "level_bytes": 80 * GIB,
        "used_bytes": 81 * GIB,
    }
    assert expected.items() <= alert.data.items()
    assert alert.data["free_bytes"] == 19 * GIB
    assert manager.threshold_commands.pop_collectors_to_poll(VM) == {"nodes"}
    poll(manager, disk)
    assert [
        command.arguments and command.arguments["write-threshold"] for command in execute_commands(manager, disk)
    ] == [90 * GIB]


def test_the_highest_level_is_critical_and_freed_space_resolves() -> None:
    disk = Disk(driver="file", allocated=96 * GIB)
    manager = alert_manager()
    manager.on_attached(VM)
    assert [(r.data["level"], r.severity.label) for r in poll(manager, disk)] == [
        ("80%", "warning"),
        ("90%", "warning"),
        ("95%", "critical"),
    ]
    disk.allocated = GIB
    resolved = poll(manager, disk)
    assert alert_changes(resolved) == [
        ("write_threshold", "disk0", level, "resolved") for level in ("95%", "90%", "80%")
    ]
    assert {(r.severity.label, r.data["resolved_by"], r.data["used_bytes"]) for r in resolved} == {
        ("info", "space", GIB)
    }
    assert len(manager.store) == 0


def test_a_foreign_threshold_fires_an_alert_that_expires() -> None:
    disk = Disk(slot=5 * GIB)
    manager = attached_manager(disk)
    assert manager.threshold_commands.pop_pending_commands(VM) == []
    (alert,) = records(manager.on_event(threshold_record(disk.write(6 * GIB)), "BLOCK_WRITE_THRESHOLD", 9))
    expected = {"owner": "other", "level": f"threshold {5 * GIB}", "layer": "storage", "exceeded_by_bytes": GIB}
    assert expected.items() <= alert.data.items()
    assert manager.tick(0, 3600 * 10**9) == []
    assert alert_changes(records(manager.tick(0, 3601 * 10**9))) == [
        ("write_threshold", "disk0", f"threshold {5 * GIB}", "resolved")
    ]


@pytest.mark.parametrize(("driver", "allocated"), [("host_device", 0), ("file", 2 * GIB)])
def test_usage_is_as_of_the_event_of_a_foreign_threshold(driver: str, allocated: int) -> None:
    manager = attached_manager(Disk(slot=5 * GIB, driver=driver, allocated=allocated))
    for threshold in (5 * GIB, 6 * GIB):
        data = {"node-name": "storage", "write-threshold": threshold, "amount-exceeded": GIB}
        (alert,) = records(manager.on_event(threshold_record(data), "BLOCK_WRITE_THRESHOLD", 9))
        assert alert.data["used_bytes"] == threshold + GIB


def test_a_threshold_on_an_unknown_node_is_reported_by_node() -> None:
    manager = attached_manager(Disk())
    data = {"node-name": "scratch", "amount-exceeded": 1, "write-threshold": 2}
    (alert,) = records(manager.on_event(threshold_record(data), "BLOCK_WRITE_THRESHOLD", 9))
    assert (alert.subject, alert.data["device"], alert.data["layer"]) == ("scratch", "scratch", "node")


@pytest.mark.parametrize(
    "data", [{}, {"node-name": 5, "amount-exceeded": 1, "write-threshold": 1}, {"node-name": "storage"}]
)
def test_a_threshold_event_without_its_fields_fires_nothing(data: dict[str, Any]) -> None:
    assert attached_manager(Disk()).on_event(threshold_record(data), "BLOCK_WRITE_THRESHOLD", 9) == []


def test_a_failed_command_is_retried_after_the_slot_was_read() -> None:
    disk = Disk()
    manager = attached_manager(disk)
    ((device, _),) = manager.threshold_commands.pop_pending_commands(VM)
    manager.threshold_commands.on_command_done(VM, device, done=False)
    assert manager.threshold_commands.pop_pending_commands(
        VM
    ) == [] or manager.threshold_commands.pop_collectors_to_poll(VM) == {"nodes"}
    manager.threshold_commands.pop_collectors_to_poll(VM)
    poll(manager, disk)
    assert len(manager.threshold_commands.pop_pending_commands(VM)) == 1


def test_each_thin_disk_has_a_space_sample() -> None:
    manager = alert_manager()
    manager.on_attached(VM)
    disks = {"disk0": Disk(offset=81 * GIB), "disk1": Disk(format_driver="raw", node="n1")}
    samples = [
        sample
        for device, disk in disks.items()
        for sample in (disk.counter_sample(device), *disk.layer_samples(device))
    ]
    _, (space,) = manager.on_disk_samples(VM, samples, 0, 0)
    assert space.labels == ("disk0",)
    assert space.values == {
        "measure": "offset",
        "limited_by": "device",
        "used_bytes": 81 * GIB,
        "limit_bytes": 100 * GIB,
        "free_bytes": 19 * GIB,
        "exceeded_levels": 1,
        "threshold_foreign": False,
    }


def test_unplugging_a_disk_resolves_its_alerts() -> None:
    disk = Disk(offset=81 * GIB)
    manager = attached_manager(disk)
    other = [Disk().counter_sample("disk1"), *Disk(node="n2", path="/dev/vg/lv2").layer_samples("disk1")]
    (resolved,) = records(manager.on_disk_samples(VM, other, 1, 10**9)[0])
    assert resolved.data["resolved_by"] == "unplugged"
    assert alert_changes([resolved]) == [("write_threshold", "disk0", "80%", "resolved")]
    assert alert_changes(poll(manager, disk)) == [("write_threshold", "disk0", "80%", "firing")]


# --- Event rules ---


@pytest.mark.parametrize(
    ("name", "data", "alert"),
    [
        ("GUEST_PANICKED", {"action": "pause"}, "guest_panicked"),
        ("GUEST_CRASHLOADED", {"action": "run"}, "guest_crashed"),
        ("BLOCK_IO_ERROR", {"action": "stop", "nospace": True, "qom-path": "d"}, "disk_full"),
        ("BLOCK_IO_ERROR", {"action": "stop", "nospace": False, "qom-path": "d"}, "io_error_stop"),
        ("BLOCK_IO_ERROR", {"action": "stop", "qom-path": "d"}, "io_error_stop"),
        ("BLOCK_IMAGE_CORRUPTED", {"fatal": True}, "image_corrupted"),
        ("WATCHDOG", {"action": "reset"}, "watchdog"),
        ("WATCHDOG", {"action": "pause"}, "watchdog_stop"),
        ("BLOCK_JOB_COMPLETED", {"device": "d", "error": "no space"}, "job_failed"),
        ("MEMORY_FAILURE", {"action": "fatal"}, "memory_failure"),
        ("QUORUM_FAILURE", {"reference": "q"}, "quorum_failure"),
    ],
)
def test_a_severe_event_fires_its_alert_once(name: str, data: dict[str, Any], alert: str) -> None:
    manager = attached_manager(Disk())
    assert alert_changes(send_event(manager, name, data, "d")) == [(alert, "d", None, "firing")]
    assert send_event(manager, name, data, "d") == []
    assert alert_changes(send_event(manager, name, data, "e")) == [(alert, "e", None, "firing")]


@pytest.mark.parametrize(("name", "data"), [("STOP", {}), ("BLOCK_IO_ERROR", {"action": "report"}), ("SHUTDOWN", {})])
def test_other_events_fire_nothing(name: str, data: dict[str, Any]) -> None:
    assert send_event(attached_manager(Disk()), name, data) == []


def test_resume_resolves_the_pause_of_its_own_vm_only() -> None:
    manager = attached_manager(Disk())
    other = Vm(HOST, "2" * 8 + VM.uuid[8:], "vm2", "/run/vm2.qmp")
    manager.on_attached(other)
    send_event(manager, "BLOCK_IO_ERROR", {"action": "stop", "nospace": True}, "disk0")
    send_event(manager, "GUEST_PANICKED", {}, vm=other)
    (resolved,) = send_event(manager, "RESUME")
    assert alert_changes([resolved]) == [("disk_full", "disk0", None, "resolved")]
    assert resolved.data["resolved_by"] == "RESUME"
    assert len(manager.store) == 1


def test_disk_full_has_the_disks_usage() -> None:
    disk = Disk(offset=81 * GIB)
    (alert,) = send_event(attached_manager(disk), "BLOCK_IO_ERROR", {"action": "stop", "nospace": True}, "disk0")
    assert (alert.data["detected_by"], alert.data["used_bytes"], alert.data["limit_bytes"]) == (
        "enospc",
        81 * GIB,
        100 * GIB,
    )


def test_every_rule_names_what_resolves_its_alert() -> None:
    endless = (
        rule
        for rule in FAILURE_EVENT_RULES
        if not rule.resolved_by and rule.resolve_after_seconds is None and not rule.status
    )
    assert {rule.alert for rule in endless} == {"image_corrupted"}, "it is resolved with its image"


# --- Attach and detach ---


def test_alerts_survive_a_short_absence_of_the_vm() -> None:
    disk = Disk(offset=81 * GIB)
    manager = attached_manager(disk)
    manager.on_detached(VM, 100, permanently=False)
    assert manager.tick(100 + REATTACH_SECONDS - 1, 0) == []
    manager.on_attached(VM)
    assert poll(manager, disk) == []
    manager.on_detached(VM, 200, permanently=False)
    (resolved,) = manager.tick(200 + REATTACH_SECONDS, 0)
    assert resolved.record.data["resolved_by"] == "vm_gone"
    assert manager.persistence.entry_of_vm(VM.uuid) == (VM_ENTRY_PREFIX + VM.uuid, None)


def test_a_shutdown_resolves_all_alerts_at_once() -> None:
    manager = attached_manager(Disk(offset=81 * GIB))
    manager.on_detached(VM, 100, permanently=True)
    assert len(manager.tick(100, 0)) == 1


def test_an_old_connection_that_ends_late_resolves_nothing() -> None:
    manager = attached_manager(Disk(offset=81 * GIB))
    manager.on_attached(VM_AT_OTHER_MONITOR)
    manager.on_detached(VM, 100, permanently=True)
    assert manager.tick(1000, 0) == []
    assert manager.on_disk_samples(VM, [], 0, 0) == ([], [])
    assert manager.threshold_commands.pop_pending_commands(VM) == []


def test_an_entry_restores_the_manager() -> None:
    disk = Disk()
    first = attached_manager(disk)
    execute_commands(first, disk)
    first.on_event(threshold_record(disk.write(81 * GIB)), "BLOCK_WRITE_THRESHOLD", 9)
    send_event(first, "GUEST_PANICKED")
    poll(first, disk)
    execute_commands(first, disk)
    name, entry = first.persistence.entry_of_vm(VM.uuid)
    second = alert_manager()
    second.persistence.restore(json.loads(json.dumps({name: entry})), 1000)
    assert {alert.name for alert in second.store} == {"write_threshold", "guest_panicked"}
    second.on_attached(VM)
    assert poll(second, disk) == []
    assert second.threshold_commands.pop_pending_commands(VM) == []
    assert second.persistence.entry_of_vm(VM.uuid) == first.persistence.entry_of_vm(VM.uuid)
    fired = second.on_event(threshold_record(disk.write(91 * GIB)), "BLOCK_WRITE_THRESHOLD", 9)
    assert alert_changes(records(fired)) == [("write_threshold", "disk0", "90%", "firing")]


def test_a_vm_missing_after_an_agent_restart_counts_as_gone() -> None:
    first = attached_manager(Disk(offset=81 * GIB))
    name, entry = first.persistence.entry_of_vm(VM.uuid)
    second = alert_manager()
    second.persistence.restore({name: entry}, 1000)
    assert second.tick(1000 + REATTACH_SECONDS - 1, 0) == []
    assert [record.data["resolved_by"] for record in records(second.tick(1000 + REATTACH_SECONDS, 0))] == ["vm_gone"]


@pytest.mark.parametrize(
    "entry", [None, 5, [], {"disks": 5, "firing": 7}, {"firing": [5, {}, {"name": 1}]}, {"disks": {"d": 5}}]
)
def test_a_manager_ignores_invalid_entries(entry: object) -> None:
    manager = alert_manager()
    manager.persistence.restore({VM_ENTRY_PREFIX + VM.uuid: entry}, 0)
    manager.on_attached(VM)
    assert len(poll(manager, Disk(offset=81 * GIB))) == 1


def test_a_new_policy_applies_at_the_next_poll() -> None:
    disk = Disk(offset=60 * GIB)
    manager = attached_manager(disk)
    manager.set_threshold_policy(lambda _vm, _disk: policy(ThresholdMode.ARM, "40%"))
    assert manager.threshold_commands.pop_collectors_to_poll(VM) == {"block", "nodes"}
    assert alert_changes(poll(manager, disk)) == [("write_threshold", "disk0", "40%", "firing")]
    manager.set_threshold_policy(lambda _vm, _disk: policy(ThresholdMode.ARM, "90%"))
    assert alert_changes(poll(manager, disk)) == [("write_threshold", "disk0", "40%", "resolved")]
    assert [level.text for level in manager.disk_lookup.levels_of_disk(VM, "disk0")] == ["90%"]


def test_a_repeated_alert_adds_its_resolving_events() -> None:
    store = AlertStore()
    alert = Alert("guest_panicked", VM, "", "", Severity.CRITICAL, 1, {}, resolved_by=frozenset({"RESUME"}))
    list(store.fire(alert))
    list(store.fire(replace(alert, resolved_by=frozenset({"RESET"}))))
    assert store.resolving_events == {"RESUME", "RESET"}
