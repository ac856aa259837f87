"""When to ask a VM what: by timer where nothing else tells, at once where an event says that an answer changed. Pure: time is given."""

from collections.abc import Container, Iterable, Sequence
from math import ceil, inf
from typing import TypeVar

from agent.qmp.commands import Command

SLACK_SECONDS = 0.05
"""Questions due this close together go out in one write: QEMU pays for each wake-up too."""

MAX_ASKS = 7
"""Questions in one write. QEMU reads no further, probes included, while eight in-band requests wait (monitor/qmp.c, 4.0 to 11.1)."""

SPACING_SECONDS = 0.25
"""A storm of events asks for one thing at most this often."""

BUNCH = 8
"""VMs that are asked at one moment: what the agent does for one is in the processor's caches for the next, and costs two thirds."""


def next_poll_time(start: float, wait: float, interval: float, phase: float, vms: int) -> float:
    """Return when a VM is asked again: at its moment, one in each interval and shared with some others, that is nearest to a wait's end.

    Args:
        start: when it was asked.
        wait: how long to wait from then on.
        interval: how often VMs are asked.
        phase: where in the interval it would be alone, 0 to 1.
        vms: how many there are in all.
    """
    if interval < 4 * SLACK_SECONDS:  # the slack would take each moment's questions for the one before
        return start + wait
    moments = max(1, vms // BUNCH)
    own = int(phase * moments) / moments
    after = start + max(wait - interval / 2, SLACK_SECONDS)
    return (ceil(after / interval - own) + own) * interval


class Schedule:
    """When each of some named questions is due. Times are seconds on any one monotonic clock."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._asked: dict[str, float] = {}

    def demand(self, names: Iterable[str], now: float) -> None:
        """Make these due at once, or as soon as their spacing allows."""
        for name in names:
            if self._due.get(name, -inf) > now:  # due already otherwise, as in a storm
                self._due[name] = min(self._due[name], max(now, self._asked.get(name, -inf) + SPACING_SECONDS))

    def plan(self, name: str, at: float) -> None:
        """Make this due at a time, unless something made it due earlier since it was last taken; `inf` waits for a demand."""
        self._due[name] = min(self._due.get(name, inf), at)

    def drop(self, name: str) -> None:
        """Never ask this again."""
        self._due.pop(name, None)

    def next_at(self) -> float:
        """Return when the next question is due; `inf` is never."""
        return min(self._due.values(), default=inf)

    def take(self, now: float, among: Container[str] | None = None) -> list[str]:
        """Return what is due (and among these), by when it was due, and put it off until it is planned or demanded again."""
        names = (name for name, at in self._due.items() if at <= now + SLACK_SECONDS)
        due = sorted((name for name in names if among is None or name in among), key=self._due.__getitem__)
        for name in due:
            self._due[name] = inf
        if due:
            recent = {name: at for name, at in self._asked.items() if at > now - SPACING_SECONDS}
            self._asked = recent | dict.fromkeys(due, now)
        return due


class Pacer:
    """Moments for what takes so much of our own time or memory that it is not done for all VMs at once."""

    def __init__(self, spacing_seconds: float, most_seconds: float) -> None:
        self._spacing_seconds = spacing_seconds
        self._most_seconds = most_seconds
        self._next = -inf

    def take(self, now: float) -> float:
        """Return the next moment that nobody else has, or the last one where that would be too long a wait."""
        at = min(max(now, self._next), now + self._most_seconds)
        self._next = at + self._spacing_seconds
        return at


Who = TypeVar("Who")
Rounds = list[tuple[Who, Sequence[Command]]]
"""Who asks, and what."""


def split_batch(rounds: Rounds[Who]) -> tuple[Rounds[Who], Rounds[Who]]:
    """Cut off as many as go into one write; return them and the others."""
    count = 0
    for index, (_, asks) in enumerate(rounds):
        count += len(asks)
        if index and count > MAX_ASKS:
            return rounds[:index], rounds[index:]
    return rounds, []
