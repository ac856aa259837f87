"""One VM, wherever it runs."""

from dashboards.panels import Column, Dashboard, choice, each, graph, number, rate, rows, states

WHERE = 'vm_uuid="$uuid"'
DISK = "{{device}}"
NO_TAP = "it has no tap"
NO_JOB = "no job is under way"


def block(what: str) -> str:
    """Return how fast one of the disks' counters grows."""
    return rate(f"qemu_block_{what}_total", WHERE)


def quantile(direction: str) -> str:
    """Return how long all but a hundredth of a disk's requests took at most."""
    buckets = rate(f"qemu_block_{direction}_latency_seconds_bucket", WHERE, "device, le")
    return f"histogram_quantile(0.99, {buckets})"


def took(one: str, many: str) -> str:
    """Return how long one request took."""
    return each(f"qemu_block_{one}_seconds_total", f"qemu_block_{many}_total", WHERE)


GLANCE = (
    states(
        "Answers",
        {0: ("overdue", "red"), 1: ("in time", "green")},
        (f"qemu_vm_up{{{WHERE}}}", "{{instance}}"),
        help="A question to QEMU that is overdue means that it hangs, on storage most often.",
    ),
    states(
        "Runs",
        {0: ("stands still", "orange"), 1: ("runs", "green")},
        (f"qemu_runstate_running{{{WHERE}}}", "{{instance}}"),
    ),
    rows(
        "What it is",
        {
            "vm": "VM",
            "instance": "Host",
            "machine": "Machine",
            "qemu_version": "QEMU",
            "accelerator": "Accelerator",
            "pid": "Process",
        },
        Column(
            "Since",
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
        help="The share of time that a vCPU was ready to run and had no host CPU.",
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
        "Time of one request",
        "s",
        (took("read", "reads"), f"{DISK} read"),
        (took("write", "writes"), f"{DISK} write"),
        (took("flush", "flushes"), f"{DISK} flush"),
        thresholds=((0.1, "orange"),),
        help="On average, as QEMU counts it: from when the guest asked until it was told.",
    ),
    graph(
        "99 of 100 requests took at most",
        "s",
        (quantile("read"), f"{DISK} read"),
        (quantile("write"), f"{DISK} write"),
        thresholds=((0.1, "orange"),),
        empty="nobody set its bins (block-latency-histogram-set)",
    ),
    graph(
        "Failed",
        "iops",
        (block("failed_reads"), f"{DISK} reads"),
        (block("failed_writes"), f"{DISK} writes"),
        (block("failed_flushes"), f"{DISK} flushes"),
        thresholds=((0.001, "red"),),
        help="What werror=stop holds back is no failure: such a guest stands still instead.",
    ),
    graph(
        "Headroom",
        "bytes",
        (f"qemu_block_space_free_bytes{{{WHERE}}}", DISK),
        empty="it has no thin disk",
    ),
)

MEMORY = (
    graph(
        "Memory of the guest",
        "bytes",
        (f"qemu_memory_base_bytes{{{WHERE}}}", "started with"),
        (f"qemu_balloon_actual_bytes{{{WHERE}}}", "left by the balloon"),
        (f"qemu_guest_memory_available_bytes{{{WHERE}}}", "available in the guest"),
        (f"qemu_guest_memory_disk_cache_bytes{{{WHERE}}}", "its caches"),
    ),
    graph(
        "Swapped by the guest",
        "Bps",
        (rate("qemu_guest_memory_swap_in_bytes_total", WHERE), "in"),
        (rate("qemu_guest_memory_swap_out_bytes_total", WHERE), "out"),
        empty="the guest does not tell (allow.guest_stats_interval)",
    ),
    graph(
        "Memory of the process",
        "bytes",
        (f"qemu_process_resident_bytes{{{WHERE}}}", "resident"),
        (f"qemu_process_swap_bytes{{{WHERE}}}", "swapped out"),
        (f"qemu_cgroup_memory_bytes{{{WHERE}}}", "charged to its cgroup"),
        (f"qemu_cgroup_memory_limit_bytes{{{WHERE}}}", "its cgroup's limit"),
    ),
    graph(
        "Major faults",
        "cps",
        (rate("qemu_guest_memory_major_faults_total", WHERE), "in the guest"),
        (rate("qemu_process_major_faults_total", WHERE), "of the process"),
    ),
)


def net(what: str, legend: str) -> tuple[str, str]:
    """Return how fast one of the interfaces' counters grows, and its legend."""
    return rate(f"qemu_net_{what}_total", WHERE), f"{{{{interface}}}} {legend}"


NETWORK = (
    graph("Traffic", "Bps", net("receive_bytes", "received"), net("transmit_bytes", "sent"), empty=NO_TAP),
    graph("Packets", "pps", net("receive_packets", "received"), net("transmit_packets", "sent"), empty=NO_TAP),
    graph(
        "Drops and errors",
        "pps",
        net("receive_drops", "not received in time"),
        net("transmit_drops", "sent and dropped"),
        net("receive_errors", "receive errors"),
        net("transmit_errors", "send errors"),
        thresholds=((0.001, "orange"),),
        empty=NO_TAP,
    ),
)

JOBS = (
    rows(
        "Jobs",
        {"job": "Job", "type": "Type", "status": "Status"},
        Column("Under way", "short", f"sum by (job, type, status) (qemu_job_status{{{WHERE}}})"),
        empty=NO_JOB,
    ),
    graph("Done", "percentunit", (f"qemu_job_progress_ratio{{{WHERE}}}", "{{job}}"), empty=NO_JOB),
    graph("Speed", "Bps", (f"qemu_job_progress_per_second{{{WHERE}}}", "{{job}}"), empty=NO_JOB),
    graph("Left", "s", (f"qemu_job_remaining_seconds{{{WHERE}}}", "{{job}}"), empty=NO_JOB),
)

VM = Dashboard(
    "qemu-vm",
    "QEMU VM",
    "One VM, on whichever of the hosts it runs.",
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
        "At a glance": GLANCE,
        "CPU": CPU,
        "Disks": DISKS,
        "How disks do": LATENCY,
        "Memory": MEMORY,
        "Network": NETWORK,
        "Jobs": JOBS,
    },
)
