"""Times of a VM's polls: at intervals, or at once when an event shows that a result has changed. Pure: time is an argument."""

from collections.abc import Container, Iterable, Sequence
from math import ceil, inf
from typing import TypeVar

from agent.qmp.commands import Command
from agent.qmp.protocol import MAX_COMMANDS_IN_FLIGHT

SLACK_SECONDS = 0.05
"""Polls that are due within this time share one write, because each write wakes QEMU's main loop."""

SPACING_SECONDS = 0.25
"""Minimum time between two polls of one collector if events cause the polls."""

MAX_STORED_RUN_TIMES = 4
"""Number of poll times to store. If more times are stored, times older than `SPACING_SECONDS` are discarded, to save memory."""

VMS_PER_SLOT = 8
"""Number of VMs that share a slot, a moment in the polling interval.

VMs that share a slot are polled one after the other, so that the agent's code stays in the processor's caches. An event that arrives during
these polls waits up to 2 ms. With 25 VMs per slot, the 99th percentile of the event delay was 1.4 times as long, and a poll was no cheaper.
"""

FIRST_POLL_SPACING_SECONDS = 0.0015
"""Seconds between the first polls of two VMs.

A first poll takes 1.3 ms. The unsent records of a first poll take 15 KiB of memory.
"""
FIRST_POLL_MAX_DELAY_SECONDS = 5.0
"""Maximum delay of a VM's first poll."""


def next_poll_time(start: float, wait: float, interval: float, phase: float, vms: int) -> float:
    """Return the time of the VM's slot that is nearest to `start + wait`, in seconds on the monotonic clock.

    A slot is a moment at which the agent polls several VMs. Each VM has one slot in each interval.

    Args:
        start: time of the last poll, in seconds on the monotonic clock.
        wait: desired seconds from the last poll to the next poll.
        interval: seconds between two slots of the VM.
        phase: the VM's position in the interval, 0 to 1.
        vms: number of attached VMs.
    """
    if interval < 4 * SLACK_SECONDS:  # the slots would be so close that polls in consecutive slots share one write
        return start + wait
    slots = max(1, vms // VMS_PER_SLOT)
    position = int(phase * slots) / slots
    earliest = start + max(wait - interval / 2, SLACK_SECONDS)
    return (ceil(earliest / interval - position) + position) * interval


class Schedule:
    """Due times of the polls of one VM, by name, in seconds on one monotonic clock."""

    def __init__(self) -> None:
        self._due_at: dict[str, float] = {}
        self._last_run_at: dict[str, float] = {}

    def schedule_now(self, names: Iterable[str], now: float) -> None:
        """Make polls due now, but at least `SPACING_SECONDS` after their last run. Ignore unknown names."""
        for name in names:
            if self._due_at.get(name, -inf) > now:  # a poll may be due already, such as in a burst of events
                earliest = max(now, self._last_run_at.get(name, -inf) + SPACING_SECONDS)
                self._due_at[name] = min(self._due_at[name], earliest)

    def schedule_by(self, name: str, at: float) -> None:
        """Make a poll due at this time, unless the poll is already due earlier. A poll with the time `inf` waits for `schedule_now`."""
        self._due_at[name] = min(self._due_at.get(name, inf), at)

    def remove_poll(self, name: str) -> None:
        """Remove a poll. After the removal, `schedule_now` ignores the poll's name."""
        self._due_at.pop(name, None)

    def next_due_at(self) -> float:
        """Return when the next poll is due; `inf` if none is scheduled."""
        return min(self._due_at.values(), default=inf)

    def pop_due_polls(self, now: float, among: Container[str] | None = None) -> list[str]:
        """Return the names of the polls that are due, in the order of due times.

        A returned poll is not due again before the next `schedule_by` or `schedule_now`.

        Args:
            now: the current time.
            among: the names to consider; None considers all.
        """
        until = now + SLACK_SECONDS
        due = [name for name, at in self._due_at.items() if at <= until and (among is None or name in among)]
        if len(due) > 1:
            due.sort(key=self._due_at.__getitem__)
        for name in due:
            self._due_at[name] = inf
            self._last_run_at[name] = now
        if len(self._last_run_at) > MAX_STORED_RUN_TIMES:
            self._last_run_at = {name: at for name, at in self._last_run_at.items() if at > now - SPACING_SECONDS}
        return due


class Pacer:
    """Spreads repeated expensive actions, such as the first poll of each VM, over time."""

    def __init__(self, spacing_seconds: float, max_delay_seconds: float) -> None:
        """Create a pacer.

        Args:
            spacing_seconds: time between two actions.
            max_delay_seconds: maximum delay of an action. If the delay would be longer, actions come closer together.
        """
        self._spacing_seconds = spacing_seconds
        self._max_delay_seconds = max_delay_seconds
        self._next_at = -inf

    def reserve_time(self, now: float) -> float:
        """Return the time for the next action, and reserve it. Times are in seconds on the monotonic clock."""
        at = min(max(now, self._next_at), now + self._max_delay_seconds)
        self._next_at = at + self._spacing_seconds
        return at


Requester = TypeVar("Requester")
Batch = list[tuple[Requester, Sequence[Command]]]
"""Requesters, such as collectors, each with its commands."""


def split_into_writes(batch: Batch[Requester]) -> tuple[Batch[Requester], Batch[Requester]]:
    """Split a batch. Return the requesters whose commands fit one write, and the remaining requesters."""
    count = 0
    for index, (_, commands) in enumerate(batch):
        count += len(commands)
        if index and count > MAX_COMMANDS_IN_FLIGHT:
            return batch[:index], batch[index:]
    return batch, []


def commands_of_batch(batch: Batch[Requester]) -> Sequence[Command]:
    """Return the commands of a batch, in order."""
    return batch[0][1] if len(batch) == 1 else [command for _, commands in batch for command in commands]
