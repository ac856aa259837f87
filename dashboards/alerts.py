"""Dashboard of alerts: those that fire, how long they have been firing, and the events around them."""

from dashboards.panels import (
    EVENTS,
    HOSTS,
    HOSTS_MATCHER,
    TO_VM,
    Column,
    Dashboard,
    graph_panel,
    number_panel,
    query_variable,
    table_panel,
)

WHERE = f'{HOSTS_MATCHER},alert=~"$alert"'
FIRING = f"qemu_alert_firing{{{WHERE}}}"
BY = "instance, vm, vm_uuid, device, alert, level, severity"


def count_by_severity(severity: str) -> str:
    """Return a query for the number of firing alerts with severities that match a regular expression."""
    return f'sum(qemu_alert_firing{{{WHERE},severity=~"{severity}"}}) or vector(0)'


ALERTS = Dashboard(
    "qemu-alerts",
    "QEMU alerts",
    "The alerts that fire now, those that fired, and the events that changed the state of VMs.",
    (HOSTS, query_variable("alert", "Alert", "label_values(qemu_alert_firing, alert)", many=True)),
    WHERE,
    {
        "Summary": (
            number_panel("Critical and error", "short", count_by_severity("critical|error"), thresholds=((1, "red"),)),
            number_panel("Warning", "short", count_by_severity("warning"), thresholds=((1, "orange"),)),
            number_panel(
                "VMs with alerts",
                "short",
                f'count(group by (instance, vm_uuid) (qemu_alert_firing{{{WHERE},vm_uuid!=""}})) or vector(0)',
            ),
            number_panel(
                "VMs that do not respond",
                "short",
                f"count(qemu_vm_up{{{HOSTS_MATCHER}}} == 0) or vector(0)",
                thresholds=((1, "red"),),
            ),
        ),
        "Now": (
            table_panel(
                "Firing",
                {
                    "severity": "Severity",
                    "alert": "Alert",
                    "vm": "VM",
                    "device": "Subject",
                    "level": "Level",
                    "instance": "Host",
                    "vm_uuid": "",
                },
                Column("Firing", "short", f"sum by ({BY}) ({FIRING})"),
                Column(
                    "Share of the time range",
                    "percentunit",
                    f"sum by ({BY}) (count_over_time({FIRING}[$__range])) / scalar(max(count_over_time(qmp_agent_build_info[$__range])))",
                ),
                empty="none",
                link=TO_VM,
                help="The alerts that fire now, with the share of the shown time range in which each fired.",
            ),
        ),
        "Over time": (
            graph_panel(
                "Firing by alert",
                "short",
                (f"sum by (alert) ({FIRING})", "{{alert}}"),
                empty="no alert fired",
                help="Number of firing alerts of each kind. A step up on many VMs at once points at what they share.",
            ),
            graph_panel(
                "Firing by host",
                "short",
                (f"sum by (instance) ({FIRING})", "{{instance}}"),
                empty="no alert fired",
                help="Number of firing alerts on each host.",
            ),
        ),
        "Causes": (
            graph_panel(
                "Events that change the state of VMs",
                "short",
                (
                    f'sum by (event) (increase(qemu_vm_events_total{{{HOSTS_MATCHER},event=~"{EVENTS}"}}[$__rate_interval]))',
                    "{{event}}",
                ),
                empty="no such event",
                help="Events of QEMU by name. Counters begin with a VM's first event, so a first event may be missing here.",
            ),
            table_panel(
                "VMs whose run state is an error",
                {"vm": "VM", "status": "Run state", "instance": "Host", "vm_uuid": ""},
                Column(
                    "VMs",
                    "short",
                    "sum by (instance, vm, vm_uuid, status) "
                    f'(qemu_runstate_status{{{HOSTS_MATCHER},status=~"io-error|internal-error|guest-panicked|watchdog"}})',
                ),
                empty="none",
                link=TO_VM,
                help="VMs that QEMU stopped because of an error.",
            ),
        ),
    },
)
