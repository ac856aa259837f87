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
"""An empty set that all states share: separate ones would take 216 bytes each."""


@dataclass(eq=False, slots=True)
class VmProcessState:
    """A process that is attached, or was a short time ago.

    Attributes:
        vm: The VM, with the monitor through which it is attached.
        pid: The process id; None if it is unknown.
        owner: Number that identifies the process in the alert store.
        instance: Part of its alerts' fingerprints: its monitor if another process with the same UUID was attached first, else empty.
        run: Its run state.
        is_active: Whether its disks are evaluated. Those of a migration's destination are not, until the destination runs.
        trackers: Usage of its disks, by device.
        restored_disks: Disk notes of an earlier run, by device, until the VM is attached.
        offsets: End of the highest write, by storage node.
        aliases: Devices by their other names: QOM paths, backends and nodes, including the filter nodes of jobs.
        layers: Device, layer and path, by the node of each layer of a disk.
        io_status: `io-status` of its devices, as polled at `io_status_ns`.
        io_errors_ns: Time of the oldest I/O error that stopped the guest and whose disk is not known yet; 0 if there is none.
        io_error_full: Whether the cause of that error was a lack of space, according to its event.
        failed_jobs: Jobs whose failure was reported.
        migration_ns: Time of the newest migration status.
        refreshes: Collectors that are due now.
        fresh_slots: Disks whose threshold slot was read, and for which no command or event followed.
        has_run_state: Whether its run state was polled since it was attached.
        gone_at: Monotonic time at which it was detached; None while it is attached.
        gone_for_good: Whether it shut down or migrated away.
        space: Its space samples, as returned last.
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
        """Return whether an attached VM is this process: by pid, or by monitor if a pid is unknown."""
        if pid is not None and self.pid is not None:
            return pid == self.pid
        return vm.monitor == self.vm.monitor and not self.gone_for_good

    def alert(
        self, name: str, subject: str, severity: Severity, time_ns: int, data: Mapping[str, Any], **more: Any
    ) -> Alert:
        """Return an alert of this process that fires since `time_ns`; `more` are further attributes of the alert."""
        level = more.pop("level", "")
        return Alert(
            name, self.vm, subject, level, severity, time_ns, data, owner=self.owner, instance=self.instance, **more
        )

    def locate(self, node: str) -> tuple[str, str, ThresholdTracker | None]:
        """Return the device, the layer and the tracker of a node; the node itself as the device if it belongs to no known disk."""
        for device, tracker in self.trackers.items() if node else ():
            if node == tracker.storage.node:
                return device, "storage", tracker
            if node == tracker.format.node:
                return device, "format", tracker
        return node, "node", None

    def disk_notes(self) -> dict[str, Any]:
        """Return the state of the disks that has to survive a restart of the agent, by device."""
        notes = dict(self.restored_disks)
        return notes | {device: tracker.to_note() for device, tracker in self.trackers.items()}
