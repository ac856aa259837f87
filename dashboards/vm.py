"""Dashboard of one VM, selected by its UUID on all hosts."""

from dashboards.panels import (
    Column,
    Dashboard,
    Panel,
    graph_panel,
    heatmap_panel,
    mean_time,
    number_panel,
    query_variable,
    rate,
    state_timeline_panel,
    table_panel,
)

WHERE = 'vm_uuid="$uuid"'
DISK = "{{device}}"
NO_TAP = "no tap interface"
NO_JOB = "no active job"
NO_GUEST_AGENT = "no guest agent is queried (guest_agent.enabled)"


def disk_rate(counter: str) -> str:
    """Return a query for the rate of a disk counter, such as `read_bytes`, for each disk."""
    return rate(f"qemu_block_{counter}_total", WHERE)


ONE_DISK = f'{WHERE}, device="$disk"'
"""Label matchers of the selected disk. Histograms of several disks cannot be summed, because their boundaries can differ."""


def latency_buckets(operation: str, by: str, where: str = WHERE) -> str:
    """Return a query for the rate of the buckets of a latency histogram, summed by labels."""
    return rate(f"qemu_block_{operation}_latency_seconds_bucket", where, by)


def latency_quantile(share: float, operation: str) -> str:
    """Return a query for a quantile of the request latency in seconds, for each disk."""
    return f"histogram_quantile({share:g}, {latency_buckets(operation, 'instance, device, le')})"


def mean_latency(operation: str, plural: str) -> str:
    """Return a query for the mean duration of a request in seconds, for each disk."""
    return mean_time(f"qemu_block_{operation}_seconds_total", f"qemu_block_{plural}_total", WHERE)


SUMMARY = (
    state_timeline_panel(
        "Responds",
        {0: ("overdue", "red"), 1: ("in time", "green")},
        (f"qemu_vm_up{{{WHERE}}}", "{{instance}}"),
        help="A QMP response is overdue if QEMU hangs, most often on storage.",
    ),
    state_timeline_panel(
        "Running",
        {0: ("not running", "orange"), 1: ("running", "green")},
        (f"qemu_runstate_running{{{WHERE}}}", "{{instance}}"),
    ),
    table_panel(
        "Identity",
        {
            "vm": "VM",
            "instance": "Host",
            "machine": "Machine",
            "qemu_version": "QEMU",
            "accelerator": "Accelerator",
            "pid": "Process",
        },
        Column(
            "Started",
            "dateTimeFromNow",
            f"sum by (vm, instance, machine, qemu_version, accelerator, pid) (qemu_vm_info{{{WHERE}}}"
            f" * on (instance, vm_uuid) group_left qemu_process_start_timestamp_seconds{{{WHERE}}}) * 1000",
        ),
    ),
    graph_panel(
        "Alerts firing",
        "short",
        (f"qemu_alert_firing{{{WHERE}}}", "{{device}} {{alert}} {{level}}"),
        empty="none",
    ),
    number_panel("Run state since", "dateTimeFromNow", f"qemu_runstate_since_timestamp_seconds{{{WHERE}}} * 1000"),
)

CPU = (
    graph_panel("vCPUs", "percentunit", (rate("qemu_vcpu_cpu_seconds_total", WHERE), "vCPU {{vcpu}}")),
    graph_panel(
        "Steal",
        "percentunit",
        (rate("qemu_vcpu_run_delay_seconds_total", WHERE), "vCPU {{vcpu}}"),
        thresholds=((0.1, "orange"),),
        help="Share of time in which a vCPU was ready to run but had no host CPU.",
    ),
    graph_panel(
        "I/O threads and main loop",
        "percentunit",
        (rate("qemu_iothread_cpu_seconds_total", WHERE), "{{iothread}}"),
        (rate("qemu_process_main_loop_cpu_seconds_total", WHERE), "main loop"),
        thresholds=((0.8, "orange"),),
    ),
)

DISKS = (
    graph_panel("Read", "Bps", (disk_rate("read_bytes"), DISK)),
    graph_panel("Written", "Bps", (disk_rate("write_bytes"), DISK)),
    graph_panel(
        "Operations",
        "iops",
        (disk_rate("reads"), f"{DISK} reads"),
        (disk_rate("writes"), f"{DISK} writes"),
        (disk_rate("flushes"), f"{DISK} flushes"),
    ),
)

NO_HISTOGRAM = "no disk has latency histograms (allow.latency_histograms)"


def latency_quantiles(title: str, operation: str) -> Panel:
    """Return a panel with quantiles of the latency of each disk."""
    quantiles = {"median": 0.5, "99 %": 0.99, "99.9 %": 0.999}
    return graph_panel(
        title,
        "s",
        *((latency_quantile(share, operation), f"{DISK} {name}") for name, share in quantiles.items()),
        thresholds=((0.1, "orange"),),
        empty=NO_HISTOGRAM,
    )


LATENCY_DISTRIBUTION = (
    latency_quantiles("Read latency, quantiles", "read"),
    latency_quantiles("Write latency, quantiles", "write"),
    heatmap_panel("Read latency of $disk", "s", latency_buckets("read", "le", ONE_DISK), empty=NO_HISTOGRAM),
    heatmap_panel("Write latency of $disk", "s", latency_buckets("write", "le", ONE_DISK), empty=NO_HISTOGRAM),
)

LATENCY = (
    graph_panel(
        "Request latency, mean",
        "s",
        (mean_latency("read", "reads"), f"{DISK} read"),
        (mean_latency("write", "writes"), f"{DISK} write"),
        (mean_latency("flush", "flushes"), f"{DISK} flush"),
        thresholds=((0.1, "orange"),),
        help="As measured by QEMU, from the guest's request to its completion.",
    ),
    graph_panel(
        "Failed requests",
        "iops",
        (disk_rate("failed_reads"), f"{DISK} reads"),
        (disk_rate("failed_writes"), f"{DISK} writes"),
        (disk_rate("failed_flushes"), f"{DISK} flushes"),
        thresholds=((0.001, "red"),),
        help="With werror=stop, QEMU pauses the guest instead, and the request is not counted.",
    ),
    graph_panel(
        "Free",
        "bytes",
        (f"qemu_block_space_free_bytes{{{WHERE}}}", DISK),
        empty="no thin disk",
    ),
)

MEMORY = (
    graph_panel(
        "Guest memory",
        "bytes",
        (f"qemu_memory_base_bytes{{{WHERE}}}", "at start"),
        (f"qemu_balloon_actual_bytes{{{WHERE}}}", "balloon size"),
        (f"qemu_guest_memory_available_bytes{{{WHERE}}}", "available in the guest"),
        (f"qemu_guest_memory_disk_cache_bytes{{{WHERE}}}", "disk caches"),
    ),
    graph_panel(
        "Guest swap",
        "Bps",
        (rate("qemu_guest_memory_swap_in_bytes_total", WHERE), "in"),
        (rate("qemu_guest_memory_swap_out_bytes_total", WHERE), "out"),
        empty="no guest statistics (allow.guest_stats_interval)",
    ),
    graph_panel(
        "Memory of the QEMU process",
        "bytes",
        (f"qemu_process_resident_bytes{{{WHERE}}}", "resident"),
        (f"qemu_process_swap_bytes{{{WHERE}}}", "swapped out"),
        (f"qemu_cgroup_memory_bytes{{{WHERE}}}", "cgroup"),
        (f"qemu_cgroup_memory_limit_bytes{{{WHERE}}}", "cgroup limit"),
    ),
    graph_panel(
        "Major faults",
        "cps",
        (rate("qemu_guest_memory_major_faults_total", WHERE), "guest"),
        (rate("qemu_process_major_faults_total", WHERE), "QEMU process"),
    ),
)


def interface_rate(counter: str, legend: str) -> tuple[str, str]:
    """Return a query for the rate of a counter of network interfaces, such as `receive_bytes`, with its legend."""
    return rate(f"qemu_net_{counter}_total", WHERE), f"{{{{interface}}}} {legend}"


NETWORK = (
    graph_panel(
        "Traffic",
        "Bps",
        interface_rate("receive_bytes", "received"),
        interface_rate("transmit_bytes", "sent"),
        empty=NO_TAP,
    ),
    graph_panel(
        "Packets",
        "pps",
        interface_rate("receive_packets", "received"),
        interface_rate("transmit_packets", "sent"),
        empty=NO_TAP,
    ),
    graph_panel(
        "Drops and errors",
        "pps",
        interface_rate("receive_drops", "receive drops"),
        interface_rate("transmit_drops", "transmit drops"),
        interface_rate("receive_errors", "receive errors"),
        interface_rate("transmit_errors", "transmit errors"),
        thresholds=((0.001, "orange"),),
        empty=NO_TAP,
    ),
)

JOBS = (
    table_panel(
        "Jobs",
        {"job": "Job", "type": "Type", "status": "Status"},
        Column("Active", "short", f"sum by (job, type, status) (qemu_job_status{{{WHERE}}})"),
        empty=NO_JOB,
    ),
    graph_panel("Progress", "percentunit", (f"qemu_job_progress_ratio{{{WHERE}}}", "{{job}}"), empty=NO_JOB),
    graph_panel("Speed", "Bps", (f"qemu_job_progress_per_second{{{WHERE}}}", "{{job}}"), empty=NO_JOB),
    graph_panel("Remaining time", "s", (f"qemu_job_remaining_seconds{{{WHERE}}}", "{{job}}"), empty=NO_JOB),
)

GUEST = (
    graph_panel(
        "File systems in the guest",
        "percentunit",
        (
            f"qemu_guest_filesystem_used_bytes{{{WHERE}}} / qemu_guest_filesystem_size_bytes{{{WHERE}}}",
            "{{mountpoint}} {{device}}",
        ),
        thresholds=((0.9, "orange"), (0.97, "red")),
        empty=NO_GUEST_AGENT,
    ),
    graph_panel(
        "Load",
        "short",
        (f"qemu_guest_load_average_1m{{{WHERE}}}", "1 min"),
        (f"qemu_guest_load_average_15m{{{WHERE}}}", "15 min"),
        empty="no guest agent of 10.0 or newer is queried",
    ),
    state_timeline_panel(
        "Guest agent",
        {0: ("absent", "orange"), 1: ("connected", "green")},
        (f"qemu_guest_agent_connected{{{WHERE}}}", "{{instance}}"),
    ),
    graph_panel(
        "Clock offset",
        "s",
        (f"qemu_guest_clock_offset_seconds{{{WHERE}}}", "{{instance}}"),
        empty=NO_GUEST_AGENT,
    ),
)

VM = Dashboard(
    "qemu-vm",
    "QEMU VM",
    "One VM, on any host.",
    (
        query_variable(
            "uuid",
            "VM",
            "query_result(qemu_vm_info)",
            regex='/[{,]vm="(?<text>[^"]+)".*[{,]vm_uuid="(?<value>[^"]+)"/',
        ),
        query_variable("disk", "Disk", f"label_values(qemu_block_read_latency_seconds_bucket{{{WHERE}}}, device)"),
    ),
    WHERE,
    {
        "Summary": SUMMARY,
        "CPU": CPU,
        "Disks": DISKS,
        "Disk latency and errors": LATENCY,
        "Disk latency, distribution": LATENCY_DISTRIBUTION,
        "Memory": MEMORY,
        "Network": NETWORK,
        "Jobs": JOBS,
        "Inside the guest": GUEST,
    },
)
