"""The built-in alert rules on samples. The module `rule_types` describes the fields of a rule."""

from agent.alerts.rules.comparison import FieldComparison, Operator
from agent.alerts.rules.derived_samples import BALLOON_MEMORY, DISK_CHAIN
from agent.alerts.rules.rule_types import LimitUnit, Runbook, SampleAlertRule
from agent.model.metrics.block_layers import BLOCK_BITMAP, BLOCK_LAYER
from agent.model.metrics.block_stall import BLOCK_STALL
from agent.model.metrics.jobs import JOB
from agent.model.metrics.memory import GUEST_MEMORY
from agent.model.metrics.migration import MIGRATION
from agent.model.metrics.vm_process_and_interfaces import CGROUP
from agent.model.record import Severity

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0

_EQUAL, _UNEQUAL, _ABOVE, _BELOW = Operator.EQUAL, Operator.UNEQUAL, Operator.ABOVE, Operator.BELOW


def _status_is(status: str) -> tuple[FieldComparison, ...]:
    return (FieldComparison(("status",), _EQUAL, status),)


_JOBS = (
    SampleAlertRule(
        alert="job_stuck",
        family=JOB,
        where=_status_is("running"),
        field="progress_per_second",
        operator=_EQUAL,
        value=0.0,
        seconds=10 * MINUTE,
        severity=Severity.WARNING,
        copied_fields=("progress_ratio", "speed_limit_bytes_per_second"),
        help="A job runs but has made no progress for some time.",
        runbook=Runbook(
            "The target or the source of the job does not answer, or a speed limit is far too low.",
            "Check the storage of both ends. Raise the limit (`block-job-set-speed`), or cancel the job with its manager.",
        ),
    ),
    SampleAlertRule(
        alert="job_paused",
        family=JOB,
        field="status",
        operator=_EQUAL,
        value="paused",
        seconds=HOUR,
        severity=Severity.WARNING,
        copied_fields=("progress_ratio", "io_status"),
        help="A job has been paused for a long time.",
        runbook=Runbook(
            "A client paused the job and did not resume it, or the job stopped at an I/O error.",
            "Resume the job with its manager (`block-job-resume`), or cancel it.",
        ),
    ),
    SampleAlertRule(
        alert="job_io_error",
        family=JOB,
        field="io_status",
        operator=_UNEQUAL,
        value="ok",
        severity=Severity.ERROR,
        copied_fields=("status", "progress_ratio"),
        help="A job stopped at an I/O error and waits.",
        runbook=Runbook(
            "The target is full (`nospace`) or the storage failed (`failed`), and the job's error policy is `stop` or `enospc`.",
            "Repair or extend the storage, then resume the job with its manager; or cancel it.",
        ),
    ),
    SampleAlertRule(
        alert="job_unfinished",
        family=JOB,
        field="status",
        operator=_EQUAL,
        value="ready",
        seconds=12 * HOUR,
        severity=Severity.WARNING,
        help="A mirror or an active commit has been ready for a long time, and no client completes it.",
        runbook=Runbook(
            "The manager that started the job hangs, or has lost track of it. Until the job ends, QEMU writes the guest's data twice.",
            "Complete the job with its manager (`virsh blockjob --pivot`, `job-complete`), or cancel it. "
            "Turn this alert off for disks with a permanent mirror.",
        ),
    ),
    SampleAlertRule(
        alert="job_pending",
        family=JOB,
        field="status",
        operator=_EQUAL,
        value="pending",
        seconds=HOUR,
        severity=Severity.WARNING,
        help="A job waits to be finalized, and no client finalizes it.",
        runbook=Runbook(
            "The manager that started the job hangs, or has lost track of it.",
            "Finalize the job with its manager (`job-finalize`).",
        ),
    ),
    SampleAlertRule(
        alert="job_not_dismissed",
        family=JOB,
        field="status",
        operator=_EQUAL,
        value="concluded",
        seconds=HOUR,
        severity=Severity.WARNING,
        copied_fields=("error",),
        help="A job has ended, and no client dismisses it.",
        runbook=Runbook(
            "The manager that started the job hangs, or has lost track of it. The job's id stays in use, so the next job may fail.",
            "Read the job's `error`, then dismiss it with its manager (`job-dismiss`).",
        ),
    ),
)

_DISKS = (
    SampleAlertRule(
        alert="io_stalled",
        family=BLOCK_STALL,
        field="seconds",
        operator=_ABOVE,
        limit=30.0,
        unit=LimitUnit.SECONDS,
        unless_pool="pool_unresponsive",
        severity=Severity.CRITICAL,
        copied_fields=("signs", "since_timestamp_seconds", "waiting_threads", "requests_in_flight"),
        help="A disk completes no request although requests are in flight, while QEMU answers its monitor.",
        runbook=Runbook(
            "The storage under the disk hangs: a path, a server or a device that does not answer. If the agent can check that storage, "
            "the alert `pool_unresponsive` names it.",
            "Repair the storage. Until then, QEMU may hang at each command that accesses the disk, so the agent sends no such command. "
            "Do not kill QEMU before its requests end: the process cannot exit.",
        ),
    ),
    SampleAlertRule(
        alert="image_corrupted",
        family=BLOCK_LAYER,
        field="corrupt",
        operator=_EQUAL,
        value=True,
        where=(FieldComparison(("layer",), _EQUAL, "format"),),
        severity=Severity.CRITICAL,
        resolved_when_false=False,
        copied_fields=("path",),
        help="The metadata of a disk image is corrupt.",
    ),
    SampleAlertRule(
        alert="bitmap_inconsistent",
        family=BLOCK_BITMAP,
        field="inconsistent",
        operator=_EQUAL,
        value=True,
        distinguishing_label="bitmap",
        severity=Severity.WARNING,
        help="A dirty bitmap is unusable, so the next backup with this bitmap fails or copies the whole disk.",
        runbook=Runbook(
            "QEMU was killed or crashed before it could store the bitmap in the image.",
            "Remove the bitmap (`block-dirty-bitmap-remove`), and start a full backup that creates a new one.",
        ),
    ),
    SampleAlertRule(
        alert="chain_deep",
        family=DISK_CHAIN,
        field="depth",
        operator=_ABOVE,
        limit=16.0,
        severity=Severity.WARNING,
        help="A disk has a long chain of backing images.",
        runbook=Runbook(
            "A backup or a snapshot tool creates snapshots and does not remove them.",
            "Each read of an unwritten block searches the whole chain. Merge images with the manager (`virsh blockcommit`), "
            "and repair the tool.",
        ),
    ),
    SampleAlertRule(
        alert="snapshot_old",
        family=DISK_CHAIN,
        where=(FieldComparison(("snapshots",), _ABOVE, 0.0),),
        field="snapshot_age_seconds",
        operator=_ABOVE,
        limit=30 * DAY,
        unit=LimitUnit.SECONDS,
        severity=Severity.WARNING,
        copied_fields=("snapshot_kind",),
        help="A disk has an old snapshot.",
        runbook=Runbook(
            "A snapshot was forgotten. The age of an internal snapshot counts from its creation, and the age of an external snapshot from "
            "when the agent first saw it.",
            "A snapshot is no backup, and it grows with each write. Delete it, or merge it with the manager (`virsh blockcommit`).",
        ),
    ),
)

_MEMORY = (
    SampleAlertRule(
        alert="guest_oom",
        family=GUEST_MEMORY,
        field="oom_kills_total",
        operator=Operator.INCREASES,
        resolve_after_seconds=HOUR,
        severity=Severity.ERROR,
        copied_fields=("available_bytes", "total_bytes"),
        help="The guest's kernel killed a process because the guest has too little memory.",
        runbook=Runbook(
            "A program in the guest uses too much memory, or the balloon holds too much.",
            "Read the guest's kernel log. Deflate the balloon (`virsh setmem --live`), or give the guest more memory.",
        ),
    ),
    SampleAlertRule(
        alert="cgroup_oom",
        family=CGROUP,
        field="oom_kills_total",
        operator=Operator.INCREASES,
        resolve_after_seconds=HOUR,
        severity=Severity.ERROR,
        copied_fields=("path", "memory_bytes", "memory_limit_bytes"),
        help="The host's kernel killed a process in the VM's cgroup, because the cgroup reached its memory limit.",
        runbook=Runbook(
            "The memory limit leaves too little room for QEMU itself, its page cache, or a helper such as swtpm or virtiofsd.",
            "Read the host's kernel log for the killed process. Raise the limit (`virsh memtune --hard-limit`). "
            "If QEMU was killed, the record `qemu.vm.gone` has no `shutdown_reason`. The agent then reads the cgroup once more. "
            "If the manager has removed the cgroup before that, the alert does not fire.",
        ),
    ),
    SampleAlertRule(
        alert="balloon_pressure",
        family=BALLOON_MEMORY,
        where=(FieldComparison(("held_bytes",), _ABOVE, 0.0),),
        field="available_ratio",
        operator=_BELOW,
        limit=0.05,
        unit=LimitUnit.RATIO,
        hysteresis=0.02,
        seconds=5 * MINUTE,
        severity=Severity.WARNING,
        copied_fields=("held_bytes",),
        help="The guest has little memory left while its balloon holds memory.",
        runbook=Runbook(
            "A client inflated the balloon, for example a memory overcommitment manager such as oVirt's MoM.",
            "Deflate the balloon (`virsh setmem --live`), or find out who inflated it.",
        ),
    ),
)

_MIGRATION = (
    SampleAlertRule(
        alert="migration_failed",
        family=MIGRATION,
        field="status",
        operator=_EQUAL,
        value="failed",
        unless="postcopy_recovery_failed",
        severity=Severity.ERROR,
        copied_fields=("error",),
        help="The last migration of the VM failed.",
        runbook=Runbook(
            "The connection to the destination was lost, or the destination could not load the VM's state. `error` has QEMU's reason.",
            "The VM continues to run on its host. Read the log of the destination's QEMU, then migrate again. "
            "The alert is resolved by the next migration, or when the VM ends.",
        ),
    ),
)

SAMPLE_ALERT_RULES = (*_JOBS, *_DISKS, *_MEMORY, *_MIGRATION)
"""All built-in rules on samples."""
