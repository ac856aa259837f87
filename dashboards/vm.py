"""One VM, on any host."""

from dashboards.panels import Column, Dashboard, choice, graph, mean_time, number, rate, rows, states

WHERE = 'vm_uuid="$uuid"'
DISK = "{{device}}"
NO_TAP = "no tap interface"
NO_JOB = "no active job"


def block(what: str) -> str:
    """Return the rate of one of the disks' counters."""
    return rate(f"qemu_block_{what}_total", WHERE)


def quantile(direction: str) -> str:
    """Return the 99th percentile of a disk's request latency."""
    buckets = rate(f"qemu_block_{direction}_latency_seconds_bucket", WHERE, "instance, device, le")
    return f"histogram_quantile(0.99, {buckets})"


def mean_latency(operation: str, plural: str) -> str:
    """Return the mean duration of one request."""
    return mean_time(f"qemu_block_{operation}_seconds_total", f"qemu_block_{plural}_total", WHERE)


SUMMARY = (
    states(
        "Responds",
        {0: ("overdue", "red"), 1: ("in time", "green")},
        (f"qemu_vm_up{{{WHERE}}}", "{{instance}}"),
        help="A QMP response is overdue if QEMU hangs, most often on storage.",
    ),
    states(
        "Running",
        {0: ("not running", "orange"), 1: ("running", "green")},
        (f"qemu_runstate_running{{{WHERE}}}", "{{instance}}"),
    ),
    rows(
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
    graph(
        "Alerts firing",
        "short",
        (f"qemu_alert_firing{{{WHERE}}}", "{{device}} {{alert}} {{level}}"),
        empty="none",
    ),
    number("Run state since", "dateTimeFromNow", f"qemu_runstate_since_timestamp_seconds{{{WHERE}}} * 1000"),
)

CPU = (
    graph("vCPUs", "percentunit", (rate("qemu_vcpu_cpu_seconds_total", WHERE), "vCPU {{vcpu}}")),
    graph(
        "Steal",
        "percentunit",
        (rate("qemu_vcpu_run_delay_seconds_total", WHERE), "vCPU {{vcpu}}"),
        thresholds=((0.1, "orange"),),
        help="Share of time in which a vCPU was ready to run but had no host CPU.",
    ),
    graph(
        "I/O threads and main loop",
        "percentunit",
        (rate("qemu_iothread_cpu_seconds_total", WHERE), "{{iothread}}"),
        (rate("qemu_process_main_loop_cpu_seconds_total", WHERE), "main loop"),
        thresholds=((0.8, "orange"),),
    ),
)

DISKS = (
    graph("Read", "Bps", (block("read_bytes"), DISK)),
    graph("Written", "Bps", (block("write_bytes"), DISK)),
    graph(
        "Operations",
        "iops",
        (block("reads"), f"{DISK} reads"),
        (block("writes"), f"{DISK} writes"),
        (block("flushes"), f"{DISK} flushes"),
    ),
)

LATENCY = (
    graph(
        "Request latency, mean",
        "s",
        (mean_latency("read", "reads"), f"{DISK} read"),
        (mean_latency("write", "writes"), f"{DISK} write"),
        (mean_latency("flush", "flushes"), f"{DISK} flush"),
        thresholds=((0.1, "orange"),),
        help="As measured by QEMU, from the guest's request to its completion.",
    ),
    graph(
        "Request latency, 99th percentile",
        "s",
        (quantile("read"), f"{DISK} read"),
        (quantile("write"), f"{DISK} write"),
        thresholds=((0.1, "orange"),),
        empty="no latency histogram is set (block-latency-histogram-set)",
    ),
    graph(
        "Failed requests",
        "iops",
        (block("failed_reads"), f"{DISK} reads"),
        (block("failed_writes"), f"{DISK} writes"),
        (block("failed_flushes"), f"{DISK} flushes"),
        thresholds=((0.001, "red"),),
        help="With werror=stop, QEMU pauses the guest instead, and the request is not counted.",
    ),
    graph(
        "Free",
        "bytes",
        (f"qemu_block_space_free_bytes{{{WHERE}}}", DISK),
        empty="no thin disk",
    ),
)

MEMORY = (
    graph(
        "Guest memory",
        "bytes",
        (f"qemu_memory_base_bytes{{{WHERE}}}", "at start"),
        (f"qemu_balloon_actual_bytes{{{WHERE}}}", "balloon size"),
        (f"qemu_guest_memory_available_bytes{{{WHERE}}}", "available in the guest"),
        (f"qemu_guest_memory_disk_cache_bytes{{{WHERE}}}", "disk caches"),
    ),
    graph(
        "Guest swap",
        "Bps",
        (rate("qemu_guest_memory_swap_in_bytes_total", WHERE), "in"),
        (rate("qemu_guest_memory_swap_out_bytes_total", WHERE), "out"),
        empty="no guest statistics (allow.guest_stats_interval)",
    ),
    graph(
        "Memory of the QEMU process",
        "bytes",
        (f"qemu_process_resident_bytes{{{WHERE}}}", "resident"),
        (f"qemu_process_swap_bytes{{{WHERE}}}", "swapped out"),
        (f"qemu_cgroup_memory_bytes{{{WHERE}}}", "cgroup"),
        (f"qemu_cgroup_memory_limit_bytes{{{WHERE}}}", "cgroup limit"),
    ),
    graph(
        "Major faults",
        "cps",
        (rate("qemu_guest_memory_major_faults_total", WHERE), "guest"),
        (rate("qemu_process_major_faults_total", WHERE), "QEMU process"),
    ),
)


def net(what: str, legend: str) -> tuple[str, str]:
    """Return the rate of one of the interfaces' counters, with its legend."""
    return rate(f"qemu_net_{what}_total", WHERE), f"{{{{interface}}}} {legend}"


NETWORK = (
    graph("Traffic", "Bps", net("receive_bytes", "received"), net("transmit_bytes", "sent"), empty=NO_TAP),
    graph("Packets", "pps", net("receive_packets", "received"), net("transmit_packets", "sent"), empty=NO_TAP),
    graph(
        "Drops and errors",
        "pps",
        net("receive_drops", "receive drops"),
        net("transmit_drops", "transmit drops"),
        net("receive_errors", "receive errors"),
        net("transmit_errors", "transmit errors"),
        thresholds=((0.001, "orange"),),
        empty=NO_TAP,
    ),
)

JOBS = (
    rows(
        "Jobs",
        {"job": "Job", "type": "Type", "status": "Status"},
        Column("Active", "short", f"sum by (job, type, status) (qemu_job_status{{{WHERE}}})"),
        empty=NO_JOB,
    ),
    graph("Progress", "percentunit", (f"qemu_job_progress_ratio{{{WHERE}}}", "{{job}}"), empty=NO_JOB),
    graph("Speed", "Bps", (f"qemu_job_progress_per_second{{{WHERE}}}", "{{job}}"), empty=NO_JOB),
    graph("Remaining time", "s", (f"qemu_job_remaining_seconds{{{WHERE}}}", "{{job}}"), empty=NO_JOB),
)

VM = Dashboard(
    "qemu-vm",
    "QEMU VM",
    "One VM, on any host.",
    (
        choice(
            "uuid",
            "VM",
            "query_result(qemu_vm_info)",
            regex='/[{,]vm="(?<text>[^"]+)".*[{,]vm_uuid="(?<value>[^"]+)"/',
        ),
    ),
    WHERE,
    {
        "Summary": SUMMARY,
        "CPU": CPU,
        "Disks": DISKS,
        "Disk latency and errors": LATENCY,
        "Memory": MEMORY,
        "Network": NETWORK,
        "Jobs": JOBS,
    },
)
