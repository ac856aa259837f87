"""The summary of one VM: the few values that fit on a page and in a terminal. Pure.

Each value is computed from families that may be absent. An unknown value is None or left out, so that no reader shows an empty box.
"""

from array import array
from collections.abc import Iterator, Mapping
from math import isnan, nan
from typing import Any, NamedTuple

from agent.exposition.rates import MIN_INTERVAL_NS, PollPair
from agent.model.family import Values
from agent.model.metrics.migration import INACTIVE_STATUSES

POINTS = 60
"""Points in the history of each VM: ten minutes at the default poll interval of ten seconds, 4 KB."""

Polls = Mapping[str, PollPair]
"""Last two polls, by family name."""


class Point(NamedTuple):
    """A VM's activity between two polls.

    Attributes:
        time: time of the later poll, seconds since the epoch.
        cpu: host CPUs that its vCPUs used.
        read, write: bytes per second.
        reads, writes: operations per second.
        memory: bytes in use by the guest's own report, else resident bytes of the process.
    """

    time: float
    cpu: float | None
    read: float | None
    write: float | None
    reads: float | None
    writes: float | None
    memory: float | None


class History:
    """The latest points of one VM, oldest first, packed as plain numbers. As objects they would take a quarter of a VM's memory."""

    def __init__(self) -> None:
        self._numbers = array("d")

    def __len__(self) -> int:
        return len(self._numbers) // _WIDTH

    def __iter__(self) -> Iterator[Point]:
        for start in range(0, len(self._numbers), _WIDTH):
            time, *values = self._numbers[start : start + _WIDTH]
            yield Point(time, *(None if isnan(value) else value for value in values))

    def append(self, point: Point) -> None:
        """Append a point. If the history is full, remove the oldest point."""
        if len(self) >= POINTS:
            del self._numbers[:_WIDTH]
        self._numbers.extend([nan if value is None else value for value in point])

    @property
    def last_time(self) -> float:
        """Time of the last point, seconds since the epoch; 0 if there is none."""
        return self._numbers[-_WIDTH] if self._numbers else 0.0


_WIDTH = len(Point._fields)


def update_history(polls: Polls, history: History) -> None:
    """Append a point for the last two polls, unless the history has a point of the same time."""
    time_ns = polls["block"].time_ns
    if polls["block"].previous_ns and time_ns / 1e9 - history.last_time >= MIN_INTERVAL_NS / 1e9:
        history.append(point(polls))


_COUNTERS = {
    "read": "read_bytes_total",
    "write": "write_bytes_total",
    "reads": "reads_total",
    "writes": "writes_total",
}
"""Counters of a disk's activity, by their short names in the order of `Point`."""


def point(polls: Polls) -> Point:
    """Return a VM's present activity."""
    block = polls.get("block") or PollPair()
    known = memory(polls)
    used = known.get("used_bytes", known.get("resident_bytes"))
    read, write, reads, writes = map(block.totals(_COUNTERS.values()).get, _COUNTERS.values())
    return Point(block.time_ns / 1e9, cpu(polls), read, write, reads, writes, used)


def cpu(polls: Polls) -> float | None:
    """Return how many host CPUs the VM's vCPUs use."""
    return polls["vcpu"].total("cpu_seconds_total") if "vcpu" in polls else None


def memory(polls: Polls) -> dict[str, float]:
    """Return a VM's memory in bytes: the guest's total, the part that the guest uses, and the process's resident memory, if known."""
    guest, balloon, process = (_vm_values(polls, family) for family in ("guest_memory", "balloon", "process"))
    sizes = {"resident_bytes": process["resident_bytes"]} if "resident_bytes" in process else {}
    total = guest.get("total_bytes", balloon.get("actual_bytes"))
    if total is not None:
        sizes["total_bytes"] = total
    if total is not None and "available_bytes" in guest:
        sizes["used_bytes"] = total - guest["available_bytes"]
    return sizes


def disks(polls: Polls) -> list[dict[str, Any]]:
    """Return each disk's rates and, for a thin disk, its space."""
    block, space, layers = (polls.get(name) or PollPair() for name in ("block", "block_space", "block_layer"))
    disks = []
    for labels in block.current:
        disk: dict[str, Any] = {"device": labels[0]}
        rates = block.rates(labels, _COUNTERS.values())
        disk |= {name: rates[counter] for name, counter in _COUNTERS.items() if counter in rates}
        size = layers.current.get((*labels, "format"), {}).get("size_bytes")
        if size is not None:
            disk["size_bytes"] = size
        disks.append(disk | space.current.get(labels, {}))
    return disks


def migration(polls: Polls) -> dict[str, Any] | None:
    """Return the present or last migration with its progress and remaining time; None if there was none."""
    values = _vm_values(polls, "migration")
    if values.get("status", "none") == "none":
        return None
    names = ("status", "elapsed_seconds", "throughput_bytes_per_second", "expected_downtime_seconds", "passes_total")
    result = {name: values[name] for name in (*names, "remaining_seconds") if name in values}
    remaining, total = values.get("ram_remaining_bytes"), values.get("ram_bytes")
    if remaining is not None and total and values["status"] not in INACTIVE_STATUSES:
        result |= {"done_bytes": max(0, total - remaining), "total_bytes": total}
    return result


def jobs(polls: Polls) -> list[dict[str, Any]]:
    """Return the jobs with their progress and remaining time."""
    job_polls = polls.get("job") or PollPair()
    names = ("status", "error", "progress_ratio", "remaining_seconds")
    return [
        {"job": job, "type": kind} | {name: values[name] for name in names if name in values}
        for (job, kind), values in job_polls.current.items()
    ]


def summarize(polls: Polls) -> dict[str, Any]:
    """Return the summary of a VM, without unknown values."""
    now = {name: value for name, value in point(polls)._asdict().items() if value is not None}
    parts: dict[str, Any] = {
        "now": now,
        "memory": memory(polls),
        "disks": disks(polls),
        "migration": migration(polls),
        "jobs": jobs(polls),
        "vcpus": len(polls["vcpu"].current) if "vcpu" in polls else 0,
    }
    return {name: value for name, value in parts.items() if value} | _vm_values(polls, "runstate")


def _vm_values(polls: Polls, family: str) -> Values:
    """Return the values of a family whose only subject is the VM as a whole."""
    return polls[family].current.get((), {}) if family in polls else {}
