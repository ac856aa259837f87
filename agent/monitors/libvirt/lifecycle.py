"""libvirt's lifecycle events (virDomainEventType), and the migration phase that these events show. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

STARTED, SUSPENDED, RESUMED, STOPPED = 2, 3, 4, 5
"""Types of lifecycle events: values of virDomainEventType."""

_STARTED_BY_MIGRATION = 1
"""Detail of STARTED if the domain migrates in (VIR_DOMAIN_EVENT_STARTED_MIGRATED). QEMU exists, but does not run the guest yet."""
_ARRIVAL_EVENTS = {(SUSPENDED, 0), (RESUMED, 0), (RESUMED, 1)}
"""Types and details of the events that end a migration to this host. The event is SUSPENDED for a domain that was suspended before."""

QMP_EVENT_BY_LIFECYCLE_TYPE: Mapping[int, str] = {SUSPENDED: "STOP", RESUMED: "RESUME", 6: "SHUTDOWN", 7: "SUSPEND"}
"""The name of QEMU's event by virDomainEventType, for read-only connections, which do not receive QEMU's own events."""

_STOP_REASONS = {
    0: "the guest shut down",
    1: "the domain was destroyed",
    2: "QEMU crashed, or was killed",
    3: "the domain has migrated to another host",
    4: "the domain was saved",
    5: "QEMU failed",
    6: "the domain was reverted to a snapshot",
}
"""Why a domain stopped, by the detail of STOPPED (virDomainEventStoppedDetailType)."""

_CONTINUES_ELSEWHERE = (3, 4)
"""Details of the type STOPPED if the VM continues on another host, or was saved to a file."""


@dataclass(frozen=True, slots=True)
class LifecycleEvent:
    """A lifecycle event of a domain.

    Attributes:
        uuid: the domain.
        type: number of the type in virDomainEventType.
        detail: number of the detail, in the type's own enumeration such as virDomainEventStoppedDetailType.
    """

    uuid: str
    type: int
    detail: int

    @property
    def stop_reason(self) -> str:
        """Why the domain stopped, for the operator; valid only for the type STOPPED."""
        return _STOP_REASONS.get(self.detail, "the domain was stopped")

    @property
    def is_migrated_or_saved(self) -> bool:
        """True if the domain stopped because it migrated to another host or was saved to a file."""
        return self.type == STOPPED and self.detail in _CONTINUES_ELSEWHERE


class LibvirtMigrationPhase(Enum):
    """Progress of a domain's migration to this host. libvirt's lifecycle events report the progress; libvirt's domain states do not."""

    NONE = auto()
    """The domain was started on this host, or its migration ended before the agent connected to libvirtd."""
    ARRIVING = auto()
    """The migration runs."""
    ARRIVED = auto()
    """The migration has ended, and the domain is on this host."""

    def after(self, event: LifecycleEvent) -> "LibvirtMigrationPhase":
        """Return the phase after a lifecycle event."""
        if event.type == STOPPED:
            return LibvirtMigrationPhase.NONE
        if (event.type, event.detail) == (STARTED, _STARTED_BY_MIGRATION):
            return LibvirtMigrationPhase.ARRIVING
        if self is not LibvirtMigrationPhase.NONE and (event.type, event.detail) in _ARRIVAL_EVENTS:
            return LibvirtMigrationPhase.ARRIVED
        return self
