"""The progress of a VM's migration, as seen by one of its QEMU processes. Pure.

A VM that migrates has two processes with one UUID. When the source process ends, the VM goes on in the destination process. QEMU also
treats a save to a file and a restore from a file as migrations.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any

from agent.collectors.migration import is_from_migration_source
from agent.model.family import Sample
from agent.model.metrics.migration import MIGRATION
from agent.model.metrics.runstate import RUNSTATE

_INMIGRATE = "inmigrate"
_FINISH_MIGRATE = "finish-migrate"
_POSTMIGRATE = "postmigrate"
_SHUTDOWN = "shutdown"
"""QEMU's run states during a migration (QEMU 2.6 to 11.1)."""


class MigrationPhase(Enum):
    """Where the VM is, as seen by this process."""

    UNKNOWN = "unknown"
    """No run state is known yet."""
    PRESENT = "present"
    """The VM is in this process. The agent observed no incoming migration, or an outgoing migration has begun later."""
    INCOMING = "incoming"
    """The process waits for the VM or receives the VM."""
    RECEIVED = "received"
    """The VM has migrated into this process, and no outgoing migration has begun since then."""
    HANDING_OVER = "handing over"
    """The guest is stopped, and the process sends the remaining state of the VM."""
    MIGRATED_AWAY = "migrated away"
    """The VM is in another process or in a file."""


_NEXT_BY_RUN_STATE: dict[str, dict[MigrationPhase, MigrationPhase]] = {
    _INMIGRATE: dict.fromkeys(MigrationPhase, MigrationPhase.INCOMING),
    _FINISH_MIGRATE: dict.fromkeys(MigrationPhase, MigrationPhase.HANDING_OVER)
    | {MigrationPhase.MIGRATED_AWAY: MigrationPhase.MIGRATED_AWAY},
    _POSTMIGRATE: dict.fromkeys(MigrationPhase, MigrationPhase.MIGRATED_AWAY),
    _SHUTDOWN: {MigrationPhase.INCOMING: MigrationPhase.RECEIVED, MigrationPhase.HANDING_OVER: MigrationPhase.PRESENT},
}
"""The next phase by run state and current phase. A phase that is not listed stays."""

_NEXT_BY_OTHER_RUN_STATE = {
    MigrationPhase.UNKNOWN: MigrationPhase.PRESENT,
    MigrationPhase.INCOMING: MigrationPhase.RECEIVED,
    MigrationPhase.HANDING_OVER: MigrationPhase.PRESENT,  # the migration failed
    MigrationPhase.MIGRATED_AWAY: MigrationPhase.PRESENT,  # the source was resumed
}
"""The next phase by current phase, for all other run states."""

_ROLE_BY_PHASE = {
    MigrationPhase.PRESENT: "source",  # a process that runs its VM cannot begin to receive a VM
    MigrationPhase.HANDING_OVER: "source",
    MigrationPhase.MIGRATED_AWAY: "source",
    MigrationPhase.INCOMING: "destination",
    MigrationPhase.RECEIVED: "destination",
}

_TRANSFERRING_STATUSES = frozenset(
    {"active", "postcopy-device", "postcopy-active", "postcopy-paused", "postcopy-recover-setup", "postcopy-recover"}
)
"""Migration statuses in which a source reports transferred bytes, and a destination does not."""

_NEXT_BY_EVENT: dict[object, dict[MigrationPhase, MigrationPhase]] = {
    "setup": {MigrationPhase.RECEIVED: MigrationPhase.PRESENT},
    "completed": {
        MigrationPhase.PRESENT: MigrationPhase.MIGRATED_AWAY,
        MigrationPhase.HANDING_OVER: MigrationPhase.MIGRATED_AWAY,
    },
}
"""The next phase by status in a MIGRATION event and current phase. Both the source and the destination emit these events."""


class MigrationState:
    """State machine of one QEMU process's migration. The inputs are run states, MIGRATION events and samples, in order of arrival.

    Attributes:
        phase: the current phase.
    """

    __slots__ = ("_last_status", "phase")

    def __init__(self) -> None:
        self.phase = MigrationPhase.UNKNOWN
        self._last_status: str | None = None  # the status in the last migration sample

    @property
    def is_incoming(self) -> bool:
        """True while the process waits for the VM or receives the VM."""
        return self.phase is MigrationPhase.INCOMING

    @property
    def role(self) -> str | None:
        """The process's role in the VM's last migration: `source` or `destination`; None if the role is unknown."""
        return _ROLE_BY_PHASE.get(self.phase)

    def on_run_state_at_attach(self, run_state: str) -> None:
        """Update the phase from the VM's run state when the agent attaches; `run_state` is empty if unknown."""
        if run_state == _INMIGRATE or (run_state and self.phase is MigrationPhase.UNKNOWN):
            self._on_run_state(run_state)

    def on_event(self, status: object) -> None:
        """Update the phase from the status in a MIGRATION event."""
        if isinstance(status, str):
            self.phase = _NEXT_BY_EVENT.get(status, {}).get(self.phase, self.phase)

    def on_sample(self, sample: Sample) -> bool | None:
        """Update the phase from a sample of any family.

        Returns:
            True if the VM has migrated in since the last sample. False if the VM migrated in before the first migration sample. Otherwise
            None.
        """
        if sample.family is RUNSTATE:
            return True if self._on_run_state(sample.values.get("status", "")) else None
        if sample.family is MIGRATION:
            return self._on_migration_sample(sample.values)
        return None

    def _on_migration_sample(self, values: Mapping[str, Any]) -> bool | None:
        before, self._last_status = self._last_status, values["status"]
        first, completed, source = before is None, self._last_status == "completed", is_from_migration_source(values)
        match self.phase:
            case MigrationPhase.HANDING_OVER if completed and source:
                self.phase = MigrationPhase.MIGRATED_AWAY
            case MigrationPhase.RECEIVED if before == "completed" and not completed:
                self.phase = MigrationPhase.PRESENT  # a new migration has begun, which can only be outgoing
            case MigrationPhase.UNKNOWN | MigrationPhase.PRESENT if first and not source:
                if completed or self._last_status in _TRANSFERRING_STATUSES:
                    self.phase = MigrationPhase.RECEIVED
                return False if completed else None
        return None

    def migrated_away(self, *, shut_down: bool) -> bool:
        """Return whether the process had passed the VM to another process or to a file when the process ended.

        Args:
            shut_down: whether QEMU emitted SHUTDOWN before the process ended.
        """
        return self.phase is MigrationPhase.MIGRATED_AWAY or (self.phase is MigrationPhase.HANDING_OVER and shut_down)

    def _on_run_state(self, run_state: str) -> bool:
        """Update the phase from a run state. Return whether the VM has migrated in."""
        before = self.phase
        if not run_state:
            return False
        self.phase = _NEXT_BY_RUN_STATE.get(run_state, _NEXT_BY_OTHER_RUN_STATE).get(before, before)
        return before is MigrationPhase.INCOMING and self.phase is not MigrationPhase.INCOMING
