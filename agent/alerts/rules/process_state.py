"""The alert engine's state of one QEMU process. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.alerts.rules.derived_samples import VmRuleState
from agent.alerts.run_state_tracker import RunStateTracker
from agent.alerts.store import Alert
from agent.alerts.threshold_tracker import ThresholdTracker
from agent.model.family import Sample
from agent.model.record import Severity, Vm

EMPTY_SET: frozenset[str] = frozenset()
"""An empty set that all processes share. A separate set for each process would take 216 bytes."""


@dataclass(slots=True)
class GuestAgentAlertState:
    """State of one guest for the guest-agent alerts: its guest agent, its frozen file systems and its clock.

    Attributes:
        had_agent: Whether a program in the guest has ever opened the guest agent's channel.
        agent_lost_ns: When a poll first showed that the channel is closed again; 0 while the channel is open.
        agent_unresponsive_ns: When the guest agent stopped responding; 0 while the guest agent responds or is not queried.
        frozen_ns: When a poll first showed that the file systems are frozen; 0 while no file system is frozen.
        clock_polls: Number of consecutive polls that showed a wrong clock.
    """

    had_agent: bool = False
    agent_lost_ns: int = 0
    agent_unresponsive_ns: int = 0
    frozen_ns: int = 0
    clock_polls: int = 0


@dataclass(eq=False, slots=True)
class VmProcessState:
    """The alert engine's state of a QEMU process. The agent is attached to the process, or detached in the last `REATTACH_SECONDS`.

    Times whose names end in `_ns` are in nanoseconds since the epoch.

    Attributes:
        vm: The VM, with the monitor through which the agent is attached.
        pid: The process id; None if unknown.
        owner: Number that identifies the process in the alert store.
        instance: Distinguishes the process in fingerprints of alerts: empty for the first process of a UUID, else a monitor's name.
        run: The run state of the guest.
        is_active: Whether the agent evaluates the disks of this process. False for the destination of a migration until its guest runs.
        trackers: Levels and write threshold of each disk, by device.
        restored_disks: State of disks that an earlier run stored, by device. Empty once the VM is attached.
        offsets: Highest write offset in bytes, by storage node.
        aliases: Devices by their other names: QOM paths, block backends and block nodes, including the filter nodes of jobs.
        layers: Device, layer and path of each disk layer, by the layer's block node.
        io_status: `io-status` of each device at the last poll.
        io_status_ns: Time of the last poll of `io-status`; 0 if the devices were not polled.
        unlocated_io_error_ns: Time of the oldest I/O error that stopped the guest and whose disk is still unknown; 0 without an error.
        is_unlocated_error_enospc: Whether lack of space caused the newest I/O error whose disk is still unknown.
        failed_jobs: Ids of the jobs whose failure the agent has reported.
        migration_ns: Time of the newest migration status.
        collectors_to_poll: Names of the collectors to run now.
        slots_read: Devices whose write threshold was read from QEMU after the agent last set it or QEMU last reported it as exceeded.
        is_start_stored: Whether the VM's persistent entry shows that the guest has run or was reset.
        has_run_state: Whether the run state was polled since the process was attached.
        detached_at: Monotonic time in seconds at which the agent detached from the process; None while the agent is attached.
        ended_permanently: Whether the guest shut down or migrated away.
        guest: Values that the guest-agent alerts keep between polls.
        rule_state: Values that the alert rules keep between polls.
        space: The VM's `block_space` samples that `DiskAlerts.space_samples` returned last.
        space_changed: Whether `space` may be out of date.
    """

    vm: Vm
    pid: int | None = None
    owner: int = 0
    instance: str = ""
    run: RunStateTracker = field(default_factory=RunStateTracker)
    is_active: bool = True
    trackers: dict[str, ThresholdTracker] = field(default_factory=dict)
    restored_disks: dict[str, Any] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    layers: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    io_status: dict[str, str] = field(default_factory=dict)
    io_status_ns: int = 0
    unlocated_io_error_ns: int = 0
    is_unlocated_error_enospc: bool = False
    failed_jobs: frozenset[str] = EMPTY_SET
    migration_ns: int = 0
    collectors_to_poll: frozenset[str] = EMPTY_SET
    slots_read: frozenset[str] = EMPTY_SET
    is_start_stored: bool = False
    has_run_state: bool = False
    detached_at: float | None = None
    ended_permanently: bool = False
    guest: GuestAgentAlertState = field(default_factory=GuestAgentAlertState)
    rule_state: VmRuleState = field(default_factory=VmRuleState)
    space: list[Sample] = field(default_factory=list)
    space_changed: bool = True

    def is_process_of_vm(self, vm: Vm, pid: int | None) -> bool:
        """Return whether a VM that the agent attaches to runs in this process.

        Compare the pids. If a pid is unknown, compare the monitors.
        """
        if pid is not None and self.pid is not None:
            return pid == self.pid
        return vm.monitor == self.vm.monitor and not self.ended_permanently

    def build_alert(
        self, name: str, subject: str, severity: Severity, time_ns: int, data: Mapping[str, Any], **attributes: Any
    ) -> Alert:
        """Return an alert of this process.

        Args:
            name: The alert's name, such as `write_threshold`.
            subject: The device; empty for the VM as a whole.
            severity: The alert's severity.
            time_ns: When the alert began to fire, in nanoseconds since the epoch.
            data: Further fields of the alert's record.
            attributes: Further attributes of `Alert`.
        """
        level = attributes.pop("level", "")
        owner, instance = self.owner, self.instance
        return Alert(
            name, self.vm, subject, level, severity, time_ns, data, owner=owner, instance=instance, **attributes
        )

    def disk_threshold_states(self) -> dict[str, Any]:
        """Return the threshold trackers' state as JSON values, by device, for a process that replaces this process."""
        entries = dict(self.restored_disks)
        return entries | {device: tracker.state_to_store() for device, tracker in self.trackers.items()}
