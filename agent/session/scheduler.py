"""Scheduling of a VM's polls: by timer, or at once when an event invalidates an answer. Pure: time is an argument."""

from collections.abc import Container, Iterable, Sequence
from math import ceil, inf
from typing import TypeVar

from agent.qmp.commands import Command

SLACK_SECONDS = 0.05
"""Polls due within this time share one write, because each wake-up costs QEMU time."""

MAX_COMMANDS_PER_WRITE = 7
"""QEMU stops reading, out-of-band probes included, while eight in-band requests wait (monitor/qmp.c, 4.0 to 11.1)."""

SPACING_SECONDS = 0.25
"""Minimum time between two polls of one collector that events demand."""

VMS_PER_SLOT = 8
"""VMs polled at one moment. The agent's code and data are then in the processor's caches, and a poll costs two thirds."""


def next_poll_time(start: float, wait: float, interval: float, phase: float, vms: int) -> float:
    """Return the VM's slot, one in each interval and shared with some other VMs, that is nearest to the end of a wait.

    Args:
        start: time of the last poll, in seconds on the monotonic clock.
        wait: seconds to wait after `start`.
        interval: seconds between two polls.
        phase: the VM's position in the interval, 0 to 1.
        vms: number of VMs that are polled.
    """
    if interval < 4 * SLACK_SECONDS:  # the slack would merge each slot with the one before
        return start + wait
    slots = max(1, vms // VMS_PER_SLOT)
    position = int(phase * slots) / slots
    earliest = start + max(wait - interval / 2, SLACK_SECONDS)
    return (ceil(earliest / interval - position) + position) * interval


class Schedule:
    """Due times of named polls, in seconds on one monotonic clock."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._taken: dict[str, float] = {}

    def demand(self, names: Iterable[str], now: float) -> None:
        """Make these polls due at once, or as soon as their spacing allows."""
        for name in names:
            if self._due.get(name, -inf) > now:  # the others are due already, as in a burst of events
                self._due[name] = min(self._due[name], max(now, self._taken.get(name, -inf) + SPACING_SECONDS))

    def plan(self, name: str, at: float) -> None:
        """Make a poll due at a time, unless it is due earlier since it was last taken. `inf` waits for `demand`."""
        self._due[name] = min(self._due.get(name, inf), at)

    def drop(self, name: str) -> None:
        """Remove a poll for good."""
        self._due.pop(name, None)

    def next_at(self) -> float:
        """Return when the next poll is due; `inf` means never."""
        return min(self._due.values(), default=inf)

    def take(self, now: float, among: Container[str] | None = None) -> list[str]:
        """Return the due polls in the order of their due times. Each waits for its next `plan` or `demand`.

        Args:
            now: the current time.
            among: names to consider; None considers all.
        """
        names = (name for name, at in self._due.items() if at <= now + SLACK_SECONDS)
        due = sorted((name for name in names if among is None or name in among), key=self._due.__getitem__)
        for name in due:
            self._due[name] = inf
        if due:
            recent = {name: at for name, at in self._taken.items() if at > now - SPACING_SECONDS}
            self._taken = recent | dict.fromkeys(due, now)
        return due


class Pacer:
    """Spreads expensive work of many VMs over time."""

    def __init__(self, spacing_seconds: float, max_delay_seconds: float) -> None:
        self._spacing_seconds = spacing_seconds
        self._max_delay_seconds = max_delay_seconds
        self._next = -inf

    def take(self, now: float) -> float:
        """Return the next free moment, at most `max_delay_seconds` from now."""
        at = min(max(now, self._next), now + self._max_delay_seconds)
        self._next = at + self._spacing_seconds
        return at


Who = TypeVar("Who")
Batch = list[tuple[Who, Sequence[Command]]]
"""Pairs of a requester and its commands."""


def split_batch(batch: Batch[Who]) -> tuple[Batch[Who], Batch[Who]]:
    """Split off the part that fits one write; return it and the rest."""
    count = 0
    for index, (_, commands) in enumerate(batch):
        count += len(commands)
        if index and count > MAX_COMMANDS_PER_WRITE:
            return batch[:index], batch[index:]
    return batch, []
