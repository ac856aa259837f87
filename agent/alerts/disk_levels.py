"""Alert levels of disks, and of file systems in guests, as written in the config. Pure.

A disk exceeds a level when its usage is higher than the level. QEMU compares a write threshold in the same way: QEMU reports a write that
ends beyond the threshold (block/write-threshold.c).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from agent.common.durations_and_sizes import parse_bytes

MAX_SIZE_BYTES = 2**63 - 1
"""Maximum of every number of bytes. QEMU reports a larger threshold as a negative number."""


@dataclass(frozen=True, slots=True)
class DiskAlertLevel:
    """One alert level of disks in the config.

    Attributes:
        text: The level as written: `80%`, `used 100GiB` or `free 2GiB`.
        percent, used, free: The level in percent of the disk's size, in bytes in use or in free bytes. Exactly one attribute is not None.
    """

    text: str
    percent: float | None = None
    used: int | None = None
    free: int | None = None

    def bytes_of(self, limit: int) -> int:
        """Return the usage in bytes above which a disk of `limit` bytes exceeds the level. The result can be negative or above `limit`."""
        if self.percent is not None:
            return int(limit * self.percent / 100)
        return self.used if self.used is not None else limit - (self.free or 0)


@lru_cache(maxsize=64)
def parse_disk_level(text: str) -> DiskAlertLevel:
    """Parse an alert level of disks in the config.

    Raises:
        ValueError: The text is not a level.
    """
    words = " ".join(text.split())
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", words)
    if match and 0 < float(match[1]) <= 100:
        return DiskAlertLevel(words, percent=float(match[1]))
    kind, _, size = words.partition(" ")
    if kind in ("used", "free") and size:
        value = parse_bytes(size)
        if 0 < value <= MAX_SIZE_BYTES:
            return DiskAlertLevel(words, used=value) if kind == "used" else DiskAlertLevel(words, free=value)
    raise ValueError('should be a level such as "80%", "used 100GiB" or "free 2GiB"')


@dataclass(frozen=True, slots=True)
class LevelAsUsedBytes:
    """An alert level of a disk, or of a file system in the guest, as a number of used bytes.

    Attributes:
        text: The level as written in the config.
        bytes: The usage in bytes above which the disk exceeds the level.
    """

    text: str
    bytes: int


def levels_as_used_bytes(levels: Sequence[DiskAlertLevel], limit: int) -> tuple[LevelAsUsedBytes, ...]:
    """Return the levels of a disk of `limit` bytes, the lowest first. Leave out levels that are not between 0 and `limit`."""
    text_of = {level.bytes_of(limit): level.text for level in levels}
    return tuple(
        LevelAsUsedBytes(text_of[size], size) for size in sorted(text_of) if 0 < size < min(limit, MAX_SIZE_BYTES)
    )
