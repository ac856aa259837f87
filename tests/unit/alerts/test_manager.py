"""Alerts: what fires, what ends it, what is kept over restarts, and what is to be set in which QEMU."""

import json
from dataclasses import replace
from typing import Any

import pytest

from agent.alerts.manager import AWAY_SECONDS, NOTE_PREFIX, AlertManager, PendingAlert
from agent.alerts.rules import RULES
from agent.alerts.store import Alert, AlertStore
from agent.alerts.threshold_types import ThresholdMode
from agent.model.record import Record, RecordEncoder, Severity, Vm
from agent.qmp.commands import AllowList, Change, Command
from tests.lab.record_validation import faults, understood
from tests.lab.thin_disks import GIB, HOST, VM, Disk, alert_manager, policy, threshold_record

TWIN = Vm(VM.host, VM.uuid, VM.name, "/run/other.qmp")


def records(told: list[PendingAlert]) -> list[Record]:
    """Return the records, having found them valid."""
    for one in told:
        body = RecordEncoder()(one.record).body
        assert faults(body) == []
        understood(body)
        assert one.uuid == one.record.vm.uuid
    return [one.record for one in told]


def seen(one: AlertManager, disk: Disk, device: str = "disk0", vm: Vm = VM, now: float = 0) -> list[Record]:
    """Have an alert_manager see a disk by both polls; return what it tells."""
    made = [disk.counter_sample(device), *disk.layer_samples(device)]
    return records(one.on_samples(vm, made, now, int(now * 1e9))[0])


def attached(disk: Disk, mode: ThresholdMode = ThresholdMode.ARM, *levels: str) -> AlertManager:
    """Return an alert_manager that knows a VM with a disk."""
    one = alert_manager(mode, *levels)
    one.on_attached(VM)
    seen(one, disk)
    return one


def obey(one: AlertManager, disk: Disk, vm: Vm = VM) -> list[Command]:
    """Do in QEMU what is ordered."""
    orders = one.pending_commands(vm)
    for device, ask in orders:
        assert AllowList([Change.WRITE_THRESHOLD]).encode(ask)
        assert ask.arguments is not None
        disk.slot = ask.arguments["write-threshold"]
        one.on_command_done(vm, device, done=True)
    return [ask for _, ask in orders]


def event(name: str, data: dict[str, Any], subject: str = "", vm: Vm = VM, time_ns: int = 7) -> Record:
    return Record(f"qemu.event.{name.lower()}", vm, {"event": name, "category": "x", "qemu": data}, time_ns, subject)


def hear(
    one: AlertManager, name: str, data: dict[str, Any] | None = None, subject: str = "", vm: Vm = VM
) -> list[Record]:
    return records(one.on_event(event(name, data or {}, subject, vm), name, 7))


def said(records: list[Record]) -> list[tuple[Any, ...]]:
    return [(r.data["alert"], r.subject, r.data.get("level"), r.data["state"]) for r in records]


# --- Write thresholds ---


def test_a_threshold_is_set_fires_is_told_and_the_next_is_set() -> None:
    disk = Disk()
    one = attached(disk)
    assert obey(one, disk) == [
        Command("block-set-write-threshold", {"node-name": "storage", "write-threshold": 80 * GIB})
    ]
    assert one.refreshes_due(VM) == {"block"}  # a write may have passed it meanwhile
    assert obey(one, disk) == []
    (alert,) = records(one.on_event(threshold_record(disk.write(81 * GIB)), "BLOCK_WRITE_THRESHOLD", 9))
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
    assert one.refreshes_due(VM) == {"nodes"}
    seen(one, disk)
    assert [ask.arguments and ask.arguments["write-threshold"] for ask in obey(one, disk)] == [90 * GIB]


def test_the_last_rung_is_critical_and_a_disk_that_came_down_is_resolved() -> None:
    disk = Disk(driver="file", allocated=96 * GIB)
    one = alert_manager()
    one.on_attached(VM)
    assert [(r.data["level"], r.severity.label) for r in seen(one, disk)] == [
        ("80%", "warning"),
        ("90%", "warning"),
        ("95%", "critical"),
    ]
    disk.allocated = GIB
    resolved = seen(one, disk)
    assert said(resolved) == [("write_threshold", "disk0", level, "resolved") for level in ("95%", "90%", "80%")]
    assert {(r.severity.label, r.data["resolved_by"], r.data["used_bytes"]) for r in resolved} == {
        ("info", "space", GIB)
    }
    assert len(one.store) == 0


def test_somebody_elses_threshold_is_told_as_what_it_is_and_ends_by_itself() -> None:
    disk = Disk(slot=5 * GIB)
    one = attached(disk)
    assert one.pending_commands(VM) == []
    (alert,) = records(one.on_event(threshold_record(disk.write(6 * GIB)), "BLOCK_WRITE_THRESHOLD", 9))
    expected = {"owner": "other", "level": f"threshold {5 * GIB}", "layer": "storage", "exceeded_by_bytes": GIB}
    assert expected.items() <= alert.data.items()
    assert one.tick(0, 3600 * 10**9) == []
    assert said(records(one.tick(0, 3601 * 10**9))) == [
        ("write_threshold", "disk0", f"threshold {5 * GIB}", "resolved")
    ]


@pytest.mark.parametrize(("driver", "allocated"), [("host_device", 0), ("file", 2 * GIB)])
def test_how_full_a_disk_is_is_as_of_the_event_whoever_set_the_threshold(driver: str, allocated: int) -> None:
    one = attached(Disk(slot=5 * GIB, driver=driver, allocated=allocated))
    for threshold in (5 * GIB, 6 * GIB):
        data = {"node-name": "storage", "write-threshold": threshold, "amount-exceeded": GIB}
        (alert,) = records(one.on_event(threshold_record(data), "BLOCK_WRITE_THRESHOLD", 9))
        assert alert.data["used_bytes"] == threshold + GIB


def test_the_threshold_of_a_node_that_is_no_known_disks_is_told_by_the_node() -> None:
    one = attached(Disk())
    data = {"node-name": "scratch", "amount-exceeded": 1, "write-threshold": 2}
    (alert,) = records(one.on_event(threshold_record(data), "BLOCK_WRITE_THRESHOLD", 9))
    assert (alert.subject, alert.data["device"], alert.data["layer"]) == ("scratch", "scratch", "node")


@pytest.mark.parametrize(
    "data", [{}, {"node-name": 5, "amount-exceeded": 1, "write-threshold": 1}, {"node-name": "storage"}]
)
def test_an_event_that_lacks_its_fields_is_no_alert(data: dict[str, Any]) -> None:
    assert attached(Disk()).on_event(threshold_record(data), "BLOCK_WRITE_THRESHOLD", 9) == []


def test_a_threshold_that_could_not_be_set_is_looked_into_before_it_is_tried_again() -> None:
    disk = Disk()
    one = attached(disk)
    ((device, _),) = one.pending_commands(VM)
    one.on_command_done(VM, device, done=False)
    assert one.pending_commands(VM) == [] or one.refreshes_due(VM) == {"nodes"}
    one.refreshes_due(VM)
    seen(one, disk)
    assert len(one.pending_commands(VM)) == 1


def test_how_full_each_thin_disk_is_is_a_sample() -> None:
    one = alert_manager()
    one.on_attached(VM)
    disks = {"disk0": Disk(offset=81 * GIB), "disk1": Disk(format_driver="raw", node="n1")}
    made = [
        sample
        for device, disk in disks.items()
        for sample in (disk.counter_sample(device), *disk.layer_samples(device))
    ]
    _, (space,) = one.on_samples(VM, made, 0, 0)
    assert space.labels == ("disk0",)
    assert space.values == {
        "measure": "offset",
        "used_bytes": 81 * GIB,
        "limit_bytes": 100 * GIB,
        "free_bytes": 19 * GIB,
        "exceeded_levels": 1,
        "threshold_foreign": False,
    }


def test_a_disk_that_was_unplugged_takes_its_alerts_with_it() -> None:
    disk = Disk(offset=81 * GIB)
    one = attached(disk)
    other = [Disk().counter_sample("disk1"), *Disk(node="n2").layer_samples("disk1")]
    (ended,) = records(one.on_samples(VM, other, 1, 10**9)[0])
    assert ended.data["resolved_by"] == "unplugged"
    assert said([ended]) == [("write_threshold", "disk0", "80%", "resolved")]
    assert said(seen(one, disk)) == [("write_threshold", "disk0", "80%", "firing")]


# --- Events that are alerts ---


@pytest.mark.parametrize(
    ("name", "data", "alert"),
    [
        ("GUEST_PANICKED", {"action": "pause"}, "guest_panicked"),
        ("GUEST_CRASHLOADED", {"action": "run"}, "guest_crashed"),
        ("BLOCK_IO_ERROR", {"action": "stop", "nospace": True}, "disk_full"),
        ("BLOCK_IO_ERROR", {"action": "stop", "nospace": False}, "io_error_stop"),
        ("BLOCK_IO_ERROR", {"action": "stop"}, "io_error_stop"),
        ("BLOCK_IMAGE_CORRUPTED", {"fatal": True}, "image_corrupted"),
        ("WATCHDOG", {"action": "reset"}, "watchdog"),
        ("MEMORY_FAILURE", {"action": "fatal"}, "memory_failure"),
        ("QUORUM_FAILURE", {"reference": "q"}, "quorum_failure"),
    ],
)
def test_a_severe_event_fires_its_alert_once(name: str, data: dict[str, Any], alert: str) -> None:
    one = attached(Disk())
    assert said(hear(one, name, data, "d")) == [(alert, "d", None, "firing")]
    assert hear(one, name, data, "d") == []
    assert said(hear(one, name, data, "e")) == [(alert, "e", None, "firing")]


@pytest.mark.parametrize(("name", "data"), [("STOP", {}), ("BLOCK_IO_ERROR", {"action": "report"}), ("SHUTDOWN", {})])
def test_other_events_are_no_alerts(name: str, data: dict[str, Any]) -> None:
    assert hear(attached(Disk()), name, data) == []


def test_a_guest_that_goes_on_ends_what_stopped_it_and_of_no_other_vm() -> None:
    one = attached(Disk())
    other = Vm(HOST, "2" * 8 + VM.uuid[8:], "vm2", "/run/vm2.qmp")
    one.on_attached(other)
    hear(one, "BLOCK_IO_ERROR", {"action": "stop", "nospace": True}, "disk0")
    hear(one, "GUEST_PANICKED", {}, vm=other)
    (ended,) = hear(one, "RESUME")
    assert said([ended]) == [("disk_full", "disk0", None, "resolved")]
    assert ended.data["resolved_by"] == "RESUME"
    assert len(one.store) == 1


def test_a_full_disk_says_how_full() -> None:
    disk = Disk(offset=81 * GIB)
    (alert,) = hear(attached(disk), "BLOCK_IO_ERROR", {"action": "stop", "nospace": True}, "disk0")
    assert (alert.data["detected_by"], alert.data["used_bytes"], alert.data["limit_bytes"]) == (
        "enospc",
        81 * GIB,
        100 * GIB,
    )


def test_every_rule_has_an_end_or_is_for_as_long_as_the_vm_lives() -> None:
    assert {rule.alert for rule in RULES if not rule.resolved_by and rule.seconds is None} == {"image_corrupted"}
    assert len({rule.alert for rule in RULES}) == len(RULES)


# --- Coming and going ---


def test_a_vm_that_is_back_in_time_keeps_its_alerts_and_one_that_is_not_loses_them() -> None:
    disk = Disk(offset=81 * GIB)
    one = attached(disk)
    one.on_gone(VM, 100, for_good=False)
    assert one.tick(100 + AWAY_SECONDS - 1, 0) == []
    one.on_attached(VM)
    assert seen(one, disk) == []
    one.on_gone(VM, 200, for_good=False)
    (ended,) = one.tick(200 + AWAY_SECONDS, 0)
    assert ended.record.data["resolved_by"] == "vm_gone"
    assert one.state_note(VM.uuid) == (NOTE_PREFIX + VM.uuid, None)


def test_a_vm_that_shut_down_loses_its_alerts_at_once() -> None:
    one = attached(Disk(offset=81 * GIB))
    one.on_gone(VM, 100, for_good=True)
    assert len(one.tick(100, 0)) == 1


def test_a_connection_that_ends_after_another_to_the_same_vm_was_made_takes_nothing_away() -> None:
    one = attached(Disk(offset=81 * GIB))
    one.on_attached(TWIN)
    one.on_gone(VM, 100, for_good=True)
    assert one.tick(1000, 0) == []
    assert one.on_samples(VM, [], 0, 0) == ([], [])
    assert one.pending_commands(VM) == []


def test_what_is_kept_brings_an_overseer_to_where_it_was() -> None:
    disk = Disk()
    first = attached(disk)
    obey(first, disk)
    first.on_event(threshold_record(disk.write(81 * GIB)), "BLOCK_WRITE_THRESHOLD", 9)
    hear(first, "GUEST_PANICKED")
    seen(first, disk)
    obey(first, disk)
    name, kept = first.state_note(VM.uuid)
    second = alert_manager()
    second.restore(json.loads(json.dumps({name: kept})), 1000)
    assert {alert.name for alert in second.store} == {"write_threshold", "guest_panicked"}
    second.on_attached(VM)
    assert seen(second, disk) == []
    assert second.pending_commands(VM) == []
    assert second.state_note(VM.uuid) == first.state_note(VM.uuid)
    fired = second.on_event(threshold_record(disk.write(91 * GIB)), "BLOCK_WRITE_THRESHOLD", 9)
    assert said(records(fired)) == [("write_threshold", "disk0", "90%", "firing")]


def test_a_vm_that_does_not_come_back_after_a_restart_is_gone() -> None:
    first = attached(Disk(offset=81 * GIB))
    name, kept = first.state_note(VM.uuid)
    second = alert_manager()
    second.restore({name: kept}, 1000)
    assert second.tick(1000 + AWAY_SECONDS - 1, 0) == []
    assert [record.data["resolved_by"] for record in records(second.tick(1000 + AWAY_SECONDS, 0))] == ["vm_gone"]


@pytest.mark.parametrize(
    "kept", [None, 5, [], {"disks": 5, "firing": 7}, {"firing": [5, {}, {"name": 1}]}, {"disks": {"d": 5}}]
)
def test_whatever_was_kept_an_overseer_works(kept: object) -> None:
    one = alert_manager()
    one.restore({NOTE_PREFIX + VM.uuid: kept}, 0)
    one.on_attached(VM)
    assert len(seen(one, Disk(offset=81 * GIB))) == 1


def test_other_levels_hold_at_the_next_look_at_a_disk_that_was_looked_at_before() -> None:
    disk = Disk(offset=60 * GIB)
    one = attached(disk)
    one.set_policy(lambda _vm, _disk: policy(ThresholdMode.ARM, "40%"))
    assert one.refreshes_due(VM) == {"block", "nodes"}
    assert said(seen(one, disk)) == [("write_threshold", "disk0", "40%", "firing")]
    one.set_policy(lambda _vm, _disk: policy(ThresholdMode.ARM, "90%"))
    assert said(seen(one, disk)) == [("write_threshold", "disk0", "40%", "resolved")]
    assert [level.text for level in one.levels(VM, "disk0")] == ["90%"]


def test_an_alert_that_fires_anew_ends_with_what_it_then_says() -> None:
    store = AlertStore()
    alert = Alert("guest_panicked", VM, "", "", Severity.CRITICAL, 1, {}, resolved_by=frozenset({"RESUME"}))
    list(store.fire(alert))
    list(store.fire(replace(alert, resolved_by=frozenset({"RESET"}))))
    assert store.resolving_events == {"RESUME", "RESET"}
