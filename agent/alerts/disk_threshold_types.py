"""Types for the alert levels of disks: the policy in the config, the layers that QEMU reports, and crossed levels. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from agent.alerts.disk_levels import MAX_SIZE_BYTES, DiskAlertLevel, LevelAsUsedBytes


class ThresholdMode(StrEnum):
    """How the agent detects that a level is exceeded."""

    OFF = "off"
    OBSERVE = "observe"
    """The agent compares the levels at each poll and sets nothing in QEMU."""
    ARM = "arm"
    """The agent also sets write thresholds in QEMU. QEMU then reports a write beyond a level by an event."""


class DetectedBy(StrEnum):
    """How the agent detected the condition of an alert."""

    EVENT = "event"
    """QEMU reported the condition by an event."""
    LEVEL = "level"
    """A poll showed the condition."""
    MISSED = "missed"
    """A poll showed the condition. QEMU's event was lost, or the agent was not connected when QEMU sent the event."""
    ENOSPC = "enospc"
    """A write failed because there was no space."""


class LimitedBy(StrEnum):
    """The limit that the growth of a disk reaches first."""

    DEVICE = "device"
    """The block device under the image."""
    VIRTUAL_SIZE = "virtual_size"
    """The size of the disk itself. A file that has grown to this size stops growing, and no write fails."""
    POOL = "pool"
    """The free space of the pool that the image is on."""
    UNKNOWN = "unknown"
    """The pool of the image is unknown. The limit is then the size of the disk. An image that can outgrow this size has no known limit."""


class LevelResolvedReason(StrEnum):
    """Why a level is no longer exceeded."""

    SPACE = "space"
    """The disk uses fewer bytes, or the disk was extended."""
    REPLACED = "replaced"
    """The disk has another image."""
    LEVEL_GONE = "level_gone"
    """The config no longer has the level, the disk is too small for the level, or an alert of the pool covers the disk."""


@dataclass(frozen=True, slots=True)
class DiskThresholdPolicy:
    """The config's levels for a disk, and how the agent detects that a level is exceeded.

    Attributes:
        mode: How exceeded levels are detected.
        levels: The levels, in any order.
        hysteresis: Share of the disk's size by which the usage has to fall below a level before the level's alert is resolved.
    """

    mode: ThresholdMode
    levels: tuple[DiskAlertLevel, ...]
    hysteresis: float = 0.02


@dataclass(frozen=True, slots=True)
class DiskLevelCrossing:
    """An alert level that a disk's usage crossed, upwards or downwards.

    Attributes:
        level: The level.
        used, limit: The disk's usage, and the usage at which the disk is full, in bytes.
        detected_by: How the crossing was detected.
        firing: Whether the level is exceeded now.
        is_highest_of_several_levels: Whether the disk has two or more levels and this level is the highest.
        resolved_by: Why the level is no longer exceeded; valid only if `firing` is false.
    """

    level: LevelAsUsedBytes
    used: int
    limit: int
    detected_by: DetectedBy
    firing: bool
    is_highest_of_several_levels: bool
    resolved_by: LevelResolvedReason = LevelResolvedReason.SPACE


@dataclass(slots=True)
class DiskLayer:
    """One layer of a disk: the image format, or the file or block device below the format.

    Attributes:
        node: The name of the layer's block node.
        driver: The node's driver.
        path: Path of the layer's file or device.
        size: The layer's size in bytes; 0 if unknown.
        allocated: Bytes that the host has allocated for the layer; None if unknown.
        write_threshold: The write threshold that QEMU stores for the node, in bytes; 0 if none is set, None if unknown. QEMU reports a
            threshold above 2^63 as a negative number.
        read_only: Whether the layer is read-only.
        cluster: Size of a cluster of the image in bytes; 0 if unknown.
        snapshots: Number of internal snapshots in the image.
        identity: Distinguishes the block device from other devices that had the same path. Empty for a file, and if unknown.
    """

    node: str = ""
    driver: str = ""
    path: str = ""
    size: int = 0
    allocated: int | None = None
    write_threshold: int | None = None
    read_only: bool = False
    cluster: int = 0
    snapshots: int = 0
    identity: str = ""

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "DiskLayer":
        """Create a layer from the values of a BLOCK_LAYER sample."""

        def number(name: str) -> int:
            value = values.get(name, 0)
            return value if type(value) is int and value >= 0 else 0

        node, driver, path = (str(values.get(name, "")) for name in ("node", "driver", "path"))
        threshold = values.get("write_threshold_bytes")
        return cls(
            node,
            driver,
            path,
            number("size_bytes"),
            number("allocated_bytes") if "allocated_bytes" in values else None,
            threshold if type(threshold) is int else None,
            values.get("read_only") is True,
            cluster=number("cluster_bytes"),
            snapshots=number("internal_snapshots"),
        )


def may_be_same_device(first: str, second: str) -> bool:
    """Return whether two block devices at one path may be the same device: their identities are equal, or an identity is unknown."""
    return not first or not second or first == second


def parse_stored_name_and_bytes(stored: object) -> tuple[str, int] | None:
    """Parse a stored list of a name and a number of bytes. Return None for any other value."""
    match stored:
        case [str(name), int(value)] if not isinstance(value, bool) and 0 <= value <= MAX_SIZE_BYTES:
            return name, value
    return None
