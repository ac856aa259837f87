"""Table of known causes of slow and hung VMs, the most likely cause first. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from agent.exposition.explain import cpu_and_memory, disks, migrations_and_jobs, neighbours, stopped_vms
from agent.exposition.explain.evidence import CauseFinding, Evidence
from agent.model.record import sanitize

MAX_FINDINGS = 8
"""Maximum number of findings of one cause. A VM can have any number of disks and jobs."""
MAX_SENTENCE = 500
"""Maximum length of a sentence in characters. QEMU chooses the names in the sentence."""

NO_CAUSE_TEXT = "Nothing stands out: no known cause explains a slow or stopped guest."


@dataclass(frozen=True, slots=True)
class Cause:
    """One known cause of slow or hung VMs. The order in `CAUSES` is the rank.

    Attributes:
        name: the cause's name.
        find: yields a finding for each disk, job or other part of the VM to which the cause applies.
        alerts: names of the alerts that report the same cause.
    """

    name: str
    find: Callable[[Evidence], Iterator[CauseFinding]]
    alerts: frozenset[str] = frozenset()


def _alerts(*names: str) -> frozenset[str]:
    return frozenset(names)


_STOPPED = _alerts(
    *("disk_full", "io_error_stop", "internal_error", "guest_panicked", "watchdog_stop", "reset_stopped"),
    *("shutdown_stuck", "guest_suspended", "save_stuck", "restore_stuck"),
)

CAUSES = (
    Cause("process_stopped", stopped_vms.find_process_stopped),
    Cause("storage_unresponsive", stopped_vms.find_storage_unresponsive, _alerts("pool_unresponsive")),
    Cause("monitor_stalled", stopped_vms.find_monitor_stalled),
    Cause("not_running", stopped_vms.find_not_running, _STOPPED),
    Cause("io_stalled", disks.find_io_stalled, _alerts("io_stalled")),
    Cause("guest_frozen", stopped_vms.find_guest_filesystems_frozen, _alerts("guest_frozen")),
    Cause("pool_full", stopped_vms.find_pool_full, _alerts("pool_filling")),
    Cause("out_of_memory", cpu_and_memory.find_out_of_memory, _alerts("guest_oom", "cgroup_oom")),
    Cause("guest_filesystem_full", migrations_and_jobs.find_guest_filesystem_full, _alerts("guest_filesystem_space")),
    Cause("cpu_quota", cpu_and_memory.find_cpu_quota),
    Cause("disk_throttled", disks.find_disk_throttled),
    Cause("swapped", cpu_and_memory.find_swapped),
    Cause("memory_limited", cpu_and_memory.find_memory_limited),
    Cause("guest_memory_low", cpu_and_memory.find_guest_memory_low, _alerts("balloon_pressure")),
    Cause("guest_swapping", cpu_and_memory.find_guest_swapping),
    Cause("dirty_limited", migrations_and_jobs.find_dirty_limited),
    Cause(
        "migration_running",
        migrations_and_jobs.find_migration_running,
        _alerts("postcopy_paused", "postcopy_recovery_failed"),
    ),
    Cause("neighbours", neighbours.find_noisy_neighbours),
    Cause("cpu_waiting", cpu_and_memory.find_cpu_waiting),
    Cause("job_running", migrations_and_jobs.find_job_running),
    Cause("disk_slow", disks.find_disk_slow),
    Cause("disk_queue", disks.find_disk_queue),
    Cause("thread_busy", cpu_and_memory.find_thread_busy),
    Cause("dump_running", migrations_and_jobs.find_dump_or_measurement_running),
    Cause("guest_cpu_busy", cpu_and_memory.find_guest_cpu_busy),
)
"""All causes, the most likely first. Causes that stop a guest come before causes that slow a guest.

A limit, such as a CPU quota, comes before its effects, such as vCPUs that wait.
"""

OTHER_ALERT = "alert"
"""Name of the cause for a firing alert that no cause in `CAUSES` explains."""


def find_causes(evidence: Evidence) -> list[dict[str, Any]]:
    """Return the causes that make a VM slow or hung, the most likely cause first; empty if no cause applies.

    Args:
        evidence: what is known about the VM.

    Returns:
        For each finding: `cause`, `subject`, `sentence` and `figures`.
    """
    found = [(cause, finding) for cause in CAUSES for finding in list(cause.find(evidence))[:MAX_FINDINGS]]
    covered = {alert for cause, _ in found for alert in cause.alerts}
    rows = [(cause.name, finding) for cause, finding in found]
    rows += [
        (OTHER_ALERT, finding)
        for finding in list(migrations_and_jobs.unexplained_alerts(evidence, covered))[:MAX_FINDINGS]
    ]
    return [
        {
            "cause": name,
            "subject": sanitize(finding.subject),
            "sentence": sanitize(finding.sentence, MAX_SENTENCE),
            "figures": dict(finding.figures),
        }
        for name, finding in rows
    ]
