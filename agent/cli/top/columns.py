"""The columns of the table, a row each. Pure.

A VM is what /overview tells of it; a column that no VM has anything for is not shown.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.cli.top.text import natural_key, number, seconds, size

Vm = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        title: its head.
        key: the key that sorts by it.
        width: its columns on the screen; 0 takes what is left.
        value: what it is sorted by; None is not known.
        text: what is shown of that.
        order: the key by which values are compared.
        most_first: whether the largest stand on top.
    """

    title: str
    key: str
    width: int
    value: Callable[[Vm], Any]
    text: Callable[[Any], str]
    most_first: bool = True
    order: Callable[[Any], Any] = lambda value: value


def state(vm: Vm) -> str:
    """Return a VM's state in a word: of its session, or where that is up, of the guest."""
    return str(vm.get("status", "up") if vm["state"] == "up" else vm["state"])


def _now(name: str) -> Callable[[Vm], Any]:
    return lambda vm: vm.get("now", {}).get(name)


def _percent(value: float | None) -> str:
    return number(value * 100) if value is not None else ""


def _memory(vm: Vm) -> float | None:
    memory = vm.get("memory", {})
    return next((memory[name] for name in ("used_bytes", "resident_bytes", "total_bytes") if name in memory), None)


def _share(vm: Vm) -> float | None:
    memory = vm.get("memory", {})
    return memory["used_bytes"] / memory["total_bytes"] if "used_bytes" in memory else None


def _least(name: str) -> Callable[[Vm], Any]:
    return lambda vm: min((disk[name] for disk in vm.get("disks", ()) if name in disk), default=None)


COLUMNS: Sequence[Column] = (
    Column("VM", "n", 0, lambda vm: vm["name"], str, most_first=False, order=natural_key),
    Column("STATE", "s", 10, state, str, most_first=False),
    Column("CPU%", "c", 6, _now("cpu"), _percent),
    Column("RD/s", "r", 6, _now("read"), size),
    Column("WR/s", "w", 6, _now("write"), size),
    Column("RIOPS", "i", 6, _now("reads"), number),
    Column("WIOPS", "o", 6, _now("writes"), number),
    Column("MEM", "m", 6, _memory, size),
    Column("MEM%", "p", 5, _share, _percent),
    Column("FREE", "d", 6, _least("free_bytes"), size, most_first=False),
    Column("FULL", "f", 5, _least("time_to_full_seconds"), seconds, most_first=False),
    Column("ALERTS", "a", 6, lambda vm: vm["alerts"] or None, lambda count: str(count or "")),
)


def by_column(vms: Sequence[Vm], column: Column, *, reverse: bool) -> list[Vm]:
    """Return the VMs in a column's order, those without a value last, equal ones by name."""
    named = sorted(vms, key=lambda vm: (natural_key(vm["name"]), vm["uuid"]))
    known = [vm for vm in named if column.value(vm) is not None]
    unknown = [vm for vm in named if column.value(vm) is None]
    return (
        sorted(known, key=lambda vm: column.order(column.value(vm)), reverse=column.most_first is not reverse) + unknown
    )
