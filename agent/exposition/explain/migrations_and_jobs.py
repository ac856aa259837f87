"""Finds migrations, jobs and dumps that slow a VM, full file systems in the guest, and alerts that no other finding explains. Pure."""

from collections.abc import Collection, Iterator
from typing import Any

from agent.common.durations_and_sizes import format_bytes
from agent.exposition.explain.evidence import CauseFinding, Evidence, finite_number_or_none
from agent.exposition.explain.text_format import format_duration, format_percent
from agent.model.metrics.guest import GUEST_FILESYSTEM
from agent.model.metrics.jobs import JOB
from agent.model.metrics.memory import DIRTY_RATE, DUMP, VCPU_DIRTY
from agent.model.metrics.migration import INACTIVE_STATUSES, MIGRATION
from agent.model.record import Severity

FULL_FILESYSTEM = 0.98
"""A file system in the guest counts as full if at least this share of its bytes is used."""
_QUIET_JOBS = frozenset({"concluded", "null", "paused", "standby", "undefined", "created"})
"""Statuses of a job that does no I/O."""
_SERIOUS = frozenset({Severity.ERROR.label, Severity.CRITICAL.label})
"""Severities of alerts that explain a VM's state by themselves."""


def find_guest_filesystem_full(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find full file systems in the guest."""
    for (mountpoint, _device, _type), values in evidence.latest_values_by_subject(GUEST_FILESYSTEM).items():
        used, size = finite_number_or_none(values, "used_bytes"), finite_number_or_none(values, "size_bytes")
        if used is None or not size or used < FULL_FILESYSTEM * size:
            continue
        age = max(0.0, evidence.now - evidence.view.guest_response_ns / 1e9)
        sentence = (
            f"The file system {mountpoint} in the guest is full: {format_bytes(used)} of {format_bytes(size)} are used "
            f"({format_percent(used / size)}), as of {format_duration(age)} ago."
        )
        yield CauseFinding(mountpoint, sentence, {"used_bytes": used, "size_bytes": size, "age_seconds": age})


def find_migration_running(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find an active migration. Report its progress and its effects on the guest."""
    values = evidence.whole_vm_values(MIGRATION)
    status = values.get("status", "none")
    if status in INACTIVE_STATUSES:
        return
    figures: dict[str, Any] = {"status": status}
    parts = [f"A migration of the VM is under way (`{status}`)"]
    remaining, total = finite_number_or_none(values, "ram_remaining_bytes"), finite_number_or_none(values, "ram_bytes")
    if remaining is not None and total:
        figures |= {"remaining_bytes": remaining, "ram_bytes": total}
        parts.append(f"{format_bytes(remaining)} of {format_bytes(total)} are left")
    pages, page = (
        finite_number_or_none(values, "ram_dirty_pages_per_second"),
        finite_number_or_none(values, "ram_page_bytes"),
    )
    if pages and page:
        figures["dirty_bytes_per_second"] = pages * page
        parts.append(f"the guest dirties {format_bytes(pages * page)}/s")
    if throughput := finite_number_or_none(values, "throughput_bytes_per_second"):
        figures["throughput_bytes_per_second"] = throughput
        parts.append(f"{format_bytes(throughput)}/s are sent")
    if slowed := finite_number_or_none(values, "cpu_throttle_ratio"):
        figures["cpu_throttle_ratio"] = slowed
        parts.append(f"QEMU slows the vCPUs by {format_percent(slowed)} so that the migration ends")
    if status.startswith("postcopy"):
        parts.append("the guest waits for each page that it needs and that has not arrived")
    yield CauseFinding("", f"{parts[0]}{': ' if parts[1:] else ''}{', '.join(parts[1:])}.", figures)


def find_dirty_limited(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find vCPUs that QEMU slows down to limit their dirty rate."""
    for (vcpu,), values in evidence.latest_values_by_subject(VCPU_DIRTY).items():
        limit, current = (finite_number_or_none(values, f"{name}_bytes_per_second") for name in ("limit", "current"))
        if limit and current is not None and current >= 0.9 * limit:
            sentence = f"QEMU slows vCPU {vcpu}: it dirties {format_bytes(current)}/s, and its limit is {format_bytes(limit)}/s."
            yield CauseFinding(vcpu, sentence, {"current_bytes_per_second": current, "limit_bytes_per_second": limit})


def find_job_running(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find jobs that read or write the VM's disks."""
    for (job, kind), values in evidence.latest_values_by_subject(JOB).items():
        status = values.get("status", "running")
        if status in _QUIET_JOBS or values.get("paused") is True:
            continue
        figures: dict[str, Any] = {"type": kind, "status": status}
        parts = [f"A {kind} job ({job}) is {status}"]
        if (done := finite_number_or_none(values, "progress_ratio")) is not None:
            figures["progress_ratio"] = done
            parts.append(f"{format_percent(done)} done")
        if (speed := finite_number_or_none(values, "progress_per_second")) is not None and kind in _BYTES_JOBS:
            figures["progress_per_second"] = speed
            parts.append(f"{format_bytes(speed)}/s")
        yield CauseFinding(job, f"{', '.join(parts)}: it shares the storage with the guest.", figures)


_BYTES_JOBS = frozenset({"backup", "commit", "mirror", "stream"})
"""Types of jobs whose progress is in bytes."""


def find_dump_or_measurement_running(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find a running dump of the guest's memory, or a running measurement of its dirty rate."""
    if evidence.whole_vm_values(DUMP).get("status") == "active":
        written, size = (evidence.whole_vm_number(DUMP, name) for name in ("written_bytes", "size_bytes"))
        done = f": {format_bytes(written)} of {format_bytes(size)} are written" if written is not None and size else ""
        figures = {"written_bytes": written, "size_bytes": size}
        known = {name: number for name, number in figures.items() if number is not None}
        yield CauseFinding("", f"A client dumps the guest's memory{done}.", known)
    if evidence.whole_vm_values(DIRTY_RATE).get("status") == "measuring":
        yield CauseFinding("", "A client measures the guest's dirty rate, which makes each first write slower.", {})


def unexplained_alerts(evidence: Evidence, covered: Collection[str]) -> Iterator[CauseFinding]:
    """Find firing alerts of severity error or critical that no other cause explains.

    Args:
        evidence: what is known about the VM.
        covered: names of the alerts that other causes explain.
    """
    for alert in evidence.alerts:
        if alert["severity"] in _SERIOUS and alert["alert"] not in covered:
            seconds = max(0.0, evidence.now - alert["since"])
            subject = f" of {alert['subject']}" if alert["subject"] else ""
            sentence = f"The alert {alert['alert']}{subject} has been firing for {format_duration(seconds)}."
            yield CauseFinding(alert["subject"], sentence, {"alert": alert["alert"], "seconds": seconds})
