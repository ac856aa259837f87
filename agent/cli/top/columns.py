"""The columns of the VM table. Pure.

A `Vm` is the JSON object of a VM in /overview. A column is hidden if no VM has a value for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.cli.top.text import format_number, format_seconds, format_size, natural_key

Vm = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        title: the heading.
        key: the key on the keyboard that sorts the table by this column.
        width: the width in characters; 0 for the remaining width.
        value: returns a VM's value; None if it is unknown.
        text: formats a value.
        descending: whether the largest value comes first.
        sort_key: returns what values are compared by; the value itself by default.
    """

    title: str
    key: str
    width: int
    value: Callable[[Vm], Any]
    text: Callable[[Any], str]
    descending: bool = True
    sort_key: Callable[[Any], Any] = lambda value: value


def state(vm: Vm) -> str:
    """Return QEMU's run state of a VM, such as `paused`, if its session is up; else the state of the session, such as `stalled`."""
    return str(vm.get("status", "up") if vm["state"] == "up" else vm["state"])


def _current(name: str) -> Callable[[Vm], Any]:
    return lambda vm: vm.get("now", {}).get(name)


def _format_percent(value: float | None) -> str:
    return format_number(value * 100) if value is not None else ""


def _memory_bytes(vm: Vm) -> float | None:
    memory = vm.get("memory", {})
    return next((memory[name] for name in ("used_bytes", "resident_bytes", "total_bytes") if name in memory), None)


def _memory_share(vm: Vm) -> float | None:
    memory = vm.get("memory", {})
    return memory["used_bytes"] / memory["total_bytes"] if "used_bytes" in memory else None


def _smallest_of_disks(name: str) -> Callable[[Vm], Any]:
    return lambda vm: min((disk[name] for disk in vm.get("disks", ()) if name in disk), default=None)


def filesystem_share(filesystem: Mapping[str, Any]) -> float | None:
    """Return the used share of a guest's file system; None if it is unknown."""
    used, size = filesystem.get("used_bytes"), filesystem.get("size_bytes")
    return used / size if used is not None and size else None


def _fullest_filesystem(vm: Vm) -> float | None:
    shares = map(filesystem_share, vm.get("guest", {}).get("filesystems", ()))
    return max((share for share in shares if share is not None), default=None)


COLUMNS: Sequence[Column] = (
    Column("VM", "n", 0, lambda vm: vm["name"], str, descending=False, sort_key=natural_key),
    Column("STATE", "s", 10, state, str, descending=False),
    Column("CPU%", "c", 6, _current("cpu"), _format_percent),
    Column("RD/s", "r", 6, _current("read"), format_size),
    Column("WR/s", "w", 6, _current("write"), format_size),
    Column("RIOPS", "i", 6, _current("reads"), format_number),
    Column("WIOPS", "o", 6, _current("writes"), format_number),
    Column("MEM", "m", 6, _memory_bytes, format_size),
    Column("MEM%", "p", 5, _memory_share, _format_percent),
    Column("FREE", "d", 6, _smallest_of_disks("free_bytes"), format_size, descending=False),
    Column("FULL", "f", 5, _smallest_of_disks("time_to_full_seconds"), format_seconds, descending=False),
    Column("GUEST%", "g", 6, _fullest_filesystem, _format_percent),
    Column("ALERTS", "a", 6, lambda vm: vm["alerts"] or None, lambda count: str(count or "")),
)


def sort_by_column(vms: Sequence[Vm], column: Column, *, reverse: bool) -> list[Vm]:
    """Sort VMs by a column, then by name in natural order. VMs without a value come last."""
    named = sorted(vms, key=lambda vm: (natural_key(vm["name"]), vm["uuid"]))
    known = [vm for vm in named if column.value(vm) is not None]
    unknown = [vm for vm in named if column.value(vm) is None]
    return (
        sorted(known, key=lambda vm: column.sort_key(column.value(vm)), reverse=column.descending is not reverse)
        + unknown
    )
