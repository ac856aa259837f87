"""Dashboard of one host: its VMs side by side."""

from dashboards.panels import (
    TO_VM,
    Dashboard,
    graph_panel,
    mean_time,
    number_panel,
    query_variable,
    rate,
    state_timeline_panel,
)

WHERE = 'instance="$host",vm=~"$vm"'
DISK = "{{vm}} {{device}}"
VM = "{{vm}}"


def total(query: str) -> str:
    """Return a query for a sum: 0 if the host has no VMs, no value if the values of its VMs are unknown."""
    return f'sum({query}) or 0 * count(qmp_agent_build_info{{instance="$host"}}) unless count(qemu_vm_up{{{WHERE}}})'


HOST = Dashboard(
    "qemu-host",
    "QEMU host",
    "The VMs of one host side by side.",
    (
        query_variable("host", "Host", "label_values(qmp_agent_build_info, instance)"),
        query_variable("vm", "VMs", 'label_values(qemu_vm_info{instance="$host"}, vm)', many=True),
    ),
    WHERE,
    {
        "Summary": (
            number_panel("VMs", "short", f"count(qemu_vm_up{{{WHERE}}}) or vector(0)"),
            number_panel(
                "Not responding",
                "short",
                f"count(qemu_vm_up{{{WHERE}}} == 0) or vector(0)",
                thresholds=((1, "red"),),
                help="A QMP response is overdue: QEMU hangs, most often on storage.",
            ),
            number_panel("Not running", "short", f"count(qemu_runstate_running{{{WHERE}}} == 0) or vector(0)"),
            number_panel(
                "Alerts firing",
                "short",
                f"sum(qemu_alert_firing{{{WHERE}}}) or vector(0)",
                thresholds=((1, "red"),),
            ),
            number_panel(
                "CPUs used",
                "short",
                total(
                    f"{rate('qemu_process_user_seconds_total', WHERE)} + {rate('qemu_process_system_seconds_total', WHERE)}"
                ),
            ),
            number_panel("Memory used", "bytes", total(f"qemu_process_resident_bytes{{{WHERE}}}")),
        ),
        "Virtual machines": (
            state_timeline_panel(
                "Responds",
                {0: ("overdue", "red"), 1: ("in time", "green")},
                (f"qemu_vm_up{{{WHERE}}}", VM),
                link=TO_VM,
            ),
            state_timeline_panel(
                "Running",
                {0: ("not running", "orange"), 1: ("running", "green")},
                (f"qemu_runstate_running{{{WHERE}}}", VM),
                link=TO_VM,
            ),
            graph_panel(
                "Alerts firing",
                "short",
                (f"qemu_alert_firing{{{WHERE}}}", "{{vm}} {{device}} {{alert}} {{level}}"),
                empty="none",
                link=TO_VM,
            ),
        ),
        "CPU": (
            graph_panel(
                "CPUs used by vCPUs",
                "short",
                (rate("qemu_vcpu_cpu_seconds_total", WHERE, "vm, vm_uuid"), VM),
                link=TO_VM,
            ),
            graph_panel(
                "Steal",
                "percentunit",
                (f"avg by (vm, vm_uuid) ({rate('qemu_vcpu_run_delay_seconds_total', WHERE)})", VM),
                thresholds=((0.1, "orange"),),
                help="Share of time in which its vCPUs were ready to run but had no host CPU.",
                link=TO_VM,
            ),
            graph_panel(
                "Main loop",
                "percentunit",
                (rate("qemu_process_main_loop_cpu_seconds_total", WHERE), VM),
                thresholds=((0.8, "orange"),),
                help="Share of a CPU that QEMU's main thread uses; it handles QMP, and the I/O of disks without iothreads.",
                link=TO_VM,
            ),
        ),
        "Disks": (
            graph_panel("Read", "Bps", (rate("qemu_block_read_bytes_total", WHERE), DISK), link=TO_VM),
            graph_panel("Written", "Bps", (rate("qemu_block_write_bytes_total", WHERE), DISK), link=TO_VM),
            graph_panel(
                "Write latency, mean",
                "s",
                (mean_time("qemu_block_write_seconds_total", "qemu_block_writes_total", WHERE), DISK),
                thresholds=((0.1, "orange"),),
                link=TO_VM,
            ),
            graph_panel(
                "Failed requests",
                "iops",
                (rate("qemu_block_failed_reads_total", WHERE), f"{DISK} reads"),
                (rate("qemu_block_failed_writes_total", WHERE), f"{DISK} writes"),
                (rate("qemu_block_failed_flushes_total", WHERE), f"{DISK} flushes"),
                thresholds=((0.001, "red"),),
                link=TO_VM,
            ),
        ),
        "Memory and network": (
            graph_panel(
                "Memory of the QEMU process", "bytes", (f"qemu_process_resident_bytes{{{WHERE}}}", VM), link=TO_VM
            ),
            graph_panel(
                "Available memory in the guest",
                "bytes",
                (f"qemu_guest_memory_available_bytes{{{WHERE}}}", VM),
                empty="no guest statistics (allow.guest_stats_interval)",
                link=TO_VM,
            ),
            graph_panel(
                "Received by guests",
                "Bps",
                (rate("qemu_net_receive_bytes_total", WHERE, "vm, vm_uuid"), VM),
                empty="no VM has a tap interface",
                link=TO_VM,
            ),
            graph_panel(
                "Sent by guests",
                "Bps",
                (rate("qemu_net_transmit_bytes_total", WHERE, "vm, vm_uuid"), VM),
                empty="no VM has a tap interface",
                link=TO_VM,
            ),
        ),
    },
)
