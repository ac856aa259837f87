"""libvirt's lifecycle events (virDomainEventType and its details): what they mean for a VM. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

STARTED, SUSPENDED, RESUMED, STOPPED = 2, 3, 4, 5
"""virDomainEventType."""

_MIGRATED = 1
"""VIR_DOMAIN_EVENT_STARTED_MIGRATED: the process exists, and the domain is migrating in."""
_ARRIVALS = {(SUSPENDED, 0), (RESUMED, 0), (RESUMED, 1)}
"""Events that follow _MIGRATED: the domain was suspended, if it was suspended on the other host, or resumed."""

QMP_EVENTS: Mapping[int, str] = {SUSPENDED: "STOP", RESUMED: "RESUME", 6: "SHUTDOWN", 7: "SUSPEND"}
"""QEMU's event by virDomainEventType. Read-only connections use it, because they do not receive QEMU's own events."""

_STOP_REASONS = {
    0: "the guest shut down",
    1: "the domain was destroyed",
    2: "QEMU crashed, or was killed",
    3: "the domain has migrated to another host",
    4: "the domain was saved",
    5: "QEMU failed",
    6: "the domain was reverted to a snapshot",
}
"""virDomainEventStoppedDetailType."""

_STOPPED_BUT_ALIVE = (3, 4)
"""Details of STOPPED after which the VM continues elsewhere or in a file."""


@dataclass(frozen=True, slots=True)
class LifecycleEvent:
    """A lifecycle event of a domain.

    Attributes:
        uuid: the domain.
        type: virDomainEventType.
        detail: the type's own detail, such as virDomainEventStoppedDetailType.
    """

    uuid: str
    type: int
    detail: int

    @property
    def stop_reason(self) -> str:
        """Why the domain stopped, for people."""
        return _STOP_REASONS.get(self.detail, "the domain was stopped")

    @property
    def migrated_away(self) -> bool:
        """True if the domain stopped here and its VM continues elsewhere or in a file."""
        return self.type == STOPPED and self.detail in _STOPPED_BUT_ALIVE


class DomainMigrationPhase(Enum):
    """Progress of a domain's migration from another host. libvirt's lifecycle events report it; its domain states do not."""

    NONE = auto()
    """The domain was started on this host, or had migrated in before the agent connected to libvirtd."""
    ARRIVING = auto()
    ARRIVED = auto()

    def after(self, event: LifecycleEvent) -> "DomainMigrationPhase":
        """Return the phase after a lifecycle event."""
        if event.type == STOPPED:
            return DomainMigrationPhase.NONE
        if (event.type, event.detail) == (STARTED, _MIGRATED):
            return DomainMigrationPhase.ARRIVING
        if self is not DomainMigrationPhase.NONE and (event.type, event.detail) in _ARRIVALS:
            return DomainMigrationPhase.ARRIVED
        return self
