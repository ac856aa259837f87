"""Alerts when something is not what it was: a reconnect, another disk, a late reply, another config, another way to the VM."""

from agent.alerts.manager import AWAY_SECONDS
from agent.alerts.threshold_types import ThresholdMode
from tests.lab.thin_disks import GIB, VM, Disk, alert_manager
from tests.unit.alerts.test_manager import TWIN, attached, records, said, seen


def test_a_disk_that_is_plugged_in_again_is_another_disk_that_tells_its_own_rungs() -> None:
    disk = Disk(offset=81 * GIB)
    one = attached(disk)
    one.on_gone(VM, 1, for_good=False)
    one.on_attached(VM)  # what was told is kept over a reconnect
    seen(one, disk)
    one.on_samples(VM, Disk(node="n2").layer_samples("disk1"), 2, 0)  # disk0 is unplugged
    assert said(seen(one, disk)) == [("write_threshold", "disk0", "80%", "firing")]


def test_a_threshold_that_was_set_late_is_still_ours() -> None:
    disk = Disk(driver="file", allocated=10 * GIB, offset=12 * GIB)
    one = attached(disk)
    ((device, ask),) = one.pending_commands(VM)
    assert ask.arguments is not None
    one.on_command_done(VM, device, done=False)  # no reply in time
    disk.slot = ask.arguments["write-threshold"]  # and yet QEMU has done it
    seen(one, disk)
    (space,) = one.on_samples(VM, [disk.counter_sample()], 1, 0)[1]
    assert space.values["threshold_foreign"] is False


def test_a_ladder_that_is_another_after_a_restart_leaves_no_alert_of_the_old_one() -> None:
    disk = Disk(offset=91 * GIB)
    name, kept = attached(disk).state_note(VM.uuid)
    for mode, levels, firing in (
        (ThresholdMode.ARM, ("50%", "60%", "95%"), {"50%", "60%"}),
        (ThresholdMode.OFF, (), set()),
    ):
        second = alert_manager(mode, *levels)
        second.restore({name: kept}, 0)
        second.on_attached(VM)
        seen(second, disk)
        assert {alert.level for alert in second.store} == firing


def test_of_two_ways_to_one_vm_the_one_that_is_left_keeps_its_alerts() -> None:
    disk = Disk(offset=81 * GIB)
    one = attached(disk)
    one.on_attached(TWIN)
    seen(one, disk, vm=TWIN)
    one.on_gone(TWIN, 100, for_good=False)
    seen(one, disk)
    assert records(one.tick(100 + AWAY_SECONDS, 0)) == []
