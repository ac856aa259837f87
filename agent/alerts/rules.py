"""Events that are alerts, a row each: what fires one, how severe, what ends it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.model.record import Severity

Data = Mapping[str, Any]

HOUR = 3600.0
RESUMED = frozenset({"RESUME", "RESET"})


@dataclass(frozen=True, slots=True)
class EventRule:
    """One row.

    Attributes:
        event: QEMU's name of what fires it.
        alert: the alert's name.
        severity: how severe.
        help: one line for people.
        when: whether an event with this data fires it.
        until: events that end it.
        status: the run state that it leaves the VM in, by which it is known where its event was not heard; empty where there is none.
        lasts: seconds after which it ends by itself, where no event tells of an end; None is as long as the VM lives.
    """

    event: str
    alert: str
    severity: Severity
    help: str
    when: Callable[[Data], bool] = lambda _: True
    until: frozenset[str] = frozenset()
    lasts: float | None = None
    status: str = ""


RULES = (
    EventRule(
        "GUEST_PANICKED",
        "guest_panicked",
        Severity.CRITICAL,
        "The guest's kernel panicked.",
        until=RESUMED,
        status="guest-panicked",
    ),
    EventRule(
        "GUEST_CRASHLOADED",
        "guest_crashed",
        Severity.ERROR,
        "The guest crashed and dumps itself.",
        until=frozenset({"RESET"}),
        lasts=HOUR,
    ),
    EventRule(
        "BLOCK_IO_ERROR",
        "disk_full",
        Severity.CRITICAL,
        "A write failed for want of space, and the guest is paused.",
        when=lambda d: d.get("nospace") is True and d.get("action") == "stop",
        until=RESUMED,
    ),
    EventRule(
        "BLOCK_IO_ERROR",
        "io_error_stop",
        Severity.CRITICAL,
        "A disk request failed, and the guest is paused.",
        when=lambda d: d.get("nospace") is not True and d.get("action") == "stop",
        until=RESUMED,
        status="io-error",
    ),
    EventRule("BLOCK_IMAGE_CORRUPTED", "image_corrupted", Severity.CRITICAL, "An image's metadata is corrupt."),
    EventRule("WATCHDOG", "watchdog", Severity.ERROR, "The guest's watchdog expired.", lasts=HOUR),
    EventRule("MEMORY_FAILURE", "memory_failure", Severity.ERROR, "The host's memory failed under the VM.", lasts=HOUR),
    EventRule("QUORUM_FAILURE", "quorum_failure", Severity.CRITICAL, "A quorum of disks could not agree.", lasts=HOUR),
)
"""`nospace` is only there with `action: stop` (QEMU 2.2 to 11.1)."""
