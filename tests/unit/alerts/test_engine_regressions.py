"""The alert manager after a reconnect, a replaced disk, a late response and a config change, and with a second monitor."""

from agent.alerts.disk_threshold_types import ThresholdMode
from agent.alerts.engine import REATTACH_SECONDS
from tests.lab.thin_disks import GIB, VM, Disk, alert_manager
from tests.unit.alerts.test_engine import VM_AT_OTHER_MONITOR, alert_changes, attached_manager, poll, records


def test_a_replugged_disk_reports_its_levels_again() -> None:
    disk = Disk(offset=81 * GIB)
    manager = attached_manager(disk)
    manager.on_detached(VM, 1, permanently=False)
    manager.on_attached(VM)  # exceeded levels are kept over a reconnect
    poll(manager, disk)
    manager.on_disk_samples(VM, Disk(node="n2", path="/dev/vg/lv2").layer_samples("disk1"), 2, 0)  # disk0 is unplugged
    assert alert_changes(poll(manager, disk)) == [("write_threshold", "disk0", "80%", "firing")]


def test_a_threshold_set_after_the_timeout_is_still_ours() -> None:
    disk = Disk(driver="file", allocated=10 * GIB, offset=12 * GIB)
    manager = attached_manager(disk)
    ((device, command),) = manager.threshold_commands.pop_pending_commands(VM)
    assert command.arguments is not None
    manager.threshold_commands.on_command_done(VM, device, done=False)  # no response in time
    disk.slot = command.arguments["write-threshold"]  # QEMU has executed the command
    poll(manager, disk)
    (space,) = manager.on_disk_samples(VM, [disk.counter_sample()], 1, 0)[1]
    assert space.values["threshold_foreign"] is False


def test_levels_removed_during_a_restart_are_resolved() -> None:
    disk = Disk(offset=91 * GIB)
    name, entry = attached_manager(disk).persistence.entry_of_vm(VM.uuid)
    for mode, levels, firing in (
        (ThresholdMode.ARM, ("50%", "60%", "95%"), {"50%", "60%"}),
        (ThresholdMode.OFF, (), set()),
    ):
        second = alert_manager(mode, *levels)
        second.persistence.restore({name: entry}, 0)
        second.on_attached(VM)
        poll(second, disk)
        assert {alert.level for alert in second.store} == firing


def test_the_remaining_monitor_of_a_vm_keeps_its_alerts() -> None:
    disk = Disk(offset=81 * GIB)
    manager = attached_manager(disk)
    manager.on_attached(VM_AT_OTHER_MONITOR)
    poll(manager, disk, vm=VM_AT_OTHER_MONITOR)
    manager.on_detached(VM_AT_OTHER_MONITOR, 100, permanently=False)
    poll(manager, disk)
    assert records(manager.tick(100 + REATTACH_SECONDS, 0)) == []
