"""Alert levels of a pool, as written in the config. Pure."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from agent.alerts.growth import LOOK_AHEAD
from agent.alerts.pool_usage import PoolUsage
from agent.common.units import parse_bytes, parse_seconds


class PoolMeasure(StrEnum):
    """The quantity that a level is about."""

    SPACE = "space"
    TIME = "time"
    INODES = "inodes"
    METADATA = "metadata"
    """The metadata of an LVM thin pool."""


TIME_HYSTERESIS = 1.25
"""A level `full in` is resolved when the time is longer than the level by this factor."""


@dataclass(frozen=True, slots=True)
class PoolLevel:
    """One level.

    Attributes:
        text: the level as written: `85%`, `free 20GiB`, `full in 2h`, `inodes 90%` or `metadata 75%`.
        measure: its quantity.
        percent: share in use in percent; None for a level of another form.
        free: free bytes; None for a level of another form.
        seconds: time until the pool is full; None for a level of another form.
    """

    text: str
    measure: PoolMeasure
    percent: float | None = None
    free: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """The config's policy for a pool.

    Attributes:
        levels: the levels, in any order; none if the pool has no alert for space.
        hysteresis: share of the size by which the usage has to fall below a level before the level is resolved.
    """

    levels: tuple[PoolLevel, ...]
    hysteresis: float = 0.02

    @property
    def watches_space(self) -> bool:
        """True if a level is about space, so that the disks on the pool need no alert of their own."""
        return any(level.measure is PoolMeasure.SPACE for level in self.levels)


PoolPolicyLookup = Callable[[PoolUsage], PoolPolicy]
"""Returns the config's policy for a pool."""


@lru_cache(maxsize=256)
def parse_pool_level(text: str) -> PoolLevel:
    """Parse a level of the config.

    Raises:
        ValueError: the text is not a level.
    """
    words = " ".join(text.split())
    match = re.fullmatch(r"(?:(inodes|metadata) )?(\d+(?:\.\d+)?) ?%", words)
    if match and 0 < float(match[2]) <= 100:
        return PoolLevel(words, PoolMeasure(match[1] or "space"), percent=float(match[2]))
    try:
        if words.startswith("free ") and (free := parse_bytes(words.removeprefix("free "))) > 0:
            return PoolLevel(words, PoolMeasure.SPACE, free=free)
        if words.startswith("full in ") and (seconds := parse_seconds(words.removeprefix("full in "))) > 0:
            return PoolLevel(words, PoolMeasure.TIME, seconds=seconds)
    except ValueError:
        pass
    raise ValueError('should be a level such as "85%", "free 20GiB", "full in 2h", "inodes 90%" or "metadata 75%"')


def is_exceeded(level: PoolLevel, usage: PoolUsage, hysteresis: float, *, firing: bool) -> bool | None:
    """Return whether a pool exceeds a level; None if the figure is unknown.

    Args:
        level: the level.
        usage: the pool.
        hysteresis: see `PoolPolicy`.
        firing: whether the level is exceeded already; then it stays so within the hysteresis.
    """
    if level.seconds is not None:
        return _is_full_within(level.seconds, usage, firing=firing)
    shares = _used_and_size(level.measure, usage)
    if shares is None:
        return None
    used, size = shares
    slack = size * hysteresis if firing else 0.0
    at = size * level.percent / 100 if level.percent is not None else size - (level.free or 0)
    return used > at - slack if firing else used > at


def _is_full_within(seconds: float, usage: PoolUsage, *, firing: bool) -> bool | None:
    """Return whether a pool is full in this time; None if its free bytes are unknown."""
    if usage.free is None:
        return None
    if not firing:
        return usage.time_to_full is not None and usage.time_to_full <= seconds
    # A pause of the writer is no reason to resolve: the growth of the last minutes counts, too.
    soonest = usage.growth.soonest(usage.free, seconds / LOOK_AHEAD)
    return soonest is not None and soonest <= seconds * TIME_HYSTERESIS


def _used_and_size(measure: PoolMeasure, usage: PoolUsage) -> tuple[int, int] | None:
    """Return what is in use, and that together with what is free; None if either is unknown."""
    reading = usage.reading
    if reading is None:
        return None
    if measure is PoolMeasure.SPACE:
        used, free = usage.used, usage.free
        return (used, used + free) if used is not None and free is not None else None
    size, free = (
        (reading.inodes, reading.free_inodes)
        if measure is PoolMeasure.INODES
        else (reading.metadata_size_bytes, reading.metadata_free_bytes)
    )
    return (size - free, size) if size is not None and free is not None else None


def bytes_until(level: PoolLevel, usage: PoolUsage) -> float | None:
    """Return the bytes that can be written until a level of space is exceeded; None for another level, or if that is unknown."""
    shares = _used_and_size(level.measure, usage) if level.measure is PoolMeasure.SPACE else None
    if shares is None:
        return None
    used, size = shares
    at = size * level.percent / 100 if level.percent is not None else size - (level.free or 0)
    return at - used


def is_highest(level: PoolLevel, policy: PoolPolicy, usage: PoolUsage) -> bool:
    """Return whether a level is the highest of two or more levels of its quantity; no forecast is."""
    shares = _used_and_size(level.measure, usage)
    if level.measure is PoolMeasure.TIME or shares is None:
        return False

    def height(other: PoolLevel) -> float:
        return other.percent if other.percent is not None else 100 - 100 * (other.free or 0) / max(1, shares[1])

    heights = [height(other) for other in policy.levels if other.measure is level.measure]
    return len(heights) > 1 and height(level) == max(heights)
