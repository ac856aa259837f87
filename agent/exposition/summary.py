"""A VM at a glance, in the few figures that a page and a terminal have room for. Pure.

Each is made of families that may or may not be there; what cannot be known is None or not in the list, so that nobody shows an empty box.
"""

from array import array
from collections.abc import Iterator, Mapping
from math import isnan, nan
from typing import Any, NamedTuple

from agent.exposition.rates import LEAST_NS, PollPair
from agent.model.family import Values
from agent.model.metrics.migration import INACTIVE_STATUSES

POINTS = 60
"""How many polls are remembered of each VM: ten minutes at the usual ten seconds, 4 KB."""

Pairs = Mapping[str, PollPair]
"""Last polls, by family name."""


class Point(NamedTuple):
    """What a VM did between two polls.

    Attributes:
        time: when, in seconds since the epoch.
        cpu: how many of the host's processors its vCPUs took.
        read, write: bytes a second.
        reads, writes: operations a second.
        memory: bytes in use, as the guest says, or else of the host's.
    """

    time: float
    cpu: float | None
    read: float | None
    write: float | None
    reads: float | None
    writes: float | None
    memory: float | None


class History:
    """The last points of one VM, the oldest first, as bare numbers: as objects they would be a quarter of what a VM takes of memory."""

    def __init__(self) -> None:
        self._numbers = array("d")

    def __len__(self) -> int:
        return len(self._numbers) // _WIDTH

    def __iter__(self) -> Iterator[Point]:
        for at in range(0, len(self._numbers), _WIDTH):
            time, *figures = self._numbers[at : at + _WIDTH]
            yield Point(time, *(None if isnan(figure) else figure for figure in figures))

    def append(self, point: Point) -> None:
        """Add a point, in place of the oldest where there are enough."""
        if len(self) >= POINTS:
            del self._numbers[:_WIDTH]
        self._numbers.extend([nan if figure is None else figure for figure in point])

    @property
    def last(self) -> float:
        """The time of the last point; 0 where there is none."""
        return self._numbers[-_WIDTH] if self._numbers else 0.0


_WIDTH = len(Point._fields)


def remember(pairs: Pairs, history: History) -> None:
    """Add what the last two polls say to the history, unless it has a point of the same moment."""
    time_ns = pairs["block"].time_ns
    if pairs["block"].then_ns and time_ns / 1e9 - history.last >= LEAST_NS / 1e9:
        history.append(point(pairs))


_SHORT = ("read", "write", "reads", "writes")
_DONE = ("read_bytes_total", "write_bytes_total", "reads_total", "writes_total")
"""What disks do, in the order of a point, and what it is called for people."""


def point(pairs: Pairs) -> Point:
    """Return what a VM does now."""
    block = pairs.get("block") or PollPair()
    has = memory(pairs)
    used = has.get("used_bytes", has.get("resident_bytes"))
    read, write, reads, writes = map(block.totals(_DONE).get, _DONE)
    return Point(block.time_ns / 1e9, cpu(pairs), read, write, reads, writes, used)


def cpu(pairs: Pairs) -> float | None:
    """Return how many of the host's processors the VM's vCPUs took."""
    return pairs["vcpu"].total("cpu_seconds_total") if "vcpu" in pairs else None


def memory(pairs: Pairs) -> dict[str, float]:
    """Return the memory that the VM has; where its guest tells, how much of that is in use; and what it takes of the host's; in bytes."""
    guest, balloon, process = (_only(pairs, family) for family in ("guest_memory", "balloon", "process"))
    found = {"resident_bytes": process["resident_bytes"]} if "resident_bytes" in process else {}
    total = guest.get("total_bytes", balloon.get("actual_bytes"))
    if total is not None:
        found["total_bytes"] = total
    if total is not None and "available_bytes" in guest:
        found["used_bytes"] = total - guest["available_bytes"]
    return found


def disks(pairs: Pairs) -> list[dict[str, Any]]:
    """Return each disk's rates and, where it can fill, how full it is."""
    block, space, layers = (pairs.get(name) or PollPair() for name in ("block", "block_space", "block_layer"))
    found = []
    for labels in block.now:
        disk: dict[str, Any] = {"device": labels[0]}
        rates = block.rates(labels, _DONE)
        disk |= {short: rates[name] for short, name in zip(_SHORT, _DONE, strict=True) if name in rates}
        size = layers.now.get((*labels, "format"), {}).get("size_bytes")
        if size is not None:
            disk["size_bytes"] = size
        found.append(disk | space.now.get(labels, {}))
    return found


def migration(pairs: Pairs) -> dict[str, Any] | None:
    """Return the migration, where there is or was one, with how far it has come and how long it takes yet."""
    values = _only(pairs, "migration")
    if values.get("status", "none") == "none":
        return None
    names = ("status", "elapsed_seconds", "throughput_bytes_per_second", "expected_downtime_seconds", "passes_total")
    found = {name: values[name] for name in (*names, "remaining_seconds") if name in values}
    left, total = values.get("ram_remaining_bytes"), values.get("ram_bytes")
    if left is not None and total and values["status"] not in INACTIVE_STATUSES:
        found |= {"done_bytes": max(0, total - left), "of_bytes": total}
    return found


def jobs(pairs: Pairs) -> list[dict[str, Any]]:
    """Return the jobs that there are, with how far each has come and how long it takes."""
    pair = pairs.get("job") or PollPair()
    names = ("status", "error", "progress_ratio", "remaining_seconds")
    return [
        {"job": job, "type": kind} | {name: values[name] for name in names if name in values}
        for (job, kind), values in pair.now.items()
    ]


def summarize(pairs: Pairs) -> dict[str, Any]:
    """Return all of it, without what is not known."""
    now = {name: value for name, value in point(pairs)._asdict().items() if value is not None}
    said: dict[str, Any] = {"now": now, "memory": memory(pairs), "disks": disks(pairs), "migration": migration(pairs)}
    said |= {"jobs": jobs(pairs), "vcpus": len(pairs["vcpu"].now) if "vcpu" in pairs else 0}
    return {name: value for name, value in said.items() if value} | _only(pairs, "runstate")


def _only(pairs: Pairs, family: str) -> Values:
    """Return the values of a family that has one subject, the VM as a whole."""
    return pairs[family].now.get((), {}) if family in pairs else {}
