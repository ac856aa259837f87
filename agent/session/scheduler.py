"""Scheduling of a VM's polls: by timer, or at once when an event invalidates an answer. Pure: time is an argument."""

from collections.abc import Container, Iterable, Sequence
from math import ceil, inf
from typing import TypeVar

from agent.qmp.commands import Command

SLACK_SECONDS = 0.05
"""Polls due within this time share one write, because each wake-up costs QEMU time."""

MAX_COMMANDS_PER_WRITE = 7
"""While eight in-band requests wait, QEMU stops reading, even out-of-band probes (monitor/qmp.c, 4.0 to 11.1)."""

SPACING_SECONDS = 0.25
"""Minimum time between two polls of one collector that events demand."""

VMS_PER_SLOT = 8
"""VMs polled at one moment. The agent's code and data are then in the processor's caches, which saves a third of the cost of a poll."""


def next_poll_time(start: float, wait: float, interval: float, phase: float, vms: int) -> float:
    """Return the time of the VM's slot that is nearest to the end of a wait.

    A VM has one slot in each interval, which it shares with some other VMs.

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
            if self._due.get(name, -inf) > now:  # a poll that is already due stays as it is, as in a burst of events
                self._due[name] = min(self._due[name], max(now, self._taken.get(name, -inf) + SPACING_SECONDS))

    def plan(self, name: str, at: float) -> None:
        """Make a poll due at a time, unless it is already due earlier. With `inf` it waits for `demand`."""
        self._due[name] = min(self._due.get(name, inf), at)

    def drop(self, name: str) -> None:
        """Remove a poll for good."""
        self._due.pop(name, None)

    def next_at(self) -> float:
        """Return when the next poll is due; `inf` if none is planned."""
        return min(self._due.values(), default=inf)

    def take(self, now: float, among: Container[str] | None = None) -> list[str]:
        """Remove the due polls from the schedule until their next `plan` or `demand`, and return them in the order of due times.

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
    """Split a batch; return the part that fits one write, and the rest."""
    count = 0
    for index, (_, commands) in enumerate(batch):
        count += len(commands)
        if index and count > MAX_COMMANDS_PER_WRITE:
            return batch[:index], batch[index:]
    return batch, []
