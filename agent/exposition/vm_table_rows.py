"""Computes a VM's row in the table of the web page. A row changes only if a displayed value changes. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from agent.exposition.vm_summary import (
    Polls,
    current_vm_resource_usage,
    memory_sizes,
    summarize_jobs,
    summarize_migration,
)
from agent.model.metrics.migration import INACTIVE_STATUSES

ROW_FIELDS = (
    *("status", "running", "vcpus", "cpu", "steal", "read", "write", "iops", "latency"),
    *("used", "total", "resident", "receive", "transmit"),
    *("disk", "disk_used", "disk_size", "full_in", "filesystem", "filesystem_used", "filesystem_size"),
    *("activity", "progress", "labels"),
)
"""The values of a row, in order. An unknown value is None.

`status`, `running`: QEMU's run state.
`cpu`: host CPUs that the vCPUs use.
`steal`: host CPUs that the vCPUs wait for.
`read`, `write`, `receive`, `transmit`: bytes per second.
`iops`: operations per second.
`latency`: mean duration of an operation in seconds.
`used`, `total`, `resident`: memory in bytes.
`disk`, `disk_used`, `disk_size`: the fullest thin disk, and its used bytes and limit in bytes.
`full_in`: the shortest time in seconds until a thin disk is full.
`filesystem`, `filesystem_used`, `filesystem_size`: the fullest file system in the guest, and its used bytes and size in bytes.
`activity`, `progress`: a migration or a job, and its progress from 0 to 1.
`labels`: labels that the VM manager set.
"""

DIGITS = 3
"""Number of significant digits of rates and sizes. The page shows the same number of digits."""

MAX_LABELS = 16
"""Maximum number of a VM's labels in its row."""


def round_significant(value: float | None, digits: int = DIGITS) -> float | None:
    """Return a value with `digits` significant digits."""
    if value is None:
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1 << 53 else short


def vm_row(polls: Polls) -> list[Any]:
    """Return a VM's row: the values of `ROW_FIELDS`, in order."""
    run = _vm_level_values(polls, "runstate")
    now, sizes = current_vm_resource_usage(polls), memory_sizes(polls)
    activity, progress = _migration_or_job(polls)
    return [
        run.get("status"),
        run.get("running"),
        len(polls["vcpu"].current) if "vcpu" in polls else None,
        *(round_significant(now.get(name)) for name in ("cpu", "steal", "read", "write")),
        round_significant(now.get("reads", 0.0) + now.get("writes", 0.0))
        if "reads" in now or "writes" in now
        else None,
        round_significant(now.get("latency")),
        *(round_significant(sizes.get(f"{name}_bytes")) for name in ("used", "total", "resident")),
        *(round_significant(now.get(name)) for name in ("receive", "transmit")),
        *_fullest_disk(polls),
        *_fullest_filesystem(polls),
        activity,
        progress,
        _labels(polls),
    ]


def _vm_level_values(polls: Polls, family: str) -> Mapping[str, Any]:
    return polls[family].current.get((), {}) if family in polls else {}


def _fullest_disk(polls: Polls) -> Sequence[Any]:
    """Return the fullest thin disk, its used bytes, its limit, and the shortest time to full of all disks."""
    spaces = polls["block_space"].current if "block_space" in polls else {}
    sized = [
        (values["used_bytes"] / values["limit_bytes"], labels[0], values["used_bytes"], values["limit_bytes"])
        for labels, values in spaces.items()
        if values.get("limit_bytes") and "used_bytes" in values
    ]
    times = [values["time_to_full_seconds"] for values in spaces.values() if "time_to_full_seconds" in values]
    full_in = round_significant(min(times), 2) if times else None
    if not sized:
        return None, None, None, full_in
    _, device, used, limit = max(sized)
    return device, round_significant(used, DIGITS + 1), limit, full_in


def _fullest_filesystem(polls: Polls) -> Sequence[Any]:
    filesystems = polls["guest_filesystem"].current if "guest_filesystem" in polls else {}
    sized = [
        (values["used_bytes"] / values["size_bytes"], labels[0], values["used_bytes"], values["size_bytes"])
        for labels, values in filesystems.items()
        if values.get("size_bytes") and "used_bytes" in values
    ]
    if not sized:
        return None, None, None
    _, mountpoint, used, size = max(sized)
    return mountpoint, round_significant(used, DIGITS + 1), size


def _migration_or_job(polls: Polls) -> tuple[str | None, float | None]:
    """Return the activity and the progress from 0 to 1 of the running migration. Without a migration, return those of the first job."""
    migration = summarize_migration(polls) if "migration" in polls else None
    if migration is not None and migration["status"] not in INACTIVE_STATUSES:
        share = migration["done_bytes"] / migration["total_bytes"] if "total_bytes" in migration else None
        return f"migration {migration['status']}", round_significant(share, 2)
    jobs = summarize_jobs(polls) if "job" in polls else []
    if not jobs:
        return None, None
    more = f" +{len(jobs) - 1}" if len(jobs) > 1 else ""
    return f"{jobs[0]['type']} {jobs[0]['job']}{more}", round_significant(jobs[0].get("progress_ratio"), 2)


def _labels(polls: Polls) -> Mapping[str, str] | None:
    labels = _vm_level_values(polls, "identity").get("labels")
    return dict(list(labels.items())[:MAX_LABELS]) if isinstance(labels, dict) and labels else None
