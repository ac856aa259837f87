"""The history of what a VM does: its columns, computed from its polls. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from math import nan

from agent.exposition.history import History, HistoryBudget
from agent.exposition.rates import PollPair
from agent.exposition.summary import memory_sizes

COLUMNS = (
    "cpu",
    "steal",
    "read",
    "write",
    "reads",
    "writes",
    "read_latency",
    "write_latency",
    "used",
    "resident",
    "receive",
    "transmit",
    "disk",
)
"""The columns of a VM's history.

`cpu`: CPUs that the vCPUs used. `steal`: CPUs that the vCPUs waited for. `read`, `write`, `receive`, `transmit`: bytes per second.
`reads`, `writes`: operations per second. `read_latency`, `write_latency`: mean seconds of an operation. `used`: bytes that the guest uses.
`resident`: bytes of the process in memory. `disk`: used bytes of the thin disks.
"""

POOL_COLUMNS = ("used", "free")
"""The columns of a pool's history, in bytes."""

HOST_STEP = 10.0
"""Time between two points of the host in seconds."""
MAX_AGE = 60.0
"""Maximum age in seconds of a VM's last point that is added to the host's point."""

Polls = Mapping[str, PollPair]

_GROUPS = (
    (0, "vcpu", ("cpu_seconds_total", "run_delay_seconds_total")),
    (
        2,
        "block",
        (
            *("read_bytes_total", "write_bytes_total", "reads_total", "writes_total"),
            *("read_seconds_total", "write_seconds_total"),
        ),
    ),
    (10, "net", ("receive_bytes_total", "transmit_bytes_total")),
)
"""Counters in a history: the index of the first counter in `COLUMNS`, the family, and the counters' names."""

_READS, _WRITES, _READ_LATENCY, _WRITE_LATENCY = map(
    COLUMNS.index, ("reads", "writes", "read_latency", "write_latency")
)
_LATENCIES = ((_READ_LATENCY, _READS), (_WRITE_LATENCY, _WRITES))
"""Pairs of indices in `COLUMNS`: of the mean latency of a kind of operation, and of the number of these operations."""


class HistoryRecorder:
    """Appends the points of one VM to its history. A rate is the mean since the last point, regardless of the polls in between.

    Attributes:
        history: the points.
        summands: what the VM's last point adds to the host's point. It has the total of the latencies in place of their mean. Empty before
            the first point.
    """

    __slots__ = ("_totals", "history", "summands")

    def __init__(self, budget: HistoryBudget) -> None:
        self.history = History(len(COLUMNS), budget)
        self.summands: list[float] = []
        self._totals: dict[str, tuple[int, list[float]]] = {}

    def record(self, polls: Polls, time: float) -> bool:
        """Append a point if the next one is due. Return whether a point was appended.

        Args:
            polls: the last polls of the VM.
            time: the time of the poll of its disks, seconds since the epoch.
        """
        if not self.history.is_due(time):
            return False
        values = [nan] * len(COLUMNS)
        is_first = not self._totals
        for place, family, names in _GROUPS:
            poll = polls.get(family)
            if poll is not None and poll.current:
                self._add_rates(values, place, family, poll, names)
            else:
                self._totals.pop(family, None)
        if is_first:
            return False
        sizes = memory_sizes(polls)
        values[8] = float(sizes.get("used_bytes", nan))
        values[9] = float(sizes.get("resident_bytes", nan))
        if "block_space" in polls:
            used = [space["used_bytes"] for space in polls["block_space"].current.values() if "used_bytes" in space]
            values[12] = float(sum(used)) if used else nan
        self.summands = values.copy()
        for latency, operations in _LATENCIES:
            values[latency] = values[latency] / values[operations] if values[operations] else nan
        self.history.append(time, values)
        return True

    def _add_rates(self, values: list[float], place: int, family: str, poll: PollPair, names: tuple[str, ...]) -> None:
        """Set the rates of a family's counters since the last point. A counter that fell, for example after an unplug, has no rate."""
        subjects = poll.current.values()
        try:
            totals = [sum([subject[name] for subject in subjects]) for name in names]
        except KeyError:  # a subject lacks a counter
            totals = [sum([subject.get(name, nan) for subject in subjects]) for name in names]
        previous = self._totals.get(family)
        self._totals[family] = poll.time_ns, totals
        if previous is None or poll.time_ns <= previous[0]:
            return
        seconds = (poll.time_ns - previous[0]) / 1e9
        for before, after in zip(previous[1], totals, strict=True):
            if after >= before:
                values[place] = (after - before) / seconds
            place += 1


def host_values(points: Iterable[Sequence[float]]) -> list[float]:
    """Return the values of the host from the summands of its VMs. Latencies are means over all operations.

    Args:
        points: the summands of each VM, not empty.
    """
    totals = [_sum_of_known(column) for column in zip(*points, strict=True)] or [nan] * len(COLUMNS)
    for latency, operations in _LATENCIES:
        totals[latency] = totals[latency] / totals[operations] if totals[operations] else nan
    return totals


def _sum_of_known(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]  # noqa: PLR0124 - false for not a number
    return sum(known) if known else nan
