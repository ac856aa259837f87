"""Finds what has stopped a VM: its process, its run state, its monitor or its storage. Pure."""

from collections.abc import Iterator
from typing import Any

from agent.common.durations_and_sizes import format_bytes
from agent.exposition.explain.evidence import CauseFinding, Evidence, finite_number_or_none
from agent.exposition.explain.text_format import format_duration, format_list, format_percent
from agent.model.metrics.block import BLOCK_DEVICE
from agent.model.metrics.guest import GUEST_FREEZE
from agent.model.metrics.runstate import RUNSTATE
from agent.model.metrics.vm_process_and_interfaces import PROCESS
from agent.session.shared_types import MonitorState

FULL_RATIO = 0.01
"""Share of free space up to which a pool counts as full. The smaller of this limit and `FULL_BYTES` applies."""
FULL_BYTES = 1 << 30
"""Free bytes up to which a pool counts as full. The smaller of this limit and `FULL_RATIO` applies."""

_STATUS_TEXTS = {
    "paused": "a client of its monitor, such as its manager, stopped it; QEMU does not report which client",
    "internal-error": "KVM or QEMU had an internal error; QEMU's log has the reason",
    "guest-panicked": "the guest's kernel panicked",
    "watchdog": "the guest's watchdog expired, so the guest had stopped serving it",
    "shutdown": "the guest has shut down, and its QEMU waits for a client",
    "suspended": "the guest is suspended to memory and waits for a wakeup",
    "save-vm": "a client saves the state of the VM",
    "restore-vm": "a client restores the state of the VM",
    "prelaunch": "no client has started the guest",
    "inmigrate": "the VM waits for the rest of an incoming migration",
    "finish-migrate": "a migration sends the last part of the VM",
    "postmigrate": "the guest was migrated and runs at the destination, or the migration saved it to a file",
    "debug": "a debugger stopped it over the gdb server of QEMU",
    "colo": "a COLO checkpoint is being taken",
}


def find_process_stopped(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find a process that a signal or a debugger stopped."""
    state = evidence.whole_vm_values(PROCESS).get("state")
    if state in ("stopped", "traced"):
        by = "a signal, such as SIGSTOP, stopped it" if state == "stopped" else "a debugger holds it"
        yield CauseFinding("", f"The QEMU process is {state}: {by}.", {"state": state})


def find_storage_unresponsive(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find storage pools that do not answer."""
    for (pool, kind), devices, values in evidence.pools_of_disks():
        if values.get("responsive") is False:
            error = f": {values['error']}" if values.get("error") else ""
            sentence = f"The storage {pool} ({kind}) of {format_list(devices)} does not answer{error}."
            yield CauseFinding(pool, sentence, {"kind": kind, "devices": devices})


def find_monitor_stalled(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find a monitor on which QEMU does not answer."""
    status = evidence.view.status
    if status.state is MonitorState.STALLED:
        seconds = max(0.0, evidence.now - status.since_ns / 1e9)
        reason = f": {status.reason}" if status.reason else ""
        yield CauseFinding(
            "",
            f"QEMU has not answered its monitor for {format_duration(seconds)}{reason}.",
            {"stalled_seconds": seconds},
        )


def find_not_running(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find a guest that does not run."""
    values = evidence.whole_vm_values(RUNSTATE)
    status = values.get("status")
    if values.get("running") is not False or not isinstance(status, str):
        return
    since = finite_number_or_none(values, "since_timestamp_seconds")
    figures: dict[str, Any] = {"status": status}
    known = ""
    if since is not None:
        figures["seconds"] = max(0.0, evidence.now - since)
        known = f" for {format_duration(figures['seconds'])} or longer"
    if status == "io-error":
        yield from _describe_io_errors(evidence, known, figures)
        return
    reason = _STATUS_TEXTS.get(status, "")
    yield CauseFinding("", f"The guest has not run{known} (`{status}`){f': {reason}' if reason else ''}.", figures)


def _describe_io_errors(evidence: Evidence, known: str, figures: dict[str, Any]) -> Iterator[CauseFinding]:
    """Yield the disks whose I/O errors stopped the guest."""
    states = {
        labels[0]: values.get("io_status") for labels, values in evidence.latest_values_by_subject(BLOCK_DEVICE).items()
    }
    failed = {device: state for device, state in states.items() if state in ("failed", "nospace")}
    failed |= {alert["subject"]: "nospace" for alert in evidence.alerts_named("disk_full")}
    for alert in evidence.alerts_named("io_error_stop"):
        failed.setdefault(alert["subject"], "failed")
    begin = f"The guest has not run{known} (`io-error`)"
    if not failed:
        yield CauseFinding("", f"{begin}: a disk request failed, and the disk's error policy stops the guest.", figures)
    for device, state in failed.items():
        why = "a write found no space" if state == "nospace" else "a request failed"
        yield CauseFinding(device, f"{begin}: {why} on {device}.", figures | {"io_status": state})


def find_guest_filesystems_frozen(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find frozen file systems in the guest."""
    if evidence.whole_vm_values(GUEST_FREEZE).get("frozen") is True:
        sentence = "The guest's file systems are frozen (`guest-fsfreeze-freeze`), so every write in the guest waits."
        yield CauseFinding("", sentence, {"frozen": True})


def find_pool_full(evidence: Evidence) -> Iterator[CauseFinding]:
    """Find storage pools that are full, or that report a problem."""
    for (pool, kind), devices, values in evidence.pools_of_disks():
        free, size = finite_number_or_none(values, "free_bytes"), finite_number_or_none(values, "size_bytes")
        if values.get("problem"):
            sentence = f"The pool {pool} ({kind}) under {format_list(devices)} reports {values['problem']}."
            yield CauseFinding(pool, sentence, {"kind": kind, "problem": values["problem"], "devices": devices})
        elif free is not None and size and free <= min(FULL_BYTES, FULL_RATIO * size):
            sentence = (
                f"The pool {pool} ({kind}) under {format_list(devices)} is full: {format_bytes(free)} of "
                f"{format_bytes(size)} are free ({format_percent(free / size)})."
            )
            figures = {"kind": kind, "free_bytes": free, "size_bytes": size, "devices": devices}
            yield CauseFinding(pool, sentence, figures)
