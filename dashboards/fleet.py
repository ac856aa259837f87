"""All hosts: which need a look."""

from dashboards.panels import EVERY, HOSTS, TO_HOST, TO_VM, Column, Dashboard, each, graph, number, rate, rows

VM = "{{vm}} on {{instance}}"
BY = "instance, vm, vm_uuid"
CPU = "qemu_vcpu_cpu_seconds_total"
BAD = ((1, "red"),)


def count(what: str) -> str:
    """Return how many of these there are on each host that has VMs, 0 where there is none."""
    return f"count by (instance) ({what}) or 0 * count by (instance) (qemu_vm_up{{{EVERY}}})"


def most(query: str) -> str:
    """Return the ten VMs that have most of it."""
    return f"topk(10, {query})"


FLEET = Dashboard(
    "qemu-fleet",
    "QEMU fleet",
    "All hosts: how many VMs, what is not well, and who takes most.",
    (HOSTS,),
    EVERY,
    {
        "At a glance": (
            number("Hosts", "short", f"count(qmp_agent_build_info{{{EVERY}}})"),
            number("VMs", "short", f"count(qemu_vm_up{{{EVERY}}}) or vector(0)"),
            number("Do not answer", "short", f"count(qemu_vm_up{{{EVERY}}} == 0) or vector(0)", thresholds=BAD),
            number("Stand still", "short", f"count(qemu_runstate_running{{{EVERY}}} == 0) or vector(0)"),
            number("Alerts firing", "short", f"sum(qemu_alert_firing{{{EVERY}}}) or vector(0)", thresholds=BAD),
            number(
                "Disks full within a day",
                "short",
                f"count(qemu_block_space_time_to_full_seconds{{{EVERY}}} < 86400) or vector(0)",
                thresholds=BAD,
            ),
            number(
                "Migrations under way",
                "short",
                f'count(qemu_migration_status{{{EVERY},status=~"setup|active|device|pre-switchover|postcopy-active"}}) or vector(0)',
            ),
            number(
                "Jobs under way", "short", f'count(qemu_job_status{{{EVERY},status!~"concluded|null"}}) or vector(0)'
            ),
        ),
        "Hosts": (
            rows(
                "Hosts",
                {"instance": "Host"},
                Column("VMs", "short", f"count by (instance) (qemu_vm_up{{{EVERY}}})"),
                Column("Do not answer", "short", count(f"qemu_vm_up{{{EVERY}}} == 0"), BAD),
                Column("Alerts", "short", count(f"qemu_alert_firing{{{EVERY}}}"), BAD),
                Column("CPUs used", "short", rate(CPU, EVERY, "instance")),
                Column("Steal", "short", rate("qemu_vcpu_run_delay_seconds_total", EVERY, "instance")),
                Column("Memory", "bytes", f"sum by (instance) (qemu_process_resident_bytes{{{EVERY}}})"),
                Column("Read", "Bps", rate("qemu_block_read_bytes_total", EVERY, "instance")),
                Column("Written", "Bps", rate("qemu_block_write_bytes_total", EVERY, "instance")),
                Column(
                    "First disk full in",
                    "s",
                    f"min by (instance) (qemu_block_space_time_to_full_seconds{{{EVERY}}})",
                    ((0, "red"), (86400, "text")),
                ),
                link=TO_HOST,
            ),
        ),
        "Not well": (
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
                "Monitors that are not up",
                "short",
                (f'sum by (instance, state) (qmp_agent_monitors{{{EVERY},state!="up"}})', "{{instance}} {{state}}"),
                help="busy: another client holds it. stalled: a reply is overdue. denied: the agent may not connect.",
                link=TO_HOST,
            ),
        ),
        "Who takes most": (
            graph("CPUs", "short", (most(rate(CPU, EVERY, BY)), VM), link=TO_VM),
            graph(
                "Steal",
                "percentunit",
                (most(f"avg by ({BY}) ({rate('qemu_vcpu_run_delay_seconds_total', EVERY)})"), VM),
                thresholds=((0.1, "orange"),),
                help="The share of time that its vCPUs were ready to run and had no host CPU.",
                link=TO_VM,
            ),
            graph("Memory", "bytes", (most(f"qemu_process_resident_bytes{{{EVERY}}}"), VM), link=TO_VM),
        ),
        "Whose disks": (
            graph("Read", "Bps", (most(rate("qemu_block_read_bytes_total", EVERY, BY)), VM), link=TO_VM),
            graph("Written", "Bps", (most(rate("qemu_block_write_bytes_total", EVERY, BY)), VM), link=TO_VM),
            graph(
                "Time of a write",
                "s",
                (
                    most(each("qemu_block_write_seconds_total", "qemu_block_writes_total", EVERY)),
                    f"{VM} {{{{device}}}}",
                ),
                thresholds=((0.1, "orange"),),
                link=TO_VM,
            ),
        ),
    },
)
