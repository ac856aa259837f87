"""Alerts of several processes with one UUID: a restarted VM, a migration within the host, and clones. Each process has its own alerts."""

import pytest

from tests.lab.alert_scenario import AlertScenario, other_vm
from tests.lab.thin_disks import GIB, VM, Disk

CLONE = other_vm("/run/clone.qmp")
DISK_FULL = ("disk_full", "disk0")


def scenario_with_clones() -> AlertScenario:
    """Return a scenario in which two VMs with one UUID run. Each was polled as running after both had started."""
    scenario = AlertScenario()
    scenario.attach(VM, pid=1)
    scenario.attach(CLONE, pid=2)
    for at, vm in ((1, VM), (2, CLONE), (3, VM), (4, CLONE)):
        scenario.run_state("running", at, vm)
    scenario.tick(5)
    return scenario


def test_two_running_vms_with_one_uuid_are_an_alert() -> None:
    scenario = scenario_with_clones()
    assert ("uuid_clash", "") in scenario.firing()
    assert scenario.emitted[-1].data["monitors"] == "/run/clone.qmp, /run/vm1.qmp"
    scenario.detach(CLONE, at=6, permanently=True)
    assert ("uuid_clash", "", "resolved") in scenario.tick(7)


def test_a_clash_is_certain_only_after_both_were_polled_again() -> None:
    scenario = AlertScenario()
    scenario.attach(VM, pid=1)
    scenario.attach(CLONE, pid=2)
    scenario.run_state("running", 1, VM)
    scenario.run_state("running", 2, CLONE)
    assert scenario.tick(3) == []
    assert "runstate" in scenario.engine.threshold_commands.pop_collectors_to_poll(VM)
    assert "runstate" in scenario.engine.threshold_commands.pop_collectors_to_poll(CLONE)


def test_a_clash_outlives_a_restart_of_the_agent() -> None:
    scenario = scenario_with_clones()
    scenario.live_pids = {1, 2}
    scenario.restart()
    assert scenario.tick(6) == []
    scenario.attach(VM, pid=1)
    scenario.attach(CLONE, pid=2)
    for at, vm in ((7, VM), (8, CLONE), (9, VM), (10, CLONE)):
        scenario.run_state("running", at, vm)
        assert scenario.tick(at) == []
    assert ("uuid_clash", "") in scenario.firing()
    scenario.event("STOP", 11, CLONE)
    assert scenario.tick(12) == [("uuid_clash", "", "resolved")]


def test_the_resume_of_a_clone_resolves_nothing_of_the_other_vm() -> None:
    scenario = scenario_with_clones()
    scenario.disks(5, VM, disk0=Disk(offset=50 * GIB, path="/dev/vg/a"))
    scenario.disks(5, CLONE, disk0=Disk(offset=60 * GIB, path="/dev/vg/b"))
    assert scenario.io_error(10, VM) == [(*DISK_FULL, "firing")]
    scenario.event("STOP", 10.1, VM)
    assert scenario.event("RESUME", 11, CLONE) == []
    assert scenario.run_state("running", 12, CLONE) == []
    assert scenario.io_error(13, CLONE) == [(*DISK_FULL, "firing")], "each VM has its own alert"
    first, second = scenario.emitted[-2:]
    assert (first.data["path"], second.data["path"]) == ("/dev/vg/a", "/dev/vg/b")
    assert first.data["fingerprint"] != second.data["fingerprint"]
    assert scenario.event("RESUME", 14, VM) == [(*DISK_FULL, "resolved")]
    assert scenario.event("RESUME", 15, CLONE) == [(*DISK_FULL, "resolved")]


def test_the_levels_of_a_clones_disk_are_its_own() -> None:
    scenario = scenario_with_clones()
    assert scenario.disks(5, VM, disk0=Disk(offset=85 * GIB, path="/dev/vg/a")) == [
        ("write_threshold", "disk0", "firing")
    ]
    assert scenario.disks(6, CLONE, disk0=Disk(offset=10 * GIB, path="/dev/vg/b")) == []
    assert len(scenario.disks(7, CLONE, disk0=Disk(offset=92 * GIB, path="/dev/vg/b"))) == 2


def test_a_paused_clone_hands_nothing_over() -> None:
    scenario = scenario_with_clones()
    scenario.disks(5, VM, disk0=Disk(offset=85 * GIB))
    scenario.event("STOP", 10, VM)
    scenario.run_state("paused", 11, VM)
    scenario.run_state("running", 12, CLONE)
    scenario.tick(13)
    assert scenario.disks(14, VM, disk0=Disk(offset=91 * GIB)) == [("write_threshold", "disk0", "firing")]


@pytest.mark.parametrize("status", ["io-error", "guest-panicked"])
def test_a_clone_that_was_restored_from_a_file_takes_nothing_over(status: str) -> None:
    """It has waited for an incoming migration. But the other VM has stopped for another reason than a migration."""
    scenario = AlertScenario()
    scenario.attach(VM, pid=1)
    scenario.run_state("running", 1, VM)
    scenario.disks(2, VM, disk0=Disk(offset=85 * GIB))
    scenario.attach(CLONE, pid=2)
    scenario.run_state("inmigrate", 3, CLONE)
    scenario.io_error(10, VM)
    scenario.event("STOP", 10.1, VM)
    scenario.run_state(status, 10.2, VM)
    firing = scenario.firing()
    assert scenario.run_state("running", 11, CLONE) == []
    assert scenario.event("RESUME", 11.1, CLONE) == []
    scenario.tick(12)
    assert scenario.firing() == firing
    assert scenario.event("RESUME", 20, VM) != []


def test_the_end_of_a_clone_resolves_its_own_alerts_only() -> None:
    scenario = scenario_with_clones()
    scenario.io_error(10, VM)
    scenario.event("GUEST_PANICKED", 10, CLONE, action="pause")
    scenario.detach(CLONE, at=11, permanently=True)
    changes = scenario.tick(12)
    assert ("guest_panicked", "", "resolved") in changes
    assert DISK_FULL in scenario.firing()


def test_the_end_of_the_first_clone_leaves_the_second_its_own_levels() -> None:
    scenario = scenario_with_clones()
    scenario.disks(5, VM, disk0=Disk(offset=96 * GIB, path="/dev/vg/a"))
    scenario.disks(5, CLONE, disk0=Disk(offset=81 * GIB, path="/dev/vg/b"))
    assert scenario.detach(VM, at=10, permanently=True).count(("write_threshold", "disk0", "resolved")) == 3
    scenario.tick(11)
    (alert,) = scenario.engine.store
    assert (alert.level, alert.data["path"]) == ("80%", "/dev/vg/b")
    assert scenario.disks(12, CLONE, disk0=Disk(offset=81 * GIB, path="/dev/vg/b")) == []
    assert scenario.space(vm=CLONE)["used_bytes"] == 81 * GIB


def test_clones_are_distinguished_after_a_restart_of_the_agent() -> None:
    scenario = scenario_with_clones()
    scenario.io_error(10, VM)
    scenario.io_error(11, CLONE)
    scenario.live_pids = {1, 2}
    scenario.restart()
    assert scenario.attach(CLONE, pid=2) == []
    assert scenario.attach(VM, pid=1) == []
    assert scenario.run_state("io-error", 20, VM) == []
    assert scenario.run_state("running", 21, CLONE) == [(*DISK_FULL, "resolved")]
    assert DISK_FULL in scenario.firing()
    assert scenario.event("RESUME", 22, VM) == [(*DISK_FULL, "resolved")]


def test_another_process_at_the_same_monitor_ends_what_stopped_the_first() -> None:
    scenario = AlertScenario()
    scenario.attach(VM, pid=1)
    scenario.disks(1, disk0=Disk(offset=85 * GIB))
    scenario.io_error(10)
    scenario.restart()
    assert scenario.attach(VM, pid=2, at=20) == [(*DISK_FULL, "resolved")]
    assert scenario.disks(21, disk0=Disk(offset=85 * GIB)) == [], "its disk is as full as before"


def test_the_same_process_at_another_monitor_keeps_its_alerts() -> None:
    scenario = AlertScenario()
    scenario.attach(VM, pid=1)
    scenario.run_state("running", 1)
    scenario.io_error(10)
    scenario.detach(VM, at=11)
    assert scenario.attach(CLONE, pid=1, at=12) == []
    assert scenario.run_state("io-error", 13, CLONE) == []
    assert scenario.event("RESUME", 14, CLONE) == [(*DISK_FULL, "resolved")]


def test_a_migration_within_the_host_is_no_clash() -> None:
    scenario = AlertScenario()
    scenario.attach(VM, pid=1)
    scenario.run_state("running", 1, VM)
    scenario.disks(1, VM, disk0=Disk(offset=85 * GIB))
    scenario.attach(CLONE, pid=2, at=2)
    scenario.run_state("inmigrate", 2, CLONE)
    scenario.event("RESUME", 11, CLONE)  # read before the source's STOP
    assert scenario.tick(11.5) == []
    scenario.event("STOP", 10, VM)
    assert scenario.tick(12) == []
    scenario.run_state("postmigrate", 12, VM)
    scenario.run_state("running", 12, CLONE)
    assert scenario.tick(13) == []
    assert scenario.disks(14, CLONE, disk0=Disk(offset=85 * GIB)) == [], "the level is known"
    scenario.detach(VM, at=15, permanently=True)
    assert scenario.tick(16) == []
    assert scenario.firing() == {("write_threshold", "disk0")}
