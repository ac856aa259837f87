"""What is said of one disk: its layers as QEMU tells them, what the config wants of it, what was crossed. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from agent.alerts.levels import Level, ResolvedLevel


class ThresholdMode(StrEnum):
    """What is done about thresholds."""

    OFF = "off"
    OBSERVE = "observe"
    """Nothing is set in QEMU; levels are compared at each poll."""
    ARM = "arm"
    """The agent sets thresholds, so that QEMU tells at the write."""


class DetectedBy(StrEnum):
    """How a crossing was detected."""

    EVENT = "event"
    """QEMU said so, at the write."""
    LEVEL = "level"
    """A comparison showed it."""
    MISSED = "missed"
    """It happened while the agent was away, or its event was lost."""
    ENOSPC = "enospc"
    """A write failed for want of space."""


class ResolvedReason(StrEnum):
    """Why a rung is exceeded no more."""

    SPACE = "space"
    """The disk came down, was made larger or was replaced by one with more room."""
    LEVEL_GONE = "level_gone"
    """The config has no such level any more, or the disk has no room for it."""


@dataclass(frozen=True, slots=True)
class ThresholdPolicy:
    """What the config wants of a disk."""

    mode: ThresholdMode
    levels: tuple[Level, ...]
    hysteresis: float = 0.02
    """The share of its size that a disk has to come down by before a rung is resolved."""


@dataclass(frozen=True, slots=True)
class LevelCrossing:
    """A rung that was crossed.

    Attributes:
        rung: which.
        used, limit: how full the disk is, in bytes.
        detected_by: how it was detected.
        firing: whether it is exceeded now; if not, it is no more.
        top: whether it is the last rung of several.
        ended: why it is exceeded no more.
    """

    rung: ResolvedLevel
    used: int
    limit: int
    detected_by: DetectedBy
    firing: bool
    top: bool
    ended: ResolvedReason = ResolvedReason.SPACE


@dataclass(slots=True)
class DiskLayer:
    """What is known of a layer of the disk."""

    node: str = ""
    driver: str = ""
    path: str = ""
    size: int = 0
    allocated: int = 0
    slot: int = 0
    """The write threshold; 0 is none. One past 2^63 is told as a negative number, and is somebody's too."""
    read_only: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "DiskLayer":
        """Return it out of a BLOCK_LAYER sample's values."""

        def number(name: str) -> int:
            value = values.get(name, 0)
            return value if type(value) is int and value >= 0 else 0

        node, driver, path = (str(values.get(name, "")) for name in ("node", "driver", "path"))
        slot = values.get("write_threshold_bytes", 0)
        return cls(
            node,
            driver,
            path,
            number("size_bytes"),
            number("allocated_bytes"),
            slot if type(slot) is int else 0,
            values.get("read_only") is True,
        )
