"""Parses the configured alert levels of pools, and compares pools with their levels. Pure."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from agent.alerts.pool_growth import LOOK_AHEAD
from agent.alerts.pool_usage import PoolUsage
from agent.common.durations_and_sizes import parse_bytes, parse_seconds


class PoolLevelMeasure(StrEnum):
    """The quantity that an alert level limits."""

    SPACE = "space"
    TIME = "time"
    INODES = "inodes"
    METADATA = "metadata"
    """The metadata of an LVM thin pool."""


TIME_HYSTERESIS = 1.25
"""The alert of a level such as `full in 2h` is resolved when the forecast time exceeds the level's time multiplied by this factor."""


@dataclass(frozen=True, slots=True)
class PoolAlertLevel:
    """One alert level. Exactly one of `percent`, `free` and `seconds` is set.

    Attributes:
        text: text of the level in the config: `85%`, `free 20GiB`, `full in 2h`, `inodes 90%` or `metadata 75%`.
        measure: the quantity that the level limits.
        percent: maximum share in use, in percent.
        free: minimum number of free bytes.
        seconds: minimum time until the pool is full, in seconds.
    """

    text: str
    measure: PoolLevelMeasure
    percent: float | None = None
    free: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """The configured alert policy of a pool.

    Attributes:
        levels: the levels in any order; empty if the pool has no alerts.
        hysteresis: how far the usage must fall below a level to resolve its alert, as a share of the pool's size.
    """

    levels: tuple[PoolAlertLevel, ...]
    hysteresis: float = 0.02

    @property
    def watches_space(self) -> bool:
        """True if a level limits the pool's space. The disks on that pool then need no separate alerts."""
        return any(level.measure is PoolLevelMeasure.SPACE for level in self.levels)


PoolPolicyLookup = Callable[[PoolUsage], PoolPolicy]
"""Returns the configured alert policy of a pool."""


@lru_cache(maxsize=256)
def parse_pool_level(text: str) -> PoolAlertLevel:
    """Parse the text of a level in the config.

    Raises:
        ValueError: the text is not a valid level.
    """
    words = " ".join(text.split())
    match = re.fullmatch(r"(?:(inodes|metadata) )?(\d+(?:\.\d+)?) ?%", words)
    if match and 0 < float(match[2]) <= 100:
        return PoolAlertLevel(words, PoolLevelMeasure(match[1] or "space"), percent=float(match[2]))
    try:
        if words.startswith("free ") and (free := parse_bytes(words.removeprefix("free "))) > 0:
            return PoolAlertLevel(words, PoolLevelMeasure.SPACE, free=free)
        if words.startswith("full in ") and (seconds := parse_seconds(words.removeprefix("full in "))) > 0:
            return PoolAlertLevel(words, PoolLevelMeasure.TIME, seconds=seconds)
    except ValueError:
        pass
    raise ValueError('should be a level such as "85%", "free 20GiB", "full in 2h", "inodes 90%" or "metadata 75%"')


def is_pool_level_exceeded(level: PoolAlertLevel, usage: PoolUsage, hysteresis: float, *, firing: bool) -> bool | None:
    """Return whether a pool exceeds a level; None if the pool's values for this level are unknown.

    Args:
        level: the level.
        usage: the pool.
        hysteresis: how far the usage must fall below the level to resolve its alert, as a share of the pool's size.
        firing: whether the alert of the level fires already.
    """
    if level.seconds is not None:
        return _is_full_within(level.seconds, usage, firing=firing)
    shares = _used_and_size(level.measure, usage)
    if shares is None:
        return None
    used, size = shares
    slack = size * hysteresis if firing else 0.0
    max_used = size * level.percent / 100 if level.percent is not None else size - (level.free or 0)
    return used > max_used - slack if firing else used > max_used


def _is_full_within(seconds: float, usage: PoolUsage, *, firing: bool) -> bool | None:
    """Return whether the forecast shows a full pool within `seconds`; None if the free bytes are unknown."""
    if usage.free is None:
        return None
    if not firing:
        return usage.time_to_full is not None and usage.time_to_full <= seconds
    # All windows count, so that a short pause of the writes does not resolve the alert.
    time_to_full = usage.growth.shortest_time_to_full(usage.free, seconds / LOOK_AHEAD)
    return time_to_full is not None and time_to_full <= seconds * TIME_HYSTERESIS


def _used_and_size(measure: PoolLevelMeasure, usage: PoolUsage) -> tuple[int, int] | None:
    """Return the used amount and the size, in bytes or in inodes; None if an amount is unknown."""
    reading = usage.reading
    if reading is None:
        return None
    if measure is PoolLevelMeasure.SPACE:
        used, free = usage.used, usage.free
        return (used, used + free) if used is not None and free is not None else None
    size, free = (
        (reading.inodes, reading.free_inodes)
        if measure is PoolLevelMeasure.INODES
        else (reading.metadata_size_bytes, reading.metadata_free_bytes)
    )
    return (size - free, size) if size is not None and free is not None else None


def bytes_until_level(level: PoolAlertLevel, usage: PoolUsage) -> float | None:
    """Return how many bytes can be written before the pool's usage exceeds a space level.

    Returns:
        The number of bytes, negative if the level is already exceeded. None if the level does not limit space, or if the pool's size or
        usage is unknown.
    """
    shares = _used_and_size(level.measure, usage) if level.measure is PoolLevelMeasure.SPACE else None
    if shares is None:
        return None
    used, size = shares
    max_used = size * level.percent / 100 if level.percent is not None else size - (level.free or 0)
    return max_used - used


def is_highest_of_several_levels(level: PoolAlertLevel, policy: PoolPolicy, usage: PoolUsage) -> bool:
    """Return whether this level is the highest of two or more levels for the same quantity. Return False for a time level."""
    shares = _used_and_size(level.measure, usage)
    if level.measure is PoolLevelMeasure.TIME or shares is None:
        return False

    def percent_of(other: PoolAlertLevel) -> float:
        return other.percent if other.percent is not None else 100 - 100 * (other.free or 0) / max(1, shares[1])

    percents = [percent_of(other) for other in policy.levels if other.measure is level.measure]
    return len(percents) > 1 and percent_of(level) == max(percents)
