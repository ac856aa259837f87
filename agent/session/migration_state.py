"""Live migration, seen from one QEMU process of the VM. Pure.

A VM that migrates has two processes with one UUID. The end of the source process is not the end of the VM, and the start of the
destination process is not the start of the VM. QEMU treats a VM that is saved to a file, or restored from one, as migrating too.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any

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

    UNKNOWN = "unknown"
    """No run state is known yet."""
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
    MigrationPhase.UNKNOWN: MigrationPhase.PRESENT,
    MigrationPhase.INCOMING: MigrationPhase.RECEIVED,
    MigrationPhase.HANDING_OVER: MigrationPhase.PRESENT,  # the migration failed
    MigrationPhase.MIGRATED_AWAY: MigrationPhase.PRESENT,  # the source was resumed
}

_ROLES = {
    MigrationPhase.PRESENT: "source",  # a process that runs its VM cannot start to receive one
    MigrationPhase.HANDING_OVER: "source",
    MigrationPhase.MIGRATED_AWAY: "source",
    MigrationPhase.INCOMING: "destination",
    MigrationPhase.RECEIVED: "destination",
}

_TRANSFERRING = frozenset({"active", "postcopy-active", "postcopy-paused", "postcopy-recover"})
"""Statuses in which a source reports figures. A process in such a status that reports no figures is a destination."""

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

    __slots__ = ("_status", "phase")

    def __init__(self) -> None:
        self.phase = MigrationPhase.UNKNOWN
        self._status: str | None = None  # of the last migration sample

    @property
    def incoming(self) -> bool:
        """True while the process waits for a VM or receives it."""
        return self.phase is MigrationPhase.INCOMING

    @property
    def runs(self) -> bool:
        """True if the VM is known to be in this process, and is not migrating in or out."""
        return self.phase in (MigrationPhase.PRESENT, MigrationPhase.RECEIVED)

    @property
    def role(self) -> str | None:
        """The process's role in its last migration: `source`, `destination`, or None if unknown."""
        return _ROLES.get(self.phase)

    def on_attach(self, run_state: str) -> None:
        """Handle the run state at attach. It never reports that the VM has migrated in; only samples do."""
        if run_state == _INMIGRATE or (run_state and self.phase is MigrationPhase.UNKNOWN):
            self._on_run_state(run_state)

    def on_event(self, status: object) -> None:
        """Handle the status of a MIGRATION event."""
        if isinstance(status, str):
            self.phase = _EVENTS.get(status, {}).get(self.phase, self.phase)

    def on_sample(self, sample: Sample) -> bool | None:
        """Handle a sample.

        Returns:
            None if the sample does not show that the VM has migrated in. Otherwise True if the agent observed the arrival, and False
            if the VM had arrived before the first poll.
        """
        if sample.family is RUNSTATE:
            return True if self._on_run_state(sample.values.get("status", "")) else None
        if sample.family is MIGRATION:
            return self._on_migration_sample(sample.values)
        return None

    def _on_migration_sample(self, values: Mapping[str, Any]) -> bool | None:
        before, self._status = self._status, values["status"]
        first, completed, source = before is None, self._status == "completed", is_source(values)
        match self.phase:
            case MigrationPhase.HANDING_OVER if completed and source:
                self.phase = MigrationPhase.MIGRATED_AWAY
            case MigrationPhase.RECEIVED if before == "completed" and not completed:
                self.phase = MigrationPhase.PRESENT  # another migration, which can only be outgoing
            case MigrationPhase.UNKNOWN | MigrationPhase.PRESENT if first and not source:
                if completed or self._status in _TRANSFERRING:
                    self.phase = MigrationPhase.RECEIVED
                return False if completed else None
        return None

    def migrated_away(self, *, shut_down: bool) -> bool:
        """Return, after the process has ended, whether its VM continues elsewhere.

        Args:
            shut_down: whether QEMU emitted SHUTDOWN before it ended.
        """
        return self.phase is MigrationPhase.MIGRATED_AWAY or (self.phase is MigrationPhase.HANDING_OVER and shut_down)

    def _on_run_state(self, run_state: str) -> bool:
        """Handle a run state; return whether the VM has migrated in."""
        before = self.phase
        if not run_state:
            return False
        self.phase = _RUN_STATES.get(run_state, _OTHER_RUN_STATE).get(before, before)
        return before is MigrationPhase.INCOMING and self.phase is not MigrationPhase.INCOMING
