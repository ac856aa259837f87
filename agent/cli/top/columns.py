"""The columns of the VM table. Pure.

An `OverviewVm` is the JSON object of a VM in /overview. A column without a value for any VM is hidden.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.cli.top.text import format_latency, format_number, format_quantile, format_seconds, format_size, natural_key

OverviewVm = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the VM table.

    Attributes:
        title: the heading.
        key: the key on the keyboard that sorts the table by this column.
        name: the column's name in the option --sort.
        width: the width in characters; 0 to fill the rest of the line.
        value_of: returns a VM's value; None if the value is unknown.
        format_value: formats a value.
        descending: whether the largest value comes first.
        sort_key: returns the sort key of a value; by default, the value itself.
    """

    title: str
    key: str
    name: str
    width: int
    value_of: Callable[[OverviewVm], Any]
    format_value: Callable[[Any], str]
    descending: bool = True
    sort_key: Callable[[Any], Any] = lambda value: value


def run_or_monitor_state(vm: OverviewVm) -> str:
    """Return QEMU's run state of a VM, such as `paused`. If the monitor is not up, return the monitor's state, such as `stalled`."""
    return str(vm.get("status", "up") if vm["state"] == "up" else vm["state"])


_STOPPED = ("io-error", "internal-error", "guest-panicked", "watchdog", "shutdown")


def is_stopped_by_qemu(vm: OverviewVm) -> bool:
    """Return whether QEMU stopped the guest, after an error or after the guest's shutdown."""
    return run_or_monitor_state(vm) in _STOPPED


def _value_at_last_poll(name: str) -> Callable[[OverviewVm], Any]:
    return lambda vm: vm.get("now", {}).get(name)


def _format_percent(value: float | None) -> str:
    return format_number(value * 100) if value is not None else ""


def _memory_bytes(vm: OverviewVm) -> float | None:
    memory = vm.get("memory", {})
    return next((memory[name] for name in ("used_bytes", "resident_bytes", "total_bytes") if name in memory), None)


def _memory_share(vm: OverviewVm) -> float | None:
    memory = vm.get("memory", {})
    return memory["used_bytes"] / memory["total_bytes"] if "used_bytes" in memory else None


def _smallest_of_disks(name: str) -> Callable[[OverviewVm], Any]:
    return lambda vm: min((disk[name] for disk in vm.get("disks", ()) if name in disk), default=None)


def filesystem_used_ratio(filesystem: Mapping[str, Any]) -> float | None:
    """Return the used share of a guest's file system, from 0 to 1; None if unknown."""
    used, size = filesystem.get("used_bytes"), filesystem.get("size_bytes")
    return used / size if used is not None and size else None


def _fullest_filesystem(vm: OverviewVm) -> float | None:
    shares = map(filesystem_used_ratio, vm.get("guest", {}).get("filesystems", ()))
    return max((share for share in shares if share is not None), default=None)


def is_quantile_lower_bound(latency: Mapping[str, float], name: str) -> bool:
    """Return whether a quantile is only a lower bound: whether it is in the histogram's last bin, which has no upper boundary."""
    return latency[name] >= latency["last_boundary"]


def _highest_p99(vm: OverviewVm) -> tuple[float, bool] | None:
    """Return the highest 99th percentile of latency over the disks and kinds of operations; None without histograms.

    The second value is True if the percentile is a lower bound.
    """
    latencies = (latency for disk in vm.get("disks", ()) for latency in disk.get("latencies", {}).values())
    return max(((latency["p99"], is_quantile_lower_bound(latency, "p99")) for latency in latencies), default=None)


def _format_p99(value: tuple[float, bool] | None) -> str:
    return format_quantile(value[0], is_lower_bound=value[1]) if value is not None else ""


COLUMNS: Sequence[Column] = (
    Column("VM", "n", "name", 0, lambda vm: vm["name"], str, descending=False, sort_key=natural_key),
    Column("STATE", "s", "state", 10, run_or_monitor_state, str, descending=False),
    Column("ALERTS", "a", "alerts", 6, lambda vm: vm["alerts"] or None, lambda count: str(count or "")),
    Column("CPU%", "c", "cpu", 6, _value_at_last_poll("cpu"), _format_percent),
    Column("STEAL%", "t", "steal", 6, _value_at_last_poll("steal"), _format_percent),
    Column("RD/s", "r", "read", 6, _value_at_last_poll("read"), format_size),
    Column("WR/s", "w", "write", 6, _value_at_last_poll("write"), format_size),
    Column("LAT", "l", "latency", 5, _value_at_last_poll("latency"), format_latency),
    Column("P99", "9", "p99", 7, _highest_p99, _format_p99),
    Column("MEM", "m", "memory", 6, _memory_bytes, format_size),
    Column("FREE", "d", "free", 6, _smallest_of_disks("free_bytes"), format_size, descending=False),
    Column("FULL", "f", "full", 5, _smallest_of_disks("time_to_full_seconds"), format_seconds, descending=False),
    Column("GUEST%", "g", "filesystem", 6, _fullest_filesystem, _format_percent),
    Column("MEM%", "p", "memory-share", 5, _memory_share, _format_percent),
    Column("RIOPS", "i", "reads", 6, _value_at_last_poll("reads"), format_number),
    Column("WIOPS", "o", "writes", 6, _value_at_last_poll("writes"), format_number),
    Column("RX/s", "x", "receive", 6, _value_at_last_poll("receive"), format_size),
    Column("TX/s", "y", "transmit", 6, _value_at_last_poll("transmit"), format_size),
)
"""The columns, the most important first. A narrow terminal shows only the first columns."""


def sort_by_column(vms: Sequence[OverviewVm], column: Column, *, reverse: bool) -> list[OverviewVm]:
    """Sort VMs by a column, and VMs with equal values by name in natural order. VMs without a value come last."""
    named = sorted(vms, key=lambda vm: (natural_key(vm["name"]), vm["uuid"]))
    known = [vm for vm in named if column.value_of(vm) is not None]
    unknown = [vm for vm in named if column.value_of(vm) is None]
    return (
        sorted(known, key=lambda vm: column.sort_key(column.value_of(vm)), reverse=column.descending is not reverse)
        + unknown
    )
