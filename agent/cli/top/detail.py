"""One VM in detail, as lines. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent.cli.format import HIDDEN, figure
from agent.cli.top.columns import Vm, state
from agent.cli.top.text import ScreenLine, TextStyle, fit, number, seconds, size, wrapped
from agent.common.units import format_bytes


def detail(
    vm: Vm, alerts: Sequence[Mapping[str, Any]], families: Sequence[Mapping[str, Any]], width: int
) -> Iterator[ScreenLine]:
    """Yield all that is known of a VM, on lines of at most `width` columns; of 0, as wide as it takes."""
    for text, look in _texts(vm, alerts, families, width or 120):
        yield ScreenLine(fit(text, width) if width else text.rstrip(), look)


def _texts(
    vm: Vm, alerts: Sequence[Mapping[str, Any]], families: Sequence[Mapping[str, Any]], width: int
) -> Iterator[tuple[str, TextStyle]]:
    yield f"{vm['name']}   {state(vm)}   {vm.get('reason', '')}", TextStyle.HEAD
    yield f"UUID {vm['uuid']}   QEMU {vm['qemu']}   monitor {vm['monitor']}", TextStyle.PLAIN
    for row in wrapped(list(_glance(vm)), width):
        yield row, TextStyle.PLAIN
    for alert in alerts:
        level = f" past {alert['level']}" if alert["level"] else ""
        yield f"{alert['severity']}: {alert['alert']} {alert['subject']}{level}", TextStyle.BAD
    for row in _moves(vm):
        yield row, TextStyle.PLAIN
    if vm.get("disks"):
        yield "", TextStyle.PLAIN
        yield _disk("DISK", "RD/s", "WR/s", "RIOPS", "WIOPS", "SIZE", "USED", "FREE", "FULL", "LEVELS"), TextStyle.HEAD
        for disk in vm["disks"]:
            yield _of_disk(disk), TextStyle.PLAIN
    for family in families:
        yield from _family(family, width)


def _glance(vm: Vm) -> Iterator[str]:
    now, memory = vm.get("now", {}), vm.get("memory", {})
    if "cpu" in now:
        yield f"CPU {number(now['cpu'] * 100)} % of {vm.get('vcpus', 0)} vCPU"
    for name, text in (
        ("used_bytes", "memory used"),
        ("total_bytes", "memory"),
        ("resident_bytes", "host memory"),
    ):
        if name in memory:
            yield f"{text} {format_bytes(memory[name])}"


def _moves(vm: Vm) -> Iterator[str]:
    """Yield the migration and the jobs, with how far each has come and how long it takes."""
    migration = vm.get("migration")
    moves = [("migration", migration)] if migration else []
    moves += [(f"{job['type']} {job['job']}", job) for job in vm.get("jobs", ())]
    for name, move in moves:
        share = move.get("progress_ratio")
        if "total_bytes" in move:
            share = move["done_bytes"] / move["total_bytes"]
        done = f"   {share * 100:.1f} %" if share is not None else ""
        left = f"   {seconds(move['remaining_seconds'])} left" if "remaining_seconds" in move else ""
        yield f"{name}   {move.get('status', '')}{done}{left}"


def _disk(name: str, *texts: str) -> str:
    *figures, levels = texts
    return " ".join([fit(name, 20), *(fit(text, 7, right=True) for text in figures), " " + levels])


def _of_disk(disk: Mapping[str, Any]) -> str:
    rates = (size(disk.get("read")), size(disk.get("write")), number(disk.get("reads")), number(disk.get("writes")))
    room = (size(disk.get(name)) for name in ("size_bytes", "used_bytes", "free_bytes"))
    over = disk.get("used_bytes", 0)
    levels = "  ".join(f"{text}{' exceeded' if over > at else ''}" for text, at in disk.get("levels", ()))
    return _disk(disk["device"], *rates, *room, seconds(disk.get("time_to_full_seconds")), levels)


def _family(family: Mapping[str, Any], width: int) -> Iterator[tuple[str, TextStyle]]:
    """Yield a family's figures, subject by subject; nothing that is zero or empty."""
    for subject in family["subjects"]:
        said = []
        for name, value in subject["values"].items():
            if value not in (0, "", None) and name not in HIDDEN and not isinstance(value, list | dict):
                rate = subject["rates"].get(name)
                said.append(f"{name}={figure(name, value)}{f' ({_rate(name, rate)})' if rate else ''}")
        if said:
            yield "", TextStyle.PLAIN
            yield " ".join((family["name"], *subject["labels"])), TextStyle.HEAD
            for row in wrapped(said, width):
                yield row, TextStyle.PLAIN


def _rate(name: str, rate: float) -> str:
    return f"{format_bytes(rate)}/s" if "bytes" in name else f"{number(rate)}/s"
