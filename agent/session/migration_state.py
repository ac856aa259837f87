"""Whether a VM came here by migration, and whether it has left by one. Pure.

A VM that moves is two processes of one UUID, and neither the end of the one nor the beginning of the other is the VM's own. To QEMU a VM
that is saved to a file moves away, too, and one that is restored from it arrives.
"""

from agent.collectors.migration import is_source
from agent.model.family import Sample
from agent.model.metrics.migration import MIGRATION
from agent.model.metrics.runstate import RUNSTATE

COMING = "inmigrate"
GOING = "finish-migrate"
LEFT = "postmigrate"
"""QEMU's RunState on the way (2.6 to 11.1)."""


class MigrationState:
    """What one process of a VM goes through, seen in order.

    Attributes:
        coming: whether it waits for a VM to arrive, or receives it.
        left: whether the VM has left it.
    """

    def __init__(self) -> None:
        self.coming = False
        self.left = False
        self._receives = False
        self._going = False
        self._looked = False

    def begins(self, status: str) -> None:
        """Take the run state in which it is met; whether the VM has arrived is the next look's to say."""
        if status == COMING:
            self._runs(status)

    def look(self, sample: Sample) -> bool | None:
        """Take a sample; where it says that the VM has arrived, return whether that was seen as it came to pass, otherwise None."""
        if sample.family is RUNSTATE:
            return True if self._runs(sample.values.get("status", "")) else None
        if sample.family is MIGRATION:
            first, self._looked = not self._looked, True
            done, source = sample.values["status"] == "completed", is_source(sample.values)
            self.left |= done and source and self._going
            return False if first and done and not source and not self._receives else None
        return None

    def migrates(self, status: object) -> None:
        """Take what a MIGRATION event says."""
        if status == "setup" and not self.coming:
            self._receives = False  # it has come, and goes on
        elif status == "completed":
            self.left = not self._receives

    def departed(self, *, shut_down: bool) -> bool:
        """Return whether the VM lives on elsewhere, now that the process has ended; `shut_down`: it said that it was told to."""
        return self.left or (self._going and shut_down)

    def _runs(self, status: str) -> bool:
        """Take a run state; return whether the VM has arrived."""
        arrived = self.coming and status != COMING
        self.coming, self._going = status == COMING, status == GOING
        self._receives |= self.coming
        if status not in (GOING, "shutdown"):
            self.left = status == LEFT
        return arrived
