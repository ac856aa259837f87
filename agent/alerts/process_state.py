"""Alert state of one VM process. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.alerts.run_state import RunState
from agent.alerts.store import Alert
from agent.alerts.threshold_tracker import ThresholdTracker
from agent.model.family import Sample
from agent.model.record import Severity, Vm

EMPTY: frozenset[str] = frozenset()
"""The one empty set that all states share; each would take 216 bytes."""


@dataclass(eq=False, slots=True)
class VmProcessState:
    """A process that is attached, or was a short time ago.

    Attributes:
        vm: The VM, as the monitor that it is attached through names it.
        pid: The process; None where it is not known.
        owner: Number that identifies the process in the alert store.
        instance: Part of its alerts' fingerprints: empty, or the monitor where another process with its UUID was attached before.
        run: Its run state.
        is_active: Whether its disks are evaluated: a migration destination's are not before it runs.
        trackers: Usage of its disks, by device.
        restored_disks: Disk notes of an earlier run, by device, until the VM is attached.
        offsets: End of the highest write, by storage node.
        aliases: Devices by their other names: QOM paths, backends, and nodes, including the filters of jobs.
        layers: Device, layer and path by the names of the nodes of disks' layers.
        io_status: `io-status` of its devices, as polled at `io_status_ns`.
        io_errors_ns: Time of the oldest I/O error that stopped the guest and whose disk is not known yet; 0 where there is none.
        io_error_full: Whether that error was a lack of space, as its event said.
        failed_jobs: Jobs whose failure was reported.
        migration_ns: Time of the newest migration status.
        refreshes: Collectors that are due now.
        fresh_slots: Disks whose slot was read, and nothing has happened to it since.
        has_run_state: Whether its run state was polled since it was attached.
        gone_at: Monotonic time at which it was detached; None while it is attached.
        gone_for_good: Whether it shut down or migrated away.
        space: Its space samples as returned last.
        space_changed: Whether `space` may be outdated.
    """

    vm: Vm
    pid: int | None = None
    owner: int = 0
    instance: str = ""
    run: RunState = field(default_factory=RunState)
    is_active: bool = True
    trackers: dict[str, ThresholdTracker] = field(default_factory=dict)
    restored_disks: dict[str, Any] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    layers: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    io_status: dict[str, str] = field(default_factory=dict)
    io_status_ns: int = 0
    io_errors_ns: int = 0
    io_error_full: bool = False
    failed_jobs: frozenset[str] = EMPTY
    migration_ns: int = 0
    refreshes: frozenset[str] = EMPTY
    fresh_slots: frozenset[str] = EMPTY
    has_run_state: bool = False
    gone_at: float | None = None
    gone_for_good: bool = False
    space: list[Sample] = field(default_factory=list)
    space_changed: bool = True

    def is_process(self, vm: Vm, pid: int | None) -> bool:
        """Return whether a VM that is attached is this process. Without pids the monitor decides."""
        if pid is not None and self.pid is not None:
            return pid == self.pid
        return vm.monitor == self.vm.monitor and not self.gone_for_good

    def alert(
        self, name: str, subject: str, severity: Severity, time_ns: int, data: Mapping[str, Any], **more: Any
    ) -> Alert:
        """Return an alert of this process that begins at this time; `more` are further attributes of it."""
        level = more.pop("level", "")
        return Alert(
            name, self.vm, subject, level, severity, time_ns, data, owner=self.owner, instance=self.instance, **more
        )

    def locate(self, node: str) -> tuple[str, str, ThresholdTracker | None]:
        """Return the device, the layer and the tracker that a node belongs to; the node itself where it is no known disk's."""
        for device, tracker in self.trackers.items() if node else ():
            if node == tracker.storage.node:
                return device, "storage", tracker
            if node == tracker.format.node:
                return device, "format", tracker
        return node, "node", None

    def disk_notes(self) -> dict[str, Any]:
        """Return the disks' state that has to outlive the agent, by device."""
        notes = dict(self.restored_disks)
        return notes | {device: tracker.to_note() for device, tracker in self.trackers.items()}
