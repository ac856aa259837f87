"""What the overseer knows of one VM. Pure."""

from dataclasses import dataclass, field
from typing import Any

from agent.alerts.threshold_tracker import ThresholdTracker
from agent.model.family import Sample
from agent.model.record import Vm

NOTHING: frozenset[str] = frozenset()
"""One for all: each empty set takes 216 bytes."""


@dataclass(slots=True)
class VmAlertState:
    """A VM that is there, or was a while ago."""

    vm: Vm
    guards: dict[str, ThresholdTracker] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)  # of an earlier run, until the VM is there
    offsets: dict[str, int] = field(default_factory=dict)  # by storage node
    wants: frozenset[str] = NOTHING
    looked: frozenset[str] = NOTHING  # disks whose slots were read, and nothing has happened to since
    doubts: frozenset[str] = NOTHING  # alerts that may have ended while nobody listened
    met: bool = False  # whether it was asked, since it is there, if it runs
    gone_at: float | None = None
    shut: bool = False
    spaces: list[Sample] = field(default_factory=list)  # as they were told last
    moved: bool = True  # whether they may be others now

    def place(self, node: str) -> tuple[str, str, ThresholdTracker | None]:
        """Return the disk and the layer that a node belongs to; the node itself where it is no known disk's."""
        for device, guard in self.guards.items() if node else ():
            if node == guard.storage.node:
                return device, "storage", guard
            if node == guard.format.node:
                return device, "format", guard
        return node, "node", None
