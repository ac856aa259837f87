"""Limits of the alerts about the inside of guests. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agent.alerts.levels import Level, parse_level
from agent.model.record import Vm

_DEFAULT_LEVELS = (parse_level("90%"), parse_level("95%"))


@dataclass(frozen=True, slots=True)
class GuestAlertPolicy:
    """Limits of the alerts about the inside of guests.

    Attributes:
        levels: Returns the levels of a file system, given its VM and its mountpoint.
        hysteresis: A level is resolved when usage falls below it by this share of the size.
        frozen_seconds: How long file systems may stay frozen.
        clock_offset_seconds: How far a guest's clock may be from the host's.
    """

    levels: Callable[[Vm, str], Sequence[Level]] = field(default=lambda _vm, _mountpoint: _DEFAULT_LEVELS)
    hysteresis: float = 0.02
    frozen_seconds: float = 120.0
    clock_offset_seconds: float = 10.0
