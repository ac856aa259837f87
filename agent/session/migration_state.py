"""Live migration of a VM as one of its processes goes through it. Pure.

A VM that migrates has two processes with one UUID. The end of the source process is not the end of the VM, and the start of the
destination process is not the start of the VM. QEMU treats a VM that is saved to a file, or restored from one, as migrating too.
"""

from enum import Enum

from agent.collectors.migration import is_source
from agent.model.family import Sample
from agent.model.metrics.migration import MIGRATION
from agent.model.metrics.runstate import RUNSTATE

_INMIGRATE = "inmigrate"
_FINISH_MIGRATE = "finish-migrate"
_POSTMIGRATE = "postmigrate"
_SHUTDOWN = "shutdown"
"""QEMU's RunState during a migration (2.6 to 11.1)."""


class MigrationPhase(Enum):
    """Where the VM is, seen from this process."""

    PRESENT = "present"
    """The VM runs here. No incoming migration was observed, or an outgoing one has begun since."""
    INCOMING = "incoming"
    """The process waits for the VM or receives it."""
    RECEIVED = "received"
    """The VM has migrated in, and no outgoing migration has begun since."""
    HANDING_OVER = "handing over"
    """The process sends the last of the VM's state."""
    MIGRATED_AWAY = "migrated away"
    """The VM runs elsewhere, or is in a file."""


_RUN_STATES: dict[str, dict[MigrationPhase, MigrationPhase]] = {
    _INMIGRATE: dict.fromkeys(MigrationPhase, MigrationPhase.INCOMING),
    _FINISH_MIGRATE: dict.fromkeys(MigrationPhase, MigrationPhase.HANDING_OVER)
    | {MigrationPhase.MIGRATED_AWAY: MigrationPhase.MIGRATED_AWAY},
    _POSTMIGRATE: dict.fromkeys(MigrationPhase, MigrationPhase.MIGRATED_AWAY),
    _SHUTDOWN: {MigrationPhase.INCOMING: MigrationPhase.RECEIVED, MigrationPhase.HANDING_OVER: MigrationPhase.PRESENT},
}
"""Next phase for each run state; a phase that is not listed stays."""

_OTHER_RUN_STATE = {
    MigrationPhase.INCOMING: MigrationPhase.RECEIVED,
    MigrationPhase.HANDING_OVER: MigrationPhase.PRESENT,  # the migration failed
    MigrationPhase.MIGRATED_AWAY: MigrationPhase.PRESENT,  # the source was resumed
}

_EVENTS: dict[object, dict[MigrationPhase, MigrationPhase]] = {
    "setup": {MigrationPhase.RECEIVED: MigrationPhase.PRESENT},
    "completed": {
        MigrationPhase.PRESENT: MigrationPhase.MIGRATED_AWAY,
        MigrationPhase.HANDING_OVER: MigrationPhase.MIGRATED_AWAY,
    },
}
"""Next phase for each status in a MIGRATION event. A destination emits these events too."""


class MigrationState:
    """State machine of one process of a VM, fed with run states, MIGRATION events and samples in order.

    Attributes:
        phase: the current phase.
    """

    __slots__ = ("_sampled", "phase")

    def __init__(self) -> None:
        self.phase = MigrationPhase.PRESENT
        self._sampled = False

    @property
    def incoming(self) -> bool:
        """True while the process waits for a VM or receives it."""
        return self.phase is MigrationPhase.INCOMING

    def on_attach(self, run_state: str) -> None:
        """Handle the run state at attach. Only samples report that the VM has migrated in."""
        if run_state == _INMIGRATE:
            self._on_run_state(run_state)

    def on_event(self, status: object) -> None:
        """Handle the status of a MIGRATION event."""
        if isinstance(status, str):
            self.phase = _EVENTS.get(status, {}).get(self.phase, self.phase)

    def on_sample(self, sample: Sample) -> bool | None:
        """Handle a sample.

        Returns:
            None unless the sample shows that the VM has migrated in. If so, whether the agent observed it as it happened.
        """
        if sample.family is RUNSTATE:
            return True if self._on_run_state(sample.values.get("status", "")) else None
        if sample.family is MIGRATION:
            first, self._sampled = not self._sampled, True
            completed, source = sample.values["status"] == "completed", is_source(sample.values)
            if completed and source and self.phase is MigrationPhase.HANDING_OVER:
                self.phase = MigrationPhase.MIGRATED_AWAY
            received = self.phase in (MigrationPhase.INCOMING, MigrationPhase.RECEIVED)
            return False if first and completed and not source and not received else None
        return None

    def migrated_away(self, *, shut_down: bool) -> bool:
        """Return whether the VM lives on elsewhere, now that the process has ended.

        Args:
            shut_down: whether QEMU emitted SHUTDOWN.
        """
        return self.phase is MigrationPhase.MIGRATED_AWAY or (self.phase is MigrationPhase.HANDING_OVER and shut_down)

    def _on_run_state(self, run_state: str) -> bool:
        """Handle a run state; return whether the VM has migrated in."""
        before = self.phase
        self.phase = _RUN_STATES.get(run_state, _OTHER_RUN_STATE).get(before, before)
        return before is MigrationPhase.INCOMING and self.phase is not MigrationPhase.INCOMING
