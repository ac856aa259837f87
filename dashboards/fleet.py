"""Dashboard of all hosts: shows which hosts need attention."""

from dashboards.panels import (
    HOSTS,
    HOSTS_MATCHER,
    TO_HOST,
    TO_VM,
    Column,
    Dashboard,
    graph_panel,
    mean_time,
    number_panel,
    rate,
    table_panel,
)

VM = "{{vm}} on {{instance}}"
BY = "instance, vm, vm_uuid"
CPU = "qemu_vcpu_cpu_seconds_total"
BAD = ((1, "red"),)


AGENTS = f"count by (instance) (qmp_agent_build_info{{{HOSTS_MATCHER}}})"
VMS = f"count by (instance) (qemu_vm_up{{{HOSTS_MATCHER}}})"


def count(selector: str) -> str:
    """Return a query for the number of selected series on each host; 0 if there is none."""
    return f"count by (instance) ({selector}) or 0 * {AGENTS}"


def total(query: str) -> str:
    """Return a query for a sum on each host: 0 for a host without VMs, no value if the values of its VMs are unknown."""
    return f"{query} or 0 * {AGENTS} unless {VMS}"


def top_ten(query: str) -> str:
    """Return a query for the ten VMs with the highest values."""
    return f"topk(10, {query})"


FLEET = Dashboard(
    "qemu-fleet",
    "QEMU fleet",
    "All hosts: number of VMs, problems, and the largest consumers.",
    (HOSTS,),
    HOSTS_MATCHER,
    {
        "Summary": (
            number_panel("Hosts", "short", f"count(qmp_agent_build_info{{{HOSTS_MATCHER}}})"),
            number_panel("VMs", "short", f"count(qemu_vm_up{{{HOSTS_MATCHER}}}) or vector(0)"),
            number_panel(
                "Not responding", "short", f"count(qemu_vm_up{{{HOSTS_MATCHER}}} == 0) or vector(0)", thresholds=BAD
            ),
            number_panel("Not running", "short", f"count(qemu_runstate_running{{{HOSTS_MATCHER}}} == 0) or vector(0)"),
            number_panel(
                "Alerts firing", "short", f"sum(qemu_alert_firing{{{HOSTS_MATCHER}}}) or vector(0)", thresholds=BAD
            ),
            number_panel(
                "Disks full within a day",
                "short",
                f"count(qemu_block_space_time_to_full_seconds{{{HOSTS_MATCHER}}} < 86400) or vector(0)",
                thresholds=BAD,
            ),
            number_panel(
                "Active migrations",
                "short",
                f'count(qemu_migration_status{{{HOSTS_MATCHER},status=~"setup|active|device|pre-switchover|postcopy-.+"}}) or vector(0)',
            ),
            number_panel(
                "Active jobs",
                "short",
                f'count(qemu_job_status{{{HOSTS_MATCHER},status!~"concluded|null"}}) or vector(0)',
            ),
        ),
        "Hosts": (
            table_panel(
                "Hosts",
                {"instance": "Host"},
                Column("VMs", "short", count(f"qemu_vm_up{{{HOSTS_MATCHER}}}")),
                Column("Not responding", "short", count(f"qemu_vm_up{{{HOSTS_MATCHER}}} == 0"), BAD),
                Column("Alerts", "short", count(f"qemu_alert_firing{{{HOSTS_MATCHER}}}"), BAD),
                Column("CPUs used", "short", total(rate(CPU, HOSTS_MATCHER, "instance"))),
                Column("Steal", "short", total(rate("qemu_vcpu_run_delay_seconds_total", HOSTS_MATCHER, "instance"))),
                Column("Memory", "bytes", total(f"sum by (instance) (qemu_process_resident_bytes{{{HOSTS_MATCHER}}})")),
                Column("Read", "Bps", total(rate("qemu_block_read_bytes_total", HOSTS_MATCHER, "instance"))),
                Column("Written", "Bps", total(rate("qemu_block_write_bytes_total", HOSTS_MATCHER, "instance"))),
                Column(
                    "Shortest time to full",
                    "s",
                    f"min by (instance) (qemu_block_space_time_to_full_seconds{{{HOSTS_MATCHER}}})",
                    ((0, "red"), (86400, "text")),
                ),
                link=TO_HOST,
            ),
        ),
        "Problems": (
            table_panel(
                "Alerts firing",
                {
                    "vm": "VM",
                    "device": "Device",
                    "alert": "Alert",
                    "level": "Level",
                    "severity": "Severity",
                    "instance": "Host",
                    "vm_uuid": "",
                },
                Column(
                    "Firing",
                    "short",
                    f"sum by (instance, vm, vm_uuid, device, alert, level, severity) (qemu_alert_firing{{{HOSTS_MATCHER}}})",
                ),
                empty="none",
                link=TO_VM,
            ),
            graph_panel(
                "Monitors not up",
                "short",
                (
                    f'sum by (instance, state) (qmp_agent_monitors{{{HOSTS_MATCHER},state!="up"}})',
                    "{{instance}} {{state}}",
                ),
                help="busy: another client is connected. stalled: a response is overdue. denied: the agent has no permission to connect.",
                link=TO_HOST,
            ),
        ),
        "Largest consumers of CPU and memory": (
            graph_panel("CPUs", "short", (top_ten(rate(CPU, HOSTS_MATCHER, BY)), VM), link=TO_VM),
            graph_panel(
                "Steal",
                "percentunit",
                (top_ten(f"avg by ({BY}) ({rate('qemu_vcpu_run_delay_seconds_total', HOSTS_MATCHER)})"), VM),
                thresholds=((0.1, "orange"),),
                help="Share of time in which the VM's vCPUs were ready to run but had no host CPU.",
                link=TO_VM,
            ),
            graph_panel(
                "Memory", "bytes", (top_ten(f"qemu_process_resident_bytes{{{HOSTS_MATCHER}}}"), VM), link=TO_VM
            ),
        ),
        "Largest consumers of disk I/O": (
            graph_panel(
                "Read", "Bps", (top_ten(rate("qemu_block_read_bytes_total", HOSTS_MATCHER, BY)), VM), link=TO_VM
            ),
            graph_panel(
                "Written", "Bps", (top_ten(rate("qemu_block_write_bytes_total", HOSTS_MATCHER, BY)), VM), link=TO_VM
            ),
            graph_panel(
                "Write latency, mean",
                "s",
                (
                    top_ten(mean_time("qemu_block_write_seconds_total", "qemu_block_writes_total", HOSTS_MATCHER)),
                    f"{VM} {{{{device}}}}",
                ),
                thresholds=((0.1, "orange"),),
                link=TO_VM,
            ),
        ),
    },
)
