"""Rules that make alerts of events: the event, the severity, and what resolves the alert."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.model.record import Severity

Data = Mapping[str, Any]

HOUR = 3600.0
RESUMED = frozenset({"RESUME", "RESET"})


@dataclass(frozen=True, slots=True)
class EventRule:
    """One rule.

    Attributes:
        event: QEMU's name of the event that fires the alert.
        alert: The alert's name.
        severity: The alert's severity.
        help: The alert's text for people, one sentence.
        when: Whether an event with this data fires the alert.
        resolved_by: Events that resolve the alert.
        status: The run state that the event leaves the VM in. It reveals an event that was missed. Empty where there is none.
        seconds: How long the alert fires where no event resolves it; None is as long as the VM exists.
    """

    event: str
    alert: str
    severity: Severity
    help: str
    when: Callable[[Data], bool] = lambda _: True
    resolved_by: frozenset[str] = frozenset()
    seconds: float | None = None
    status: str = ""


RULES = (
    EventRule(
        "GUEST_PANICKED",
        "guest_panicked",
        Severity.CRITICAL,
        "The guest's kernel panicked.",
        resolved_by=RESUMED,
        status="guest-panicked",
    ),
    EventRule(
        "GUEST_CRASHLOADED",
        "guest_crashed",
        Severity.ERROR,
        "The guest crashed and loaded its crash kernel.",
        resolved_by=frozenset({"RESET"}),
        seconds=HOUR,
    ),
    EventRule(
        "BLOCK_IO_ERROR",
        "disk_full",
        Severity.CRITICAL,
        "The guest is paused because a write found no space.",
        when=lambda data: data.get("nospace") is True and data.get("action") == "stop",
        resolved_by=RESUMED,
    ),
    EventRule(
        "BLOCK_IO_ERROR",
        "io_error_stop",
        Severity.CRITICAL,
        "The guest is paused because a disk request failed.",
        when=lambda data: data.get("nospace") is not True and data.get("action") == "stop",
        resolved_by=RESUMED,
        status="io-error",
    ),
    EventRule(
        "BLOCK_IMAGE_CORRUPTED", "image_corrupted", Severity.CRITICAL, "The metadata of a disk image is corrupt."
    ),
    EventRule("WATCHDOG", "watchdog", Severity.ERROR, "The guest's watchdog expired.", seconds=HOUR),
    EventRule(
        "MEMORY_FAILURE", "memory_failure", Severity.ERROR, "The host's memory failed under the VM.", seconds=HOUR
    ),
    EventRule(
        "QUORUM_FAILURE", "quorum_failure", Severity.CRITICAL, "The disks of a quorum do not agree.", seconds=HOUR
    ),
)
"""`nospace` is only present with `action: stop` (QEMU 2.2 to 11.1)."""
