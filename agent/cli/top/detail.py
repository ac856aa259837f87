"""The details of one VM, as lines. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent.cli.format import HIDDEN, format_value
from agent.cli.top.columns import Vm, state
from agent.cli.top.text import ScreenLine, TextStyle, fit, number, seconds, size, wrapped
from agent.common.units import format_bytes


def detail(
    vm: Vm, alerts: Sequence[Mapping[str, Any]], families: Sequence[Mapping[str, Any]], width: int
) -> Iterator[ScreenLine]:
    """Yield the details of a VM.

    Args:
        vm: the VM's value in /overview.
        alerts: its firing alerts.
        families: its samples.
        width: the width of the lines in characters; 0 does not limit it.
    """
    for text, style in _texts(vm, alerts, families, width or 120):
        yield ScreenLine(fit(text, width) if width else text.rstrip(), style)


def _texts(
    vm: Vm, alerts: Sequence[Mapping[str, Any]], families: Sequence[Mapping[str, Any]], width: int
) -> Iterator[tuple[str, TextStyle]]:
    yield f"{vm['name']}   {state(vm)}   {vm.get('reason', '')}", TextStyle.HEAD
    for failure in vm.get("degraded", ()):
        yield f"collector {failure['collector']} is off: {failure['cause']}", TextStyle.BAD
    yield f"UUID {vm['uuid']}   QEMU {vm['qemu']}   monitor {vm['monitor']}", TextStyle.PLAIN
    for row in wrapped(list(_summary(vm)), width):
        yield row, TextStyle.PLAIN
    for alert in alerts:
        level = f" past {alert['level']}" if alert["level"] else ""
        yield f"{alert['severity']}: {alert['alert']} {alert['subject']}{level}", TextStyle.BAD
    for row in _progress(vm):
        yield row, TextStyle.PLAIN
    if vm.get("disks"):
        yield "", TextStyle.PLAIN
        yield (
            _disk_row("DISK", "RD/s", "WR/s", "RIOPS", "WIOPS", "SIZE", "USED", "FREE", "FULL", "LEVELS"),
            TextStyle.HEAD,
        )
        for disk in vm["disks"]:
            yield _disk(disk), TextStyle.PLAIN
    for family in families:
        yield from _family(family, width)


def _summary(vm: Vm) -> Iterator[str]:
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


def _progress(vm: Vm) -> Iterator[str]:
    """Yield the migration and the jobs with their progress and their remaining time."""
    migration = vm.get("migration")
    tasks = [("migration", migration)] if migration else []
    tasks += [(f"{job['type']} {job['job']}", job) for job in vm.get("jobs", ())]
    for name, task in tasks:
        share = task.get("progress_ratio")
        if "total_bytes" in task:
            share = task["done_bytes"] / task["total_bytes"]
        done = f"   {share * 100:.1f} %" if share is not None else ""
        left = f"   {seconds(task['remaining_seconds'])} left" if "remaining_seconds" in task else ""
        yield f"{name}   {task.get('status', '')}{done}{left}"


def _disk_row(name: str, *texts: str) -> str:
    *values, levels = texts
    return " ".join([fit(name, 20), *(fit(text, 7, right=True) for text in values), " " + levels])


def _disk(disk: Mapping[str, Any]) -> str:
    rates = (size(disk.get("read")), size(disk.get("write")), number(disk.get("reads")), number(disk.get("writes")))
    space = (size(disk.get(name)) for name in ("size_bytes", "used_bytes", "free_bytes"))
    used = disk.get("used_bytes", 0)
    levels = "  ".join(f"{text}{' exceeded' if used > at else ''}" for text, at in disk.get("levels", ()))
    return _disk_row(disk["device"], *rates, *space, seconds(disk.get("time_to_full_seconds")), levels)


def _family(family: Mapping[str, Any], width: int) -> Iterator[tuple[str, TextStyle]]:
    """Yield the values of a family by subject, without zero and empty ones."""
    for subject in family["subjects"]:
        values = []
        for name, value in subject["values"].items():
            if value not in (0, "", None) and name not in HIDDEN and not isinstance(value, list | dict):
                rate = subject["rates"].get(name)
                values.append(f"{name}={format_value(name, value)}{f' ({_rate(name, rate)})' if rate else ''}")
        if values:
            yield "", TextStyle.PLAIN
            yield " ".join((family["name"], *subject["labels"])), TextStyle.HEAD
            for row in wrapped(values, width):
                yield row, TextStyle.PLAIN


def _rate(name: str, rate: float) -> str:
    return f"{format_bytes(rate)}/s" if "bytes" in name else f"{number(rate)}/s"
