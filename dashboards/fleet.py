"""All hosts, to find those that need attention."""

from dashboards.panels import EVERY, HOSTS, TO_HOST, TO_VM, Column, Dashboard, graph, mean_time, number, rate, rows

VM = "{{vm}} on {{instance}}"
BY = "instance, vm, vm_uuid"
CPU = "qemu_vcpu_cpu_seconds_total"
BAD = ((1, "red"),)


AGENTS = f"count by (instance) (qmp_agent_build_info{{{EVERY}}})"
VMS = f"count by (instance) (qemu_vm_up{{{EVERY}}})"


def count(selector: str) -> str:
    """Return the number of these on each host, 0 if there is none."""
    return f"count by (instance) ({selector}) or 0 * {AGENTS}"


def total(query: str) -> str:
    """Return a sum for each host: 0 for a host without VMs, and no value where the VMs' values are unknown."""
    return f"{query} or 0 * {AGENTS} unless {VMS}"


def top_ten(query: str) -> str:
    """Return the ten VMs with the highest values."""
    return f"topk(10, {query})"


FLEET = Dashboard(
    "qemu-fleet",
    "QEMU fleet",
    "All hosts: number of VMs, problems, and the largest consumers.",
    (HOSTS,),
    EVERY,
    {
        "Summary": (
            number("Hosts", "short", f"count(qmp_agent_build_info{{{EVERY}}})"),
            number("VMs", "short", f"count(qemu_vm_up{{{EVERY}}}) or vector(0)"),
            number("Not responding", "short", f"count(qemu_vm_up{{{EVERY}}} == 0) or vector(0)", thresholds=BAD),
            number("Not running", "short", f"count(qemu_runstate_running{{{EVERY}}} == 0) or vector(0)"),
            number("Alerts firing", "short", f"sum(qemu_alert_firing{{{EVERY}}}) or vector(0)", thresholds=BAD),
            number(
                "Disks full within a day",
                "short",
                f"count(qemu_block_space_time_to_full_seconds{{{EVERY}}} < 86400) or vector(0)",
                thresholds=BAD,
            ),
            number(
                "Active migrations",
                "short",
                f'count(qemu_migration_status{{{EVERY},status=~"setup|active|device|pre-switchover|postcopy-.+"}}) or vector(0)',
            ),
            number("Active jobs", "short", f'count(qemu_job_status{{{EVERY},status!~"concluded|null"}}) or vector(0)'),
        ),
        "Hosts": (
            rows(
                "Hosts",
                {"instance": "Host"},
                Column("VMs", "short", count(f"qemu_vm_up{{{EVERY}}}")),
                Column("Not responding", "short", count(f"qemu_vm_up{{{EVERY}}} == 0"), BAD),
                Column("Alerts", "short", count(f"qemu_alert_firing{{{EVERY}}}"), BAD),
                Column("CPUs used", "short", total(rate(CPU, EVERY, "instance"))),
                Column("Steal", "short", total(rate("qemu_vcpu_run_delay_seconds_total", EVERY, "instance"))),
                Column("Memory", "bytes", total(f"sum by (instance) (qemu_process_resident_bytes{{{EVERY}}})")),
                Column("Read", "Bps", total(rate("qemu_block_read_bytes_total", EVERY, "instance"))),
                Column("Written", "Bps", total(rate("qemu_block_write_bytes_total", EVERY, "instance"))),
                Column(
                    "Shortest time to full",
                    "s",
                    f"min by (instance) (qemu_block_space_time_to_full_seconds{{{EVERY}}})",
                    ((0, "red"), (86400, "text")),
                ),
                link=TO_HOST,
            ),
        ),
        "Problems": (
            rows(
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
                    f"sum by (instance, vm, vm_uuid, device, alert, level, severity) (qemu_alert_firing{{{EVERY}}})",
                ),
                empty="none",
                link=TO_VM,
            ),
            graph(
                "Monitors not up",
                "short",
                (f'sum by (instance, state) (qmp_agent_monitors{{{EVERY},state!="up"}})', "{{instance}} {{state}}"),
                help="busy: another client is connected. stalled: a response is overdue. denied: the agent has no permission to connect.",
                link=TO_HOST,
            ),
        ),
        "Largest consumers of CPU and memory": (
            graph("CPUs", "short", (top_ten(rate(CPU, EVERY, BY)), VM), link=TO_VM),
            graph(
                "Steal",
                "percentunit",
                (top_ten(f"avg by ({BY}) ({rate('qemu_vcpu_run_delay_seconds_total', EVERY)})"), VM),
                thresholds=((0.1, "orange"),),
                help="Share of time in which its vCPUs were ready to run but had no host CPU.",
                link=TO_VM,
            ),
            graph("Memory", "bytes", (top_ten(f"qemu_process_resident_bytes{{{EVERY}}}"), VM), link=TO_VM),
        ),
        "Largest consumers of disk I/O": (
            graph("Read", "Bps", (top_ten(rate("qemu_block_read_bytes_total", EVERY, BY)), VM), link=TO_VM),
            graph("Written", "Bps", (top_ten(rate("qemu_block_write_bytes_total", EVERY, BY)), VM), link=TO_VM),
            graph(
                "Write latency, mean",
                "s",
                (
                    top_ten(mean_time("qemu_block_write_seconds_total", "qemu_block_writes_total", EVERY)),
                    f"{VM} {{{{device}}}}",
                ),
                thresholds=((0.1, "orange"),),
                link=TO_VM,
            ),
        ),
    },
)
