"""A quiet day: 50 ordinary VMs for 24 hours of simulated time, without an alert."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

import pytest

from agent.alerts.rules.sample_rules import HOUR, MINUTE
from agent.model.family import Sample
from agent.model.metrics.block_layers import BLOCK_BITMAP, BLOCK_LAYER
from agent.model.metrics.guest import GUEST_CLOCK, GUEST_FREEZE
from agent.model.metrics.jobs import JOB
from agent.model.metrics.memory import BALLOON, GUEST_MEMORY, MEMORY
from agent.model.metrics.vm_process_and_interfaces import CGROUP
from agent.model.record import Vm
from tests.lab.alert_scenario import AlertScenario
from tests.lab.thin_disks import GIB, VM, Disk

VMS: Final = 50
DAY: Final = 24 * HOUR
STEP: Final = 3 * MINUTE
"""Simulated time between two polls of a VM. Events have times of their own."""


@dataclass
class OrdinaryVm:
    """A VM with a thin disk, a balloon, a guest agent and a backup each night.

    Attributes:
        vm: The VM.
        backup_at: When its backup begins, in seconds.
        backup_seconds: How long its backup takes.
        reboot_at: When its guest reboots for an update; the boot loader resets it once more.
        migration_at: When it migrates within the host's storage, for two minutes; 0 if it does not.
        disk: Its disk.
        backup_rate: Progress of its backup per second.
    """

    vm: Vm
    backup_at: float
    backup_seconds: float
    reboot_at: float
    migration_at: float
    disk: Disk
    backup_rate: float = 5e7

    def poll(self, scenario: AlertScenario, now: float) -> None:
        """Pass the polls of one step to the alerts."""
        vm, backup = self.vm, now - self.backup_at
        self.disk.offset = min(max(75 * GIB, self.disk.offset), self.disk.offset + 15 * (1 << 20))
        is_working, is_backed_up = 0 <= backup < self.backup_seconds, backup >= self.backup_seconds
        jobs = (
            [Sample(JOB, ("backup0", "backup"), _job(backup, self.backup_seconds, self.backup_rate))]
            if is_working
            else []
        )
        scenario.samples(now, JOB, *jobs, vm=vm)
        scenario.run_state("running", now, vm)
        memory = {"memory_bytes": 4 * GIB, "memory_limit_bytes": 5 * GIB, "oom_kills_total": 0}
        scenario.samples(now, CGROUP, Sample(CGROUP, (), memory), vm=vm)
        available = 0.9 if now % HOUR < 50 * MINUTE else 0.12
        guest = {"available_bytes": int(available * 4 * GIB), "total_bytes": 4 * GIB, "oom_kills_total": 0}
        scenario.samples(now, GUEST_MEMORY, Sample(GUEST_MEMORY, (), guest), vm=vm)
        if now % (2 * STEP) == 0:
            scenario.disks(now, vm, disk0=self.disk)
        if now % (2 * STEP) == 0:
            self._poll_layers(scenario, now, is_working=is_working, is_backed_up=is_backed_up)
            self._poll_guest(scenario, now, is_frozen=0 <= backup < MINUTE)

    def _poll_layers(self, scenario: AlertScenario, now: float, *, is_working: bool, is_backed_up: bool) -> None:
        """Pass a poll of layers: during a backup, an overlay takes the writes."""
        paths = ["/images/overlay", "/images/disk"] if is_working else ["/images/disk"]
        layers = [
            Sample(BLOCK_LAYER, ("disk0", "format" if n == 0 else f"backing-{n}"), {"path": path, "corrupt": False})
            for n, path in enumerate(paths)
        ]
        scenario.samples(now, BLOCK_LAYER, *layers, vm=self.vm)
        bitmap = {"dirty_bytes": 0 if is_backed_up else 5 * GIB, "inconsistent": False, "recording": True}
        scenario.samples(now, BLOCK_BITMAP, Sample(BLOCK_BITMAP, ("disk0", "format", "backup"), bitmap), vm=self.vm)
        scenario.samples(now, MEMORY, Sample(MEMORY, (), {"base_bytes": 4 * GIB}), vm=self.vm)
        scenario.samples(now, BALLOON, Sample(BALLOON, (), {"actual_bytes": 3 * GIB}), vm=self.vm)

    def _poll_guest(self, scenario: AlertScenario, now: float, *, is_frozen: bool) -> None:
        scenario.guest(now, GUEST_FREEZE, Sample(GUEST_FREEZE, (), {"frozen": is_frozen}), vm=self.vm)
        if is_frozen:
            scenario.guest(now + 5, GUEST_FREEZE, Sample(GUEST_FREEZE, (), {"frozen": False}), vm=self.vm)
        clock = Sample(GUEST_CLOCK, (), {"offset_seconds": 0.3, "uncertainty_seconds": 0.01})
        scenario.guest(now, GUEST_CLOCK, clock, vm=self.vm)
        scenario.guest_filesystems(now, self.vm, home=60.0, var=81.0)

    def events(self) -> Iterator[tuple[float, str, dict[str, Any]]]:
        """Yield the VM's events of the day: times in seconds, names and data."""
        for at in (self.reboot_at, self.reboot_at + 8):
            yield at, "RESET", {"guest": True, "reason": "guest-reset"}
        yield self.reboot_at + 1, "VSERPORT_CHANGE", {"open": False, "id": "channel0"}
        yield self.reboot_at + 40, "VSERPORT_CHANGE", {"open": True, "id": "channel0"}
        yield self.reboot_at + 41, "RTC_CHANGE", {"offset": 0}
        yield self.reboot_at + 300, "NETDEV_VHOST_USER_DISCONNECTED", {"netdev-id": "net0"}
        yield self.reboot_at + 303, "NETDEV_VHOST_USER_CONNECTED", {"netdev-id": "net0", "chardev-id": "c"}
        yield self.backup_at, "JOB_STATUS_CHANGE", {"id": "backup0", "status": "running"}
        end = self.backup_at + self.backup_seconds
        job = {"type": "backup", "device": "backup0", "len": 1, "offset": 1, "speed": 0}
        yield end - 1, "BLOCK_JOB_COMPLETED", job
        for hour in range(9, 17):
            yield hour * HOUR + 7, "BALLOON_CHANGE", {"actual": 3 * GIB}
            yield hour * HOUR + 11, "VNC_CONNECTED", {"client": {"host": "192.0.2.9"}, "server": {}}
            yield hour * HOUR + 600, "VNC_DISCONNECTED", {"client": {"host": "192.0.2.9"}, "server": {}}
            yield hour * HOUR + 601, "NIC_RX_FILTER_CHANGED", {"path": "/machine/peripheral/net0"}
        if self.migration_at:
            for seconds, status in enumerate(("setup", "active", "completed")):
                yield self.migration_at + 60 * seconds, "MIGRATION", {"status": status}


def _job(elapsed: float, seconds: float, rate: float) -> dict[str, Any]:
    """Return the values of a backup job: it runs, waits a moment at its end, and is dismissed."""
    status = "running" if elapsed < seconds - 2 * MINUTE else "concluded"
    return {"status": status, "io_status": "ok", "progress_per_second": rate if status == "running" else 0.0}


def ordinary_vm(number: int, random: Random) -> OrdinaryVm:
    """Return a VM whose times of the day depend on the source of random numbers."""
    vm = replace(VM, uuid=f"{number:08x}-0000-4000-8000-000000000000", name=f"web-{number}", monitor=f"/run/{number}")
    night = random.uniform(0, 4 * HOUR)
    migration = random.choice([0.0, 13 * HOUR])
    disk = Disk(offset=int(random.uniform(20, 70) * GIB))
    return OrdinaryVm(vm, night, random.uniform(10, 150) * MINUTE, random.uniform(5, 8) * HOUR, migration, disk)


def run_day(scenario: AlertScenario, vms: list[OrdinaryVm]) -> None:
    """Pass a day of polls and events to the alerts, with a tick of the agent at each step."""
    for vm in vms:
        scenario.attach(vm.vm, at=0.5, pid=1000 + int(vm.vm.uuid[:8], 16))
        scenario.guest_channel(1, vm.vm, connected=True)
    events = sorted(((*event, vm) for vm in vms for event in vm.events()), key=lambda event: event[0])
    for step in range(1, int(DAY / STEP)):
        now = step * STEP
        while events and events[0][0] <= now:
            at, name, data, vm = events.pop(0)
            scenario.event(name, at, vm.vm, **data)
        for vm in vms:
            vm.poll(scenario, now)
        scenario.tick(now)


def test_fifty_ordinary_vms_have_no_alert_in_a_day() -> None:
    scenario, random = AlertScenario(), Random(21)
    run_day(scenario, [ordinary_vm(number, random) for number in range(VMS)])
    assert [(record.vm.name, record.data) for record in scenario.emitted] == []
    assert scenario.engine.store.suppressed == 0


@pytest.mark.parametrize(
    ("change", "alert"),
    [
        ({"backup_rate": 0.0, "backup_seconds": HOUR}, "job_stuck"),
        ({"disk": Disk(offset=82 * GIB)}, "write_threshold"),
    ],
    ids=["backup", "disk"],
)
def test_the_same_day_of_another_vm_has_its_alert(change: dict[str, Any], alert: str) -> None:
    scenario = AlertScenario()
    run_day(scenario, [replace(ordinary_vm(0, Random(21)), **change)])
    assert {record.data["alert"] for record in scenario.emitted} == {alert}
