"""The built-in alert rules on events that concern neither the run state nor a disk. The module `rule_types` describes the fields of a rule.

The rules on crashes, watchdogs, errors of disks and memory, and failed block jobs are in agent/alerts/failure_rules.py.
"""

from agent.alerts.rules.comparison import FieldComparison, Operator
from agent.alerts.rules.rule_types import EventAlertRule, EventMatch, Runbook
from agent.model.record import Severity

_BACKEND_CAUSE = (
    "The process on the other end of the socket has ended or restarts, such as Open vSwitch, DPDK, SPDK or passt."
)


def _flag_is(field: str, value: bool) -> tuple[FieldComparison, ...]:  # noqa: FBT001
    return (FieldComparison((field,), Operator.EQUAL, value),)


EVENT_ALERT_RULES = (
    EventAlertRule(
        alert="vhost_user_lost",
        match=EventMatch("NETDEV_VHOST_USER_DISCONNECTED"),
        resolved_by=(EventMatch("NETDEV_VHOST_USER_CONNECTED"),),
        seconds=10.0,
        severity=Severity.ERROR,
        help="The backend of a vhost-user network device is gone, and the guest has no network on this device.",
        runbook=Runbook(
            _BACKEND_CAUSE, "Start the backend again. QEMU connects by itself if the socket has `reconnect`."
        ),
    ),
    EventAlertRule(
        alert="netdev_stream_lost",
        match=EventMatch("NETDEV_STREAM_DISCONNECTED"),
        resolved_by=(EventMatch("NETDEV_STREAM_CONNECTED"),),
        seconds=10.0,
        severity=Severity.ERROR,
        help="The peer of a stream network backend is gone, and the guest has no network on this device.",
        runbook=Runbook(
            _BACKEND_CAUSE, "Start the peer again. QEMU connects by itself if the backend has `reconnect`."
        ),
    ),
    EventAlertRule(
        alert="pr_manager_lost",
        match=EventMatch("PR_MANAGER_STATUS_CHANGED", _flag_is("connected", value=False)),
        resolved_by=(EventMatch("PR_MANAGER_STATUS_CHANGED", _flag_is("connected", value=True)),),
        seconds=10.0,
        severity=Severity.ERROR,
        help="The helper of persistent reservations is gone, so the guest's SCSI reservations fail.",
        runbook=Runbook(
            "The process qemu-pr-helper has ended.",
            "Start qemu-pr-helper again; QEMU connects by itself. Check the guest's cluster software.",
        ),
    ),
    EventAlertRule(
        alert="reset_loop",
        match=EventMatch("RESET", _flag_is("guest", value=True)),
        limit=5.0,
        seconds=900.0,
        resolve_after_seconds=900.0,
        severity=Severity.ERROR,
        copied_fields=("reason",),
        help="The guest resets again and again.",
        runbook=Runbook(
            "The guest crashes while it boots, its watchdog resets it, or its boot disk is not readable.",
            "Watch the guest's console. Restore its last working kernel, driver or disk. The alert is resolved 15 minutes after the "
            "last reset.",
        ),
    ),
)
"""All rules of this table. A rule on an event that stops the guest or that names a disk is in `agent.alerts.failure_rules` instead."""
