"""Renders the details of one VM as lines of text. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent.cli.record_text import HIDDEN_FIELDS, format_value
from agent.cli.top.columns import OverviewVm, filesystem_used_ratio, is_quantile_lower_bound, run_or_monitor_state
from agent.cli.top.text import (
    ScreenLine,
    TextStyle,
    fit_to_width,
    format_number,
    format_quantile,
    format_seconds,
    format_size,
    wrap_words,
)
from agent.common.durations_and_sizes import format_bytes


def detail_lines(
    vm: OverviewVm, alerts: Sequence[Mapping[str, Any]], families: Sequence[Mapping[str, Any]], width: int
) -> Iterator[ScreenLine]:
    """Yield the lines of a VM's details.

    Args:
        vm: the JSON object of the VM in /overview.
        alerts: the VM's firing alerts.
        families: the VM's samples by family. A family is a group of metrics with the same labels, such as `block`.
        width: the maximum width of a line in characters; 0 for no maximum.
    """
    for text, style in _styled_lines(vm, alerts, families, width or 120):
        yield ScreenLine(fit_to_width(text, width) if width else text.rstrip(), style)


def _styled_lines(
    vm: OverviewVm, alerts: Sequence[Mapping[str, Any]], families: Sequence[Mapping[str, Any]], width: int
) -> Iterator[tuple[str, TextStyle]]:
    yield f"{vm['name']}   {run_or_monitor_state(vm)}   {vm.get('reason', '')}", TextStyle.HEAD
    for failure in vm.get("degraded", ()):
        yield f"collector {failure['collector']} is off: {failure['cause']}", TextStyle.BAD
    yield f"UUID {vm['uuid']}   QEMU {vm['qemu']}   monitor {vm['monitor']}", TextStyle.PLAIN
    for row in wrap_words(list(_summary_words(vm)), width):
        yield row, TextStyle.PLAIN
    for alert in alerts:
        level = f" past {alert['level']}" if alert["level"] else ""
        yield f"{alert['severity']}: {alert['alert']} {alert['subject']}{level}", TextStyle.BAD
    for row in _progress_lines(vm):
        yield row, TextStyle.PLAIN
    if vm.get("disks"):
        yield "", TextStyle.PLAIN
        yield (
            _format_disk_row("DISK", "RD/s", "WR/s", "RIOPS", "WIOPS", "SIZE", "USED", "FREE", "FULL", "LEVELS"),
            TextStyle.HEAD,
        )
        for disk in vm["disks"]:
            yield _format_disk(disk), TextStyle.PLAIN
        yield from _latency_lines(vm["disks"])
    yield from _guest_lines(vm.get("guest", {}))
    for family in families:
        yield from _family_lines(family, width)


def _summary_words(vm: OverviewVm) -> Iterator[str]:
    now, memory = vm.get("now", {}), vm.get("memory", {})
    if "cpu" in now:
        yield f"CPU {format_number(now['cpu'] * 100)} % of {vm.get('vcpus', 0)} vCPU"
    for name, text in (
        ("used_bytes", "memory used"),
        ("total_bytes", "memory"),
        ("resident_bytes", "host memory"),
    ):
        if name in memory:
            yield f"{text} {format_bytes(memory[name])}"


def _progress_lines(vm: OverviewVm) -> Iterator[str]:
    """Yield a line with progress and remaining time for the migration, and for each job."""
    migration = vm.get("migration")
    tasks = [("migration", migration)] if migration else []
    tasks += [(f"{job['type']} {job['job']}", job) for job in vm.get("jobs", ())]
    for name, task in tasks:
        share = task.get("progress_ratio")
        if "total_bytes" in task:
            share = task["done_bytes"] / task["total_bytes"]
        done = f"   {share * 100:.1f} %" if share is not None else ""
        remaining = f"   {format_seconds(task['remaining_seconds'])} left" if "remaining_seconds" in task else ""
        yield f"{name}   {task.get('status', '')}{done}{remaining}"


def _format_disk_row(name: str, *texts: str) -> str:
    *values, levels = texts
    return " ".join([fit_to_width(name, 20), *(fit_to_width(text, 7, right=True) for text in values), " " + levels])


def _format_disk(disk: Mapping[str, Any]) -> str:
    rates = (
        format_size(disk.get("read")),
        format_size(disk.get("write")),
        format_number(disk.get("reads")),
        format_number(disk.get("writes")),
    )
    space = (format_size(disk.get(name)) for name in ("size_bytes", "used_bytes", "free_bytes"))
    used = disk.get("used_bytes", 0)
    limit = [f"limit: {disk.get('pool') or disk['limited_by'].replace('_', ' ')}"] if "limited_by" in disk else []
    exceeded = (f"{text}{' exceeded' if used > at else ''}" for text, at in disk.get("levels", ()))
    levels = "  ".join([*limit, *exceeded])
    return _format_disk_row(disk["device"], *rates, *space, format_seconds(disk.get("time_to_full_seconds")), levels)


_HISTOGRAM_OWNERS = {"agent": "histogram set by the agent", "other": "histogram set by another client"}


def _latency_lines(disks: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, TextStyle]]:
    """Yield a heading, and a latency line for each disk and kind of operation; nothing without latency histograms."""
    rows = [(disk, kind, values) for disk in disks for kind, values in disk.get("latencies", {}).items()]
    if rows:
        yield "", TextStyle.PLAIN
        yield _format_disk_row("LATENCY", "P50", "P99", "P99.9", "OPS/s", "OPERATION"), TextStyle.HEAD
    for disk, kind, values in rows:
        times = (
            format_quantile(values[name], is_lower_bound=is_quantile_lower_bound(values, name))
            for name in ("p50", "p99", "p999")
        )
        rate = format_number(values["operations"] / values["seconds"])
        owner = _HISTOGRAM_OWNERS.get(disk.get("histogram_owner", ""), "")
        operation = f"{kind.replace('_', ' '):14}{owner}".rstrip()
        yield _format_disk_row(disk["device"], *times, rate, operation), TextStyle.PLAIN


def _guest_lines(guest: Mapping[str, Any]) -> Iterator[tuple[str, TextStyle]]:
    """Yield the guest agent's state, and the operating system, addresses and file systems that the guest agent reports."""
    if not guest:
        return
    words = [f"guest agent {guest['agent']}" if "agent" in guest else "", guest.get("reason", "")]
    words += ["file systems frozen" if guest.get("frozen") else ""]
    if "last_response" in guest and (guest.get("frozen") or guest.get("agent") != "up"):
        words += [f"values of {format_value('timestamp_seconds', guest['last_response'])}"]
    words += [guest.get(name, "") for name in ("hostname", "system", "kernel")]
    words += [" ".join(guest.get("addresses", ()))]
    yield "", TextStyle.PLAIN
    yield "   ".join(filter(None, words)), TextStyle.PLAIN
    filesystems = [f for f in guest.get("filesystems", ()) if filesystem_used_ratio(f) is not None]
    if filesystems:
        yield _format_filesystem_row("FILE SYSTEM", "SIZE", "USED", "FREE", "USED%", "DEVICE"), TextStyle.HEAD
        for filesystem in sorted(filesystems, key=lambda f: -(filesystem_used_ratio(f) or 0)):
            yield _format_filesystem(filesystem), TextStyle.PLAIN


def _format_filesystem(filesystem: Mapping[str, Any]) -> str:
    used, size = filesystem["used_bytes"], filesystem["size_bytes"]
    sizes = (format_size(value) for value in (size, used, size - used))
    device = f"{filesystem['device']} {filesystem['type']}"
    return _format_filesystem_row(filesystem["mountpoint"], *sizes, format_number(100 * used / size), device)


def _format_filesystem_row(name: str, *texts: str) -> str:
    *values, device = texts
    return " ".join([fit_to_width(name, 20), *(fit_to_width(text, 7, right=True) for text in values), " " + device])


def _family_lines(family: Mapping[str, Any], width: int) -> Iterator[tuple[str, TextStyle]]:
    """Yield a heading and the values for each subject of a family. A subject is a disk, for example. Leave out zero and empty values."""
    for subject in family["subjects"]:
        values = []
        for name, value in subject["values"].items():
            if value not in (0, "", None) and name not in HIDDEN_FIELDS and not isinstance(value, list | dict):
                rate = subject["rates"].get(name)
                values.append(f"{name}={format_value(name, value)}{f' ({_format_rate(name, rate)})' if rate else ''}")
        if values:
            yield "", TextStyle.PLAIN
            yield " ".join((family["name"], *subject["labels"])), TextStyle.HEAD
            for row in wrap_words(values, width):
                yield row, TextStyle.PLAIN


def _format_rate(name: str, rate: float) -> str:
    return f"{format_bytes(rate)}/s" if "bytes" in name else f"{format_number(rate)}/s"
