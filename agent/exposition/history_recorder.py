"""Computes the points of a VM's history from its polls, and the host's points from the points of all VMs. Pure."""

from collections.abc import Iterable, Sequence
from math import nan

from agent.exposition.history import History, HistoryBudget
from agent.exposition.rates import PollPair
from agent.exposition.vm_summary import Polls, memory_sizes

HISTORY_COLUMNS = (
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

`cpu`: host CPUs that the vCPUs used.
`steal`: host CPUs that the vCPUs waited for.
`read`, `write`, `receive`, `transmit`: bytes per second.
`reads`, `writes`: operations per second.
`read_latency`, `write_latency`: mean duration of an operation in seconds.
`used`: bytes of memory that the guest uses.
`resident`: resident bytes of QEMU's process.
`disk`: used bytes of the thin disks.
"""

POOL_COLUMNS = ("used", "free")
"""The columns of a pool's history, in bytes."""

HOST_STEP_SECONDS = 10.0
"""Time between two points of the host's history, in seconds."""
MAX_POINT_AGE_SECONDS = 60.0
"""Maximum age of a VM's last point in seconds. Older points are not added to the host's point."""

_COUNTER_GROUPS = (
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
"""Counters whose rates a history has: the index of the first rate in `HISTORY_COLUMNS`, the family, and the counters' names."""

_READS, _WRITES, _READ_LATENCY, _WRITE_LATENCY = map(
    HISTORY_COLUMNS.index, ("reads", "writes", "read_latency", "write_latency")
)
_LATENCIES = ((_READ_LATENCY, _READS), (_WRITE_LATENCY, _WRITES))
"""Pairs of indices in `HISTORY_COLUMNS`: the mean latency of reads or writes, and the rate of the same operations."""


class HistoryRecorder:
    """Appends points to the history of one VM. A rate is the mean since the previous point.

    Attributes:
        history: the points.
        last_point_sums: the values of the VM's last point, for the sums over all VMs. In place of a mean latency, the list has the
            total duration of all operations, in seconds per second. Empty before the first point.
    """

    __slots__ = ("_totals", "history", "last_point_sums")

    def __init__(self, budget: HistoryBudget) -> None:
        self.history = History(len(HISTORY_COLUMNS), budget)
        self.last_point_sums: list[float] = []
        self._totals: dict[str, tuple[int, list[float]]] = {}

    def append_if_due(self, polls: Polls, time: float) -> bool:
        """Append a point if the next point is due. Return whether a point was appended. The first call only stores the counters.

        Args:
            polls: the VM's last two polls of each family, by family name.
            time: time of the last poll of the VM's disks, seconds since the epoch.
        """
        if not self.history.is_due(time):
            return False
        values = [nan] * len(HISTORY_COLUMNS)
        is_first = not self._totals
        for place, family, names in _COUNTER_GROUPS:
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
        self.last_point_sums = values.copy()
        for latency, operations in _LATENCIES:
            values[latency] = values[latency] / values[operations] if values[operations] else nan
        self.history.append(time, values)
        return True

    def _add_rates(self, values: list[float], place: int, family: str, poll: PollPair, names: tuple[str, ...]) -> None:
        """Set the rates of a family's counters since the previous point. A counter that fell, for example after an unplug, has no rate."""
        subjects = poll.current.values()
        try:
            totals = [sum([subject[name] for subject in subjects]) for name in names]
        except KeyError:  # a disk or another subject lacks a counter
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


def sum_vm_points(points: Iterable[Sequence[float]]) -> list[float]:
    """Return a point of the host: the sums over its VMs. Latencies are means over all operations.

    Args:
        points: `HistoryRecorder.last_point_sums` of each VM; no list may be empty.
    """
    totals = [_sum_of_known(column) for column in zip(*points, strict=True)] or [nan] * len(HISTORY_COLUMNS)
    for latency, operations in _LATENCIES:
        totals[latency] = totals[latency] / totals[operations] if totals[operations] else nan
    return totals


def _sum_of_known(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]  # noqa: PLR0124 - false for not a number
    return sum(known) if known else nan
