"""Rules for alerts of events and run states: the condition, the severity, and the events that resolve the alert."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.model.record import Severity

Data = Mapping[str, Any]

HOUR = 3600.0
CRITICAL, ERROR, WARNING = Severity.CRITICAL, Severity.ERROR, Severity.WARNING


@dataclass(frozen=True, slots=True)
class EventRule:
    """A rule that fires an alert when an event arrives.

    Attributes:
        event: QEMU's name of the event.
        alert: The alert's name.
        severity: The alert's severity.
        help: Text of the alert for the operator, one sentence.
        when: Whether an event with this data fires the alert.
        status: The run state in which the event stops the guest. Such an alert is resolved only when the guest runs again. Empty if the
            guest continues without help.
        resolved_by: Events that resolve the alert.
        seconds: How long the alert fires if no event resolves it; None means as long as the process exists.
        copies: Fields of the event that are copied into the alert's record.
    """

    event: str
    alert: str
    severity: Severity
    help: str
    when: Callable[[Data], bool] = lambda _: True
    status: str = ""
    resolved_by: frozenset[str] = frozenset()
    seconds: float | None = None
    copies: tuple[str, ...] = ()


def _is_full(data: Data) -> bool:
    return data.get("nospace") is True and data.get("action") == "stop"


def _failed(data: Data) -> bool:
    return data.get("nospace") is not True and data.get("action") == "stop"


EVENT_RULES = (
    EventRule(
        "GUEST_PANICKED",
        "guest_panicked",
        CRITICAL,
        "The guest's kernel panicked.",
        when=lambda data: data.get("action") != "run",
        status="guest-panicked",
    ),
    EventRule(
        "GUEST_PANICKED",
        "guest_panicked",
        CRITICAL,
        "The guest's kernel panicked.",
        when=lambda data: data.get("action") == "run",
        resolved_by=frozenset({"RESET"}),
    ),
    EventRule(
        "GUEST_CRASHLOADED",
        "guest_crashed",
        ERROR,
        "The guest crashed and loaded its crash kernel.",
        resolved_by=frozenset({"RESET"}),
        seconds=HOUR,
    ),
    EventRule(
        "BLOCK_IO_ERROR",
        "disk_full",
        CRITICAL,
        "The guest is paused because a write found no space.",
        when=_is_full,
        status="io-error",
    ),
    EventRule(
        "BLOCK_IO_ERROR",
        "io_error_stop",
        CRITICAL,
        "The guest is paused because a disk request failed.",
        when=_failed,
        status="io-error",
    ),
    EventRule("BLOCK_IMAGE_CORRUPTED", "image_corrupted", CRITICAL, "The metadata of a disk image is corrupt."),
    EventRule(
        "WATCHDOG",
        "watchdog_stop",
        CRITICAL,
        "The guest is paused because its watchdog expired.",
        when=lambda data: data.get("action") == "pause",
        status="watchdog",
    ),
    EventRule(
        "WATCHDOG",
        "watchdog",
        ERROR,
        "The guest's watchdog expired.",
        when=lambda data: data.get("action") != "pause",
        seconds=HOUR,
    ),
    EventRule("MEMORY_FAILURE", "memory_failure", ERROR, "The host's memory failed under the VM.", seconds=HOUR),
    EventRule("QUORUM_FAILURE", "quorum_failure", CRITICAL, "The disks of a quorum do not agree.", seconds=HOUR),
    EventRule(
        "BLOCK_JOB_COMPLETED",
        "job_failed",
        ERROR,
        "A block job failed.",
        when=lambda data: bool(data.get("error")),
        seconds=HOUR,
        copies=("type", "error"),
    ),
)
"""`nospace` is only present with `action: stop` (QEMU 2.2 to 11.1)."""


@dataclass(frozen=True, slots=True)
class RunStateRule:
    """A rule that fires an alert when polls show the guest in a run state, whether or not an event arrived.

    Attributes:
        status: QEMU's RunState.
        alert: The alert's name.
        severity: The alert's severity.
        help: Text of the alert for the operator, one sentence.
        seconds: How long the guest has to be in this state.
        after_reset: Whether the rule applies only after the guest was reset or has run, because each VM also starts in this state.
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
)

POSTCOPY_PAUSED = "postcopy-paused"
POSTCOPY_RECOVERING = frozenset({"postcopy-recover-setup", "postcopy-recover"})
POSTCOPY_HELP = "The postcopy migration lost its connection, and the guest waits for memory."

UUID_CLASH_HELP = "Several running VMs have this UUID; their records and metrics are mixed."

ALERTS: Mapping[str, str] = {
    **{rule.alert: rule.help for rule in (*EVENT_RULES, *RUN_STATE_RULES)},
    "postcopy_paused": POSTCOPY_HELP,
    "uuid_clash": UUID_CLASH_HELP,
}
"""Text of each alert except `write_threshold`, by name."""
