"""Alert rules on events and run states that report failures of a guest, a disk, the host's memory or a job.

The package `rules` has the alert rules on samples and on other events.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.model.record import Severity

EventData = Mapping[str, Any]
"""The `data` member of a QMP event."""

HOUR = 3600.0
"""An hour in seconds."""
CRITICAL, ERROR, WARNING = Severity.CRITICAL, Severity.ERROR, Severity.WARNING


@dataclass(frozen=True, slots=True)
class FailureEventRule:
    """An alert rule on an event that reports a failure. The alert fires when the event arrives.

    Attributes:
        event: The event's name in QEMU.
        alert: The alert's name.
        severity: The alert's severity.
        help: Text of the alert for the operator, one sentence.
        when: Returns whether an event with this data fires the alert.
        status: The guest's run state after the event has stopped the guest; empty if the event does not stop the guest. The alert of a
            stopped guest is resolved only when the guest runs again.
        resolved_by: Names of the events that resolve the alert.
        resolve_after_seconds: Maximum time that the alert fires, in seconds. None for no maximum.
        copied_fields: Names of the fields of the event to copy into the alert's record.
    """

    event: str
    alert: str
    severity: Severity
    help: str
    when: Callable[[EventData], bool] = lambda _: True
    status: str = ""
    resolved_by: frozenset[str] = frozenset()
    resolve_after_seconds: float | None = None
    copied_fields: tuple[str, ...] = ()


def _stopped_without_space(data: EventData) -> bool:
    return data.get("nospace") is True and data.get("action") == "stop"


def _stopped_by_other_error(data: EventData) -> bool:
    return data.get("nospace") is not True and data.get("action") == "stop"


FAILURE_EVENT_RULES = (
    FailureEventRule(
        "GUEST_PANICKED",
        "guest_panicked",
        CRITICAL,
        "The guest's kernel panicked.",
        when=lambda data: data.get("action") != "run",
        status="guest-panicked",
    ),
    FailureEventRule(
        "GUEST_PANICKED",
        "guest_panicked",
        CRITICAL,
        "The guest's kernel panicked.",
        when=lambda data: data.get("action") == "run",
        resolved_by=frozenset({"RESET"}),
    ),
    FailureEventRule(
        "GUEST_CRASHLOADED",
        "guest_crashed",
        ERROR,
        "The guest crashed and loaded its crash kernel.",
        resolved_by=frozenset({"RESET"}),
        resolve_after_seconds=HOUR,
    ),
    FailureEventRule(
        "BLOCK_IO_ERROR",
        "disk_full",
        CRITICAL,
        "The guest is paused because a write found no space.",
        when=_stopped_without_space,
        status="io-error",
    ),
    FailureEventRule(
        "BLOCK_IO_ERROR",
        "io_error_stop",
        CRITICAL,
        "The guest is paused because a disk request failed.",
        when=_stopped_by_other_error,
        status="io-error",
    ),
    FailureEventRule("BLOCK_IMAGE_CORRUPTED", "image_corrupted", CRITICAL, "The metadata of a disk image is corrupt."),
    FailureEventRule(
        "WATCHDOG",
        "watchdog_stop",
        CRITICAL,
        "The guest is paused because its watchdog expired.",
        when=lambda data: data.get("action") == "pause",
        status="watchdog",
    ),
    FailureEventRule(
        "WATCHDOG",
        "watchdog",
        ERROR,
        "The guest's watchdog expired.",
        when=lambda data: data.get("action") != "pause",
        resolve_after_seconds=HOUR,
    ),
    FailureEventRule(
        "MEMORY_FAILURE",
        "memory_failure",
        ERROR,
        "The host reported a hardware error in memory that the VM uses.",
        resolve_after_seconds=HOUR,
    ),
    FailureEventRule(
        "QUORUM_FAILURE", "quorum_failure", CRITICAL, "The disks of a quorum do not agree.", resolve_after_seconds=HOUR
    ),
    FailureEventRule(
        "BLOCK_JOB_COMPLETED",
        "job_failed",
        ERROR,
        "A block job failed.",
        when=lambda data: bool(data.get("error")),
        resolve_after_seconds=HOUR,
        copied_fields=("type", "error"),
    ),
)
"""The alert rules on events that report failures. In BLOCK_IO_ERROR, `nospace` is only present with `action: stop` (QEMU 2.2 to 11.1)."""


@dataclass(frozen=True, slots=True)
class RunStateRule:
    """An alert rule on a run state. The alert fires when polls show the guest in this run state, even if QEMU's event was lost.

    Attributes:
        status: The run state, as QEMU's enumeration `RunState` names it.
        alert: The alert's name.
        severity: The alert's severity.
        help: Text of the alert for the operator, one sentence.
        seconds: How long the guest has to be in the run state before the alert fires, in seconds.
        after_reset: Whether the rule applies only to a guest that has run or was reset. A new guest that has never run is in the same run
            state.
    """

    status: str
    alert: str
    severity: Severity
    help: str
    seconds: float = 0.0
    after_reset: bool = False


RUN_STATE_RULES = (
    RunStateRule("internal-error", "internal_error", CRITICAL, "The guest is paused because of an internal error."),
    RunStateRule("guest-panicked", "guest_panicked", CRITICAL, "The guest's kernel panicked."),
    RunStateRule("watchdog", "watchdog_stop", CRITICAL, "The guest is paused because its watchdog expired."),
    RunStateRule("io-error", "io_error_stop", CRITICAL, "The guest is paused because a disk request failed."),
    RunStateRule(
        "prelaunch",
        "reset_stopped",
        ERROR,
        "The guest was reset while it was stopped, and has not run since.",
        seconds=60.0,
        after_reset=True,
    ),
    RunStateRule(
        "shutdown", "shutdown_stuck", WARNING, "The guest has shut down, but its QEMU still runs.", seconds=300.0
    ),
    RunStateRule("suspended", "guest_suspended", WARNING, "The guest has been suspended for an hour.", seconds=HOUR),
    RunStateRule(
        "save-vm",
        "save_stuck",
        WARNING,
        "The guest has been stopped for ten minutes while its state is saved.",
        seconds=600.0,
    ),
    RunStateRule(
        "restore-vm",
        "restore_stuck",
        WARNING,
        "The guest has been stopped for ten minutes while its state is restored.",
        seconds=600.0,
    ),
)

POSTCOPY_PAUSED = "postcopy-paused"
POSTCOPY_RECOVERING = frozenset({"postcopy-recover-setup", "postcopy-recover"})
"""Statuses of an attempt to recover a paused postcopy migration. QEMU enters these statuses only from `postcopy-paused`."""
MIGRATION_FAILED = frozenset({"failing", "failed", "cancelling", "cancelled"})
"""Statuses of a migration that has failed or was cancelled, or that is about to fail or to be cancelled."""
POSTCOPY_HELP = "The postcopy migration lost its connection, and the guest waits for memory."
RECOVERY_FAILED_HELP = "The recovery of a postcopy migration failed, and the guest still waits for memory."

UUID_CLASH_HELP = "Several running VMs have this UUID; their records and metrics are mixed."

GUEST_AGENT_LOST_SECONDS = 300.0
"""How long a guest agent may be lost before the alert fires. A reboot of the guest takes less time."""
GUEST_AGENT_LOST_HELP = "The guest agent has closed its channel or does not respond, and the guest still runs."
GUEST_FILESYSTEM_HELP = "A file system in the guest exceeded an alert level."
GUEST_FROZEN_HELP = "The guest's file systems have been frozen for too long, and every write in the guest waits."
GUEST_CLOCK_HELP = "The guest's clock differs from the host's."
