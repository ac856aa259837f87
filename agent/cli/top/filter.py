"""Filters of the VM table: words and `key:value` pairs, as on the web page. The table shows VMs that match every word and pair. Pure."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agent.cli.top.columns import OverviewVm, is_stopped_by_qemu, run_or_monitor_state

Alerts = Sequence[Mapping[str, Any]]
VmPredicate = Callable[[OverviewVm, Alerts], bool]

_PAIR = re.compile(r"(state|alert|label|is):(.+)", re.DOTALL)
_WORD = re.compile(r'(?:[^\s"]|"[^"]*"?)+')


def parse_filter(text: str) -> VmPredicate:
    """Parse a filter. Return a predicate of a VM and its firing alerts.

    A word matches a part of the name, the UUID or the state. The pairs match as follows:

    - `state:TEXT`: the beginning of the state;
    - `state:stopped`: the states in which QEMU stopped the guest, after an error or after the guest's shutdown;
    - `alert:any`, `alert:SEVERITY` and `alert:TEXT`: firing alerts;
    - `label:NAME` and `label:NAME=VALUE`: labels that the VM manager set;
    - `is:degraded`: VMs with collectors that are off;
    - `is:busy`: VMs with a migration or a job.
    """
    tests = [_parse_word(word.replace('"', "")) for word in _WORD.findall(text.casefold())]
    return lambda vm, alerts: all(test(vm, alerts) for test in tests)


def _parse_word(word: str) -> VmPredicate:
    pair = _PAIR.fullmatch(word)
    if pair is None:
        return lambda vm, _: word in f"{vm['name']} {vm['uuid']} {run_or_monitor_state(vm)}".casefold()
    key, value = pair.groups()
    match key:
        case "state":
            return lambda vm, _: (
                run_or_monitor_state(vm).startswith(value) or (value == "stopped" and is_stopped_by_qemu(vm))
            )
        case "alert":
            return lambda _, alerts: any(
                value in ("any", alert["severity"]) or value in alert["alert"] for alert in alerts
            )
        case "label":
            return lambda vm, _: _has_label(vm, value)
        case _:
            return lambda vm, _: bool({"degraded": vm.get("degraded"), "busy": has_migration_or_job(vm)}.get(value))


def _has_label(vm: OverviewVm, wanted: str) -> bool:
    name, has_value, value = wanted.partition("=")
    labels = {str(key).casefold(): str(text).casefold() for key, text in vm.get("labels", {}).items()}
    return labels.get(name) == value if has_value else name in labels


def has_migration_or_job(vm: OverviewVm) -> bool:
    """Return whether a migration or a job of the VM is running."""
    status = vm.get("migration", {}).get("status", "none")
    return bool(vm.get("jobs")) or status not in ("none", "completed", "failed", "cancelled")
