"""Types for write thresholds: a disk's policy in the config, its layers as QEMU reports them, and crossed levels. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from agent.alerts.levels import Level, ResolvedLevel


class ThresholdMode(StrEnum):
    """How the agent detects that a level is exceeded."""

    OFF = "off"
    OBSERVE = "observe"
    """The agent compares the levels at each poll and sets nothing in QEMU."""
    ARM = "arm"
    """The agent also sets write thresholds, so that QEMU reports the write itself."""


class DetectedBy(StrEnum):
    """How a condition was detected."""

    EVENT = "event"
    """QEMU reported it at the write."""
    LEVEL = "level"
    """A poll showed it."""
    MISSED = "missed"
    """It happened while the agent was away, or its event was lost."""
    ENOSPC = "enospc"
    """A write failed because there was no space."""


class ResolvedReason(StrEnum):
    """Why a level is no longer exceeded."""

    SPACE = "space"
    """The disk uses less, or was extended."""
    REPLACED = "replaced"
    """The disk has another image."""
    LEVEL_GONE = "level_gone"
    """The config no longer has the level, or the disk is too small for it."""


@dataclass(frozen=True, slots=True)
class ThresholdPolicy:
    """The config's policy for a disk.

    Attributes:
        mode: How levels are detected.
        levels: The levels, in any order.
        hysteresis: A level is resolved once usage is below it by this share of the disk's size.
    """

    mode: ThresholdMode
    levels: tuple[Level, ...]
    hysteresis: float = 0.02


@dataclass(frozen=True, slots=True)
class LevelCrossing:
    """A level that usage crossed, upwards or downwards.

    Attributes:
        level: The level.
        used, limit: The disk's usage and size, in bytes.
        detected_by: How the crossing was detected.
        firing: Whether the level is exceeded now.
        is_highest: Whether it is the highest of two or more levels.
        resolved_by: Why it is no longer exceeded, if `firing` is false.
    """

    level: ResolvedLevel
    used: int
    limit: int
    detected_by: DetectedBy
    firing: bool
    is_highest: bool
    resolved_by: ResolvedReason = ResolvedReason.SPACE


@dataclass(slots=True)
class DiskLayer:
    """One layer of a disk.

    Attributes:
        node: The block node's name.
        driver: Its driver.
        path: Path of its file or device.
        size: Its size in bytes.
        allocated: Bytes that the host has allocated for it.
        write_threshold: The value in the node's threshold slot; 0 if it is empty. QEMU reports a value above 2^63 as a negative number.
        read_only: Whether it is read-only.
    """

    node: str = ""
    driver: str = ""
    path: str = ""
    size: int = 0
    allocated: int = 0
    write_threshold: int = 0
    read_only: bool = False

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "DiskLayer":
        """Create a layer from the values of a BLOCK_LAYER sample."""

        def number(name: str) -> int:
            value = values.get(name, 0)
            return value if type(value) is int and value >= 0 else 0

        node, driver, path = (str(values.get(name, "")) for name in ("node", "driver", "path"))
        threshold = values.get("write_threshold_bytes", 0)
        return cls(
            node,
            driver,
            path,
            number("size_bytes"),
            number("allocated_bytes"),
            threshold if type(threshold) is int else 0,
            values.get("read_only") is True,
        )
