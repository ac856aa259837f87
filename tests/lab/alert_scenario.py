"""Helpers for tests of alerts: an alert engine that receives events and polls by plain calls, without a session."""

import json
from dataclasses import replace
from typing import Any, Final

from agent.alerts.disk_threshold_types import ThresholdMode
from agent.alerts.engine import AlertChange, AlertEngine
from agent.model.event_table import find_event_definition
from agent.model.family import Family, Sample
from agent.model.metrics.block import BLOCK, BLOCK_DEVICE
from agent.model.metrics.block_layers import BLOCK_LAYER
from agent.model.metrics.guest import GUEST_FILESYSTEM
from agent.model.metrics.jobs import JOB
from agent.model.record import Record, Vm
from tests.lab.thin_disks import GIB, HOST, VM, Disk, policy

SECOND: Final = 1_000_000_000

Change = tuple[str, str, str]
"""An alert's name, its subject, and its new state."""


class AlertScenario:
    """An alert engine, and the alert records that it emitted. Each method returns the alerts that changed. Times are in seconds.

    Attributes:
        engine: The alert engine.
        emitted: All emitted alert records, oldest first.
        entries: The entries that a journal would have stored, by name.
        identity: What identifies every block device; empty if unknown.
        live_pids: The pids of processes that run although no session is attached to them.
    """

    def __init__(self, mode: ThresholdMode = ThresholdMode.OBSERVE) -> None:
        self.mode = mode
        self.live_pids: set[int] = set()
        self.identity = ""
        self.engine = self._new_engine()
        self.emitted: list[Record] = []
        self.entries: dict[str, Any] = {}

    def _new_engine(self) -> AlertEngine:
        return AlertEngine(
            HOST,
            lambda _vm, _disk: policy(self.mode),
            is_alive=lambda pid: pid in self.live_pids,
            identity_lookup=lambda _vm, _path: self.identity,
        )

    def _changes(self, pending: list[AlertChange]) -> list[Change]:
        for alert in pending:
            self._persist(*alert.entry)
        records = [alert.record for alert in pending]
        self.emitted += records
        return [(record.data["alert"], record.subject, record.data["state"]) for record in records]

    def _persist(self, name: str, entry: Any) -> None:
        self.entries.pop(name, None)
        if entry is not None:
            self.entries[name] = json.loads(json.dumps(entry))

    def restart(self, now: float = 0.0) -> None:
        """Replace the engine by a new engine that restores the stored entries, as after a restart of the agent."""
        self.engine = self._new_engine()
        self.engine.persistence.restore(self.entries, now)

    def attach(self, vm: Vm = VM, *, at: float = 0.0, pid: int | None = None) -> list[Change]:
        return self._changes(self.engine.on_attached(vm, int(at * SECOND), pid))

    def detach(self, vm: Vm = VM, *, at: float = 0.0, permanently: bool = False) -> list[Change]:
        return self._changes(self.engine.on_detached(vm, at, permanently=permanently, time_ns=int(at * SECOND)))

    def event(self, name: str, at: float, vm: Vm = VM, **qemu: Any) -> list[Change]:
        """Pass an event to the engine. The keywords are the event's data, with `_` for `-`."""
        data = {key.replace("_", "-"): value for key, value in qemu.items()}
        return self._changes(self.engine.on_event(event_record(name, at, vm, **data), name, int(at * SECOND)))

    def io_error(self, at: float, vm: Vm = VM, *, nospace: bool = True, **qemu: Any) -> list[Change]:
        """Pass an event BLOCK_IO_ERROR with action `stop`. The default device is disk0."""
        named: dict[str, Any] = qemu or {"qom_path": "/machine/peripheral/disk0/virtio-backend", "device": ""}
        return self.event("BLOCK_IO_ERROR", at, vm, operation="write", action="stop", nospace=nospace, **named)

    def run_state(self, status: str, at: float, vm: Vm = VM) -> list[Change]:
        """Pass the result of a poll of the run state. The poll was sent at this time."""
        pending = self.engine.on_run_state(vm, int(at * SECOND), running=status == "running", status=status)
        return self._changes(pending)

    def migration(self, status: str, at: float, vm: Vm = VM) -> list[Change]:
        return self._changes(self.engine.on_migration(vm, status, int(at * SECOND)))

    def jobs(self, at: float, vm: Vm = VM, **errors: str) -> list[Change]:
        """Pass the result of a poll of jobs. The keywords are the job's error, by job."""
        samples = [Sample(JOB, (job, "commit"), {"error": error} if error else {}) for job, error in errors.items()]
        return self._changes(self.engine.on_jobs(vm, samples, int(at * SECOND), int(at * SECOND)))

    def guest_channel(self, at: float, vm: Vm = VM, *, connected: bool) -> list[Change]:
        """Pass a poll of the guest agent's channel."""
        return self._changes(self.engine.on_guest_channel(vm, int(at * SECOND), connected=connected))

    def guest(self, at: float, family: Family, *samples: Sample, vm: Vm = VM) -> list[Change]:
        """Pass all samples of a family from a guest agent."""
        return self._changes(self.engine.on_guest_samples(vm, (family,), samples, int(at * SECOND)))

    def guest_filesystems(self, at: float, vm: Vm = VM, **used_percent: float) -> list[Change]:
        """Pass file systems of 100 GiB; keywords are their usage in percent, by mountpoint without its slash."""
        samples = [
            Sample(
                GUEST_FILESYSTEM, (f"/{name}", name, "ext4"), {"size_bytes": 100 * GIB, "used_bytes": int(used * GIB)}
            )
            for name, used in used_percent.items()
        ]
        return self.guest(at, GUEST_FILESYSTEM, *samples, vm=vm)

    def samples(self, at: float, family: Family, *samples: Sample, vm: Vm = VM) -> list[Change]:
        """Pass all samples of a family to the alerts of tables and of the operator."""
        return self._changes(self.engine.on_samples_for_alert_rules(vm, (family,), samples, int(at * SECOND)))

    def io_status(self, at: float, vm: Vm = VM, **devices: str) -> list[Change]:
        """Pass the result of a poll of devices. The keywords are the device's io-status, by device."""
        samples = [Sample(BLOCK_DEVICE, (device,), {"io_status": status}) for device, status in devices.items()]
        return self._changes(
            self.engine.on_disk_samples(vm, samples, at, int(at * SECOND), families=(BLOCK_DEVICE,))[0]
        )

    def disks(self, at: float, vm: Vm = VM, **disks: Disk) -> list[Change]:
        """Pass the results of polls of disk counters and layers. The keywords are the disks, by device."""
        samples = [
            sample
            for device, disk in disks.items()
            for sample in (disk.counter_sample(device), *disk.layer_samples(device))
        ]
        pending, _ = self.engine.on_disk_samples(vm, samples, at, int(at * SECOND), families=(BLOCK, BLOCK_LAYER))
        return self._changes(pending)

    def tick(self, at: float) -> list[Change]:
        """Pass the time to the engine, and store the entries that are due."""
        changes = self._changes(self.engine.tick(at, int(at * SECOND)))
        for entry in self.engine.persistence.entries_to_store(int(at * SECOND)):
            self._persist(*entry)
        return changes

    def firing(self) -> set[tuple[str, str]]:
        """Return the names and the subjects of the firing alerts."""
        return {(alert.name, alert.subject) for alert in self.engine.store}

    def space(self, device: str = "disk0", vm: Vm = VM) -> dict[str, Any]:
        """Return the values of a disk's space sample; empty if there is no sample."""
        _, samples = self.engine.on_disk_samples(vm, [], 0.0, 0)
        return next((dict(sample.values) for sample in samples if sample.subject == device), {})


def event_record(name: str, at: float, vm: Vm = VM, **qemu: Any) -> Record:
    """Return the record of an event. The keywords are the event's data."""
    body = {"event": name, "category": "x", "qemu": qemu}
    return Record(
        f"qemu.event.{name.lower()}", vm, body, int(at * SECOND), find_event_definition(name).subject_of(qemu)
    )


def other_vm(monitor: str) -> Vm:
    """Return a VM with the same UUID at another monitor."""
    return replace(VM, monitor=monitor)
