"""The summary of one VM: a few values for the page and the terminal. Pure.

Each value is computed from families that may be absent. An unknown value is None or left out.
"""

from array import array
from collections.abc import Iterator, Mapping
from math import isnan, nan
from typing import Any, NamedTuple

from agent.exposition.rates import MIN_INTERVAL_NS, PollPair
from agent.model.family import Values
from agent.model.metrics.migration import INACTIVE_STATUSES

POINTS = 60
"""Maximum number of points in the history of a VM: ten minutes at the default poll interval of ten seconds. They take 4 KB."""

Polls = Mapping[str, PollPair]
"""The last two polls of each family of a VM, by family name."""


class Point(NamedTuple):
    """A VM's activity between two polls. An unknown value is None.

    Attributes:
        time: time of the later poll, seconds since the epoch.
        cpu: number of host CPUs that the vCPUs used.
        read: bytes per second that the VM read from its disks.
        write: bytes per second that the VM wrote to its disks.
        reads: read operations per second.
        writes: write operations per second.
        memory: bytes that the guest uses, by its own report; without such a report, resident bytes of the process.
    """

    time: float
    cpu: float | None
    read: float | None
    write: float | None
    reads: float | None
    writes: float | None
    memory: float | None


class History:
    """The latest points of one VM, oldest first. Packed as plain numbers: as objects they would take a quarter of a VM's memory."""

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
    def last_point_time(self) -> float:
        """Time of the last point, seconds since the epoch; 0 if there is none."""
        return self._numbers[-_WIDTH] if self._numbers else 0.0


_WIDTH = len(Point._fields)


def update_history(polls: Polls, history: History) -> None:
    """Append a point for the last two polls, if they are later than the last point by at least `MIN_INTERVAL_NS`."""
    time_ns = polls["block"].time_ns
    if polls["block"].previous_ns and time_ns / 1e9 - history.last_point_time >= MIN_INTERVAL_NS / 1e9:
        history.append(latest_point(polls))


_COUNTERS = {
    "read": "read_bytes_total",
    "write": "write_bytes_total",
    "reads": "reads_total",
    "writes": "writes_total",
}
"""Counters of a disk's activity, by the names and in the order of the attributes of `Point`."""


def latest_point(polls: Polls) -> Point:
    """Return a VM's activity between its last two polls."""
    block = polls.get("block") or PollPair()
    sizes = memory_sizes(polls)
    used = sizes.get("used_bytes", sizes.get("resident_bytes"))
    read, write, reads, writes = map(block.total_rates(_COUNTERS.values()).get, _COUNTERS.values())
    return Point(block.time_ns / 1e9, used_cpus(polls), read, write, reads, writes, used)


def used_cpus(polls: Polls) -> float | None:
    """Return how many host CPUs the VM's vCPUs use; None if that is unknown."""
    return polls["vcpu"].total_rate("cpu_seconds_total") if "vcpu" in polls else None


def memory_sizes(polls: Polls) -> dict[str, float]:
    """Return the known sizes of a VM's memory in bytes: `total_bytes`, `used_bytes` by the guest, `resident_bytes` of the process."""
    guest, balloon, process = (_vm_values(polls, family) for family in ("guest_memory", "balloon", "process"))
    sizes = {"resident_bytes": process["resident_bytes"]} if "resident_bytes" in process else {}
    total = guest.get("total_bytes", balloon.get("actual_bytes"))
    if total is not None:
        sizes["total_bytes"] = total
    if total is not None and "available_bytes" in guest:
        sizes["used_bytes"] = total - guest["available_bytes"]
    return sizes


def summarize_disks(polls: Polls) -> list[dict[str, Any]]:
    """Return the rates and the size of each disk, and for a thin disk the values of the family `block_space`."""
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


def summarize_migration(polls: Polls) -> dict[str, Any] | None:
    """Return the status, progress and remaining time of the present or last migration; None if the VM was never migrated."""
    values = _vm_values(polls, "migration")
    if values.get("status", "none") == "none":
        return None
    names = ("status", "elapsed_seconds", "throughput_bytes_per_second", "expected_downtime_seconds", "passes_total")
    result = {name: values[name] for name in (*names, "remaining_seconds") if name in values}
    remaining, total = values.get("ram_remaining_bytes"), values.get("ram_bytes")
    if remaining is not None and total and values["status"] not in INACTIVE_STATUSES:
        result |= {"done_bytes": max(0, total - remaining), "total_bytes": total}
    return result


def summarize_jobs(polls: Polls) -> list[dict[str, Any]]:
    """Return the status, progress and remaining time of each job."""
    job_polls = polls.get("job") or PollPair()
    names = ("status", "error", "progress_ratio", "remaining_seconds")
    return [
        {"job": job, "type": kind} | {name: values[name] for name in names if name in values}
        for (job, kind), values in job_polls.current.items()
    ]


_CHANNEL_STATES: Mapping[Any, str] = {True: "connected", False: "absent"}
"""State of a guest agent that is not queried, by whether the guest has opened its channel."""


def summarize_guest(polls: Polls) -> dict[str, Any]:
    """Return what the guest agent reports: its state, the operating system, the addresses and the file systems, as far as known."""
    channel, session, system = (_vm_values(polls, f"guest_{name}") for name in ("agent", "agent_session", "os"))
    filesystems = polls["guest_filesystem"].current if "guest_filesystem" in polls else {}
    addresses = polls["guest_address"].current.values() if "guest_address" in polls else ()
    parts: dict[str, Any] = {
        "agent": session.get("state", _CHANNEL_STATES.get(channel.get("connected", ""))),
        "reason": session.get("reason"),
        "frozen": _vm_values(polls, "guest_freeze").get("frozen"),
        "hostname": system.get("hostname"),
        "system": system.get("name"),
        "kernel": system.get("kernel"),
        "addresses": [values[kind] for values in addresses for kind in ("ipv4", "ipv6") if kind in values],
        "filesystems": [
            {"mountpoint": mountpoint, "device": device, "type": kind}
            | {name: values[name] for name in ("used_bytes", "size_bytes") if name in values}
            for (mountpoint, device, kind), values in filesystems.items()
        ],
    }
    return {name: value for name, value in parts.items() if value}


def summarize(polls: Polls) -> dict[str, Any]:
    """Return the summary of a VM, without unknown values."""
    now = {name: value for name, value in latest_point(polls)._asdict().items() if value is not None}
    parts: dict[str, Any] = {
        "now": now,
        "memory": memory_sizes(polls),
        "disks": summarize_disks(polls),
        "migration": summarize_migration(polls),
        "jobs": summarize_jobs(polls),
        "guest": summarize_guest(polls),
        "vcpus": len(polls["vcpu"].current) if "vcpu" in polls else 0,
    }
    return {name: value for name, value in parts.items() if value} | _vm_values(polls, "runstate")


def _vm_values(polls: Polls, family: str) -> Values:
    """Return the values of a family that describes the VM as a whole."""
    return polls[family].current.get((), {}) if family in polls else {}
