"""Limits of the guest-agent alerts. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agent.alerts.disk_levels import DiskAlertLevel, parse_disk_level
from agent.model.record import Vm

_DEFAULT_LEVELS = (parse_disk_level("90%"), parse_disk_level("95%"))


@dataclass(frozen=True, slots=True)
class GuestAlertPolicy:
    """Limits of the guest-agent alerts.

    Attributes:
        levels: Returns the levels of a file system, given its VM and its mountpoint.
        hysteresis: Share of the file system's size by which the usage has to fall below a level to resolve the alert.
        frozen_seconds: How long file systems may stay frozen, in seconds.
        clock_offset_seconds: Maximum difference between a guest's clock and the host's clock, in seconds.
    """

    levels: Callable[[Vm, str], Sequence[DiskAlertLevel]] = field(default=lambda _vm, _mountpoint: _DEFAULT_LEVELS)
    hysteresis: float = 0.02
    frozen_seconds: float = 120.0
    clock_offset_seconds: float = 10.0
