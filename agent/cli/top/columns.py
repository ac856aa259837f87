"""The columns of the table of VMs, defined one on each row. Pure.

A VM is its JSON value in /overview. A column without a value in any VM is hidden.
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
        title: its heading.
        key: the key that sorts by it.
        width: its width in characters; 0 takes the remaining width.
        value: returns the value to sort by; None if it is unknown.
        text: formats that value.
        descending: whether the largest values come first.
        order: returns the key by which values are compared.
    """

    title: str
    key: str
    width: int
    value: Callable[[Vm], Any]
    text: Callable[[Any], str]
    descending: bool = True
    order: Callable[[Any], Any] = lambda value: value


def state(vm: Vm) -> str:
    """Return the state of a VM's session; if the state is `up`, return the VM's run state."""
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


def _smallest(name: str) -> Callable[[Vm], Any]:
    return lambda vm: min((disk[name] for disk in vm.get("disks", ()) if name in disk), default=None)


COLUMNS: Sequence[Column] = (
    Column("VM", "n", 0, lambda vm: vm["name"], str, descending=False, order=natural_key),
    Column("STATE", "s", 10, state, str, descending=False),
    Column("CPU%", "c", 6, _now("cpu"), _percent),
    Column("RD/s", "r", 6, _now("read"), size),
    Column("WR/s", "w", 6, _now("write"), size),
    Column("RIOPS", "i", 6, _now("reads"), number),
    Column("WIOPS", "o", 6, _now("writes"), number),
    Column("MEM", "m", 6, _memory, size),
    Column("MEM%", "p", 5, _share, _percent),
    Column("FREE", "d", 6, _smallest("free_bytes"), size, descending=False),
    Column("FULL", "f", 5, _smallest("time_to_full_seconds"), seconds, descending=False),
    Column("ALERTS", "a", 6, lambda vm: vm["alerts"] or None, lambda count: str(count or "")),
)


def by_column(vms: Sequence[Vm], column: Column, *, reverse: bool) -> list[Vm]:
    """Sort VMs by a column, then by name in natural order. VMs without a value come last."""
    named = sorted(vms, key=lambda vm: (natural_key(vm["name"]), vm["uuid"]))
    known = [vm for vm in named if column.value(vm) is not None]
    unknown = [vm for vm in named if column.value(vm) is None]
    return (
        sorted(known, key=lambda vm: column.order(column.value(vm)), reverse=column.descending is not reverse) + unknown
    )
