"""Alert state of one VM. Pure."""

from dataclasses import dataclass, field
from typing import Any

from agent.alerts.threshold_tracker import ThresholdTracker
from agent.model.family import Sample
from agent.model.record import Vm

EMPTY: frozenset[str] = frozenset()
"""The one empty set that all states share; each would take 216 bytes."""


@dataclass(slots=True)
class VmAlertState:
    """A VM that is attached, or was a short time ago.

    Attributes:
        vm: The active instance.
        trackers: Usage of its disks, by device.
        restored_disks: Disk notes of an earlier run, by device, until the VM is attached.
        offsets: End of the highest write, by storage node.
        refreshes: Collectors that are due now.
        fresh_slots: Disks whose slot was read, and nothing has happened to it since.
        unconfirmed: Fingerprints of alerts that may have ended while the agent received no events.
        has_run_state: Whether its run state was polled since it was attached.
        gone_at: Monotonic time at which it was detached; None while it is attached.
        gone_for_good: Whether it shut down or migrated away.
        space: Its space samples as returned last.
        space_changed: Whether `space` may be outdated.
    """

    vm: Vm
    trackers: dict[str, ThresholdTracker] = field(default_factory=dict)
    restored_disks: dict[str, Any] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    refreshes: frozenset[str] = EMPTY
    fresh_slots: frozenset[str] = EMPTY
    unconfirmed: frozenset[str] = EMPTY
    has_run_state: bool = False
    gone_at: float | None = None
    gone_for_good: bool = False
    space: list[Sample] = field(default_factory=list)
    space_changed: bool = True

    def locate(self, node: str) -> tuple[str, str, ThresholdTracker | None]:
        """Return the device, the layer and the tracker that a node belongs to; the node itself where it is no known disk's."""
        for device, tracker in self.trackers.items() if node else ():
            if node == tracker.storage.node:
                return device, "storage", tracker
            if node == tracker.format.node:
                return device, "format", tracker
        return node, "node", None
