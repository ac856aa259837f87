"""What the host's kernel says of a VM's process, its threads, its cgroup and its network interfaces. No question goes to QEMU for it.

A path names the file it is read from, and in it the kernel's field: those of /proc/PID/stat as in agent/host/procfs.py.
"""

from agent.model.family import COUNTER, DETAIL, GAUGE, STATE, TEXT, Family, Field, Unit

NS = Unit.NANOSECONDS
US = Unit.MICROSECONDS
TICKS = Unit.TICKS
KB = Unit.KIBIBYTES

_THREAD = (
    Field("known.thread", "thread", DETAIL, "The thread's id on this host."),
    Field("schedstat.run", "cpu_seconds_total", COUNTER, "Time its thread ran on a host CPU.", NS),
    Field(
        "schedstat.delay",
        "run_delay_seconds_total",
        COUNTER,
        "Time its thread was ready to run but had no host CPU: what a guest sees as steal.",
        NS,
    ),
    Field("schedstat.slices", "timeslices_total", COUNTER, "How often its thread was put on a host CPU."),
    Field("stat.user", "user_seconds_total", COUNTER, "Time outside the kernel, time in the guest included.", TICKS),
    Field("stat.system", "system_seconds_total", COUNTER, "Time in the host's kernel.", TICKS),
    Field(
        "stat.block_io_delay",
        "block_io_delay_seconds_total",
        COUNTER,
        "Time its thread waited for the host's block devices; 0 where the kernel's delay accounting is off.",
        TICKS,
    ),
    Field("stat.processor", "host_cpu", GAUGE, "The number of the host CPU that its thread ran on last."),
    Field("stat.state", "state", STATE, "Its thread's state: running, sleeping, disk-sleep, stopped, ..."),
)

VCPU = Family(
    "vcpu",
    "/proc/PID/task/THREAD",
    "A vCPU's thread, as the host's scheduler sees it.",
    ("vcpu",),
    (
        *_THREAD,
        Field(
            "stat.guest",
            "guest_seconds_total",
            COUNTER,
            "Time in the guest's own code; counted by KVM only.",
            TICKS,
        ),
        Field("known.qom_path", "qom_path", TEXT, "The vCPU's QOM path (query-cpus-fast)."),
        Field(
            "known.topology",
            "topology",
            DETAIL,
            "Its node, socket, die, core and thread, those that the machine has (query-cpus-fast: props).",
        ),
    ),
    host_only=True,
)

IOTHREAD = Family(
    "iothread",
    "/proc/PID/task/THREAD",
    "An iothread, as the host's scheduler sees it.",
    ("iothread",),
    (
        *_THREAD,
        Field(
            "known.poll_max_ns",
            "poll_max_seconds",
            GAUGE,
            "How long it polls at most before it sleeps; 0 is never (query-iothreads: poll-max-ns).",
            NS,
        ),
        Field("known.poll_grow", "poll_grow", DETAIL, "By what its polling grows (query-iothreads: poll-grow)."),
        Field(
            "known.poll_shrink", "poll_shrink", DETAIL, "By what its polling shrinks (query-iothreads: poll-shrink)."
        ),
        Field(
            "known.aio_max_batch",
            "aio_max_batch",
            DETAIL,
            "Most requests it hands to the kernel at a time; 0 is QEMU's default (query-iothreads: aio-max-batch).",
        ),
    ),
    host_only=True,
)

PROCESS = Family(
    "process",
    "/proc/PID",
    "A VM's QEMU process, all its threads together unless a field says otherwise.",
    (),
    (
        Field("known.pid", "pid", DETAIL, "Its process id on this host."),
        Field("known.start_seconds", "start_timestamp_seconds", GAUGE, "When it was started."),
        Field("known.cgroup", "cgroup", TEXT, "The cgroup it is in."),
        Field("stat.user", "user_seconds_total", COUNTER, "Time outside the kernel, guest code included.", TICKS),
        Field("stat.system", "system_seconds_total", COUNTER, "Time in the host's kernel.", TICKS),
        Field("stat.guest", "guest_seconds_total", COUNTER, "Time in guest code; counted by KVM only.", TICKS),
        Field("stat.minor_faults", "minor_faults_total", COUNTER, "Page faults that needed no disk."),
        Field("stat.major_faults", "major_faults_total", COUNTER, "Page faults that needed the disk."),
        Field("stat.threads", "threads", GAUGE, "How many threads it has."),
        Field("stat.state", "state", STATE, "Its main thread's state: running, sleeping, disk-sleep, stopped, ..."),
        Field("schedstat.run", "main_loop_cpu_seconds_total", COUNTER, "Time its main thread ran on a host CPU.", NS),
        Field(
            "schedstat.delay",
            "main_loop_run_delay_seconds_total",
            COUNTER,
            "Time its main thread was ready to run but had no host CPU.",
            NS,
        ),
        Field(
            "status.voluntary_ctxt_switches",
            "main_loop_voluntary_switches_total",
            COUNTER,
            "How often its main thread gave a host CPU up to wait.",
        ),
        Field(
            "status.nonvoluntary_ctxt_switches",
            "main_loop_involuntary_switches_total",
            COUNTER,
            "How often its main thread was taken off a host CPU.",
        ),
        Field("status.VmSize", "virtual_bytes", GAUGE, "Address space.", KB),
        Field("status.VmRSS", "resident_bytes", GAUGE, "Memory it has on the host; huge pages are not in it.", KB),
        Field("status.RssAnon", "resident_anonymous_bytes", GAUGE, "Of that, anonymous memory.", KB),
        Field("status.RssFile", "resident_file_bytes", GAUGE, "Of that, files mapped.", KB),
        Field("status.RssShmem", "resident_shared_bytes", GAUGE, "Of that, shared memory, such as a memfd.", KB),
        Field("status.VmHWM", "resident_max_bytes", GAUGE, "The most it ever had resident.", KB),
        Field("status.VmSwap", "swap_bytes", GAUGE, "Memory swapped out by the host.", KB),
        Field("status.VmLck", "locked_bytes", GAUGE, "Memory locked.", KB),
        Field("status.HugetlbPages", "hugetlb_bytes", GAUGE, "Memory in huge pages.", KB),
        Field("io.syscr", "read_calls_total", COUNTER, "Reads that it asked the host's kernel for."),
        Field("io.read_bytes", "read_bytes_total", COUNTER, "Bytes it had the host's storage read."),
        Field("io.write_bytes", "write_bytes_total", COUNTER, "Bytes it had the host's storage write."),
        Field(
            "io.cancelled_write_bytes",
            "cancelled_write_bytes_total",
            COUNTER,
            "Bytes counted as written that were thrown away before they were.",
        ),
        Field("fd", "open_files", GAUGE, "How many file descriptors it has open; where permitted."),
    ),
    host_only=True,
)

CGROUP = Family(
    "cgroup",
    "/sys/fs/cgroup",
    "The cgroup (version 2) that a VM's process is in, with all that is in it: the VM's own under libvirt, not everywhere else.",
    (),
    (
        Field("path", "path", TEXT, "The cgroup."),
        Field("memory.current", "memory_bytes", GAUGE, "Memory charged to it, page cache included."),
        Field("memory.max", "memory_limit_bytes", GAUGE, "The most it may have; absent where there is no limit."),
        Field("memory.swap.current", "swap_bytes", GAUGE, "Memory of it that is swapped out."),
        Field("memory.events.high", "memory_high_total", COUNTER, "How often it was slowed for passing memory.high."),
        Field("memory.events.max", "memory_max_total", COUNTER, "How often it was at its limit."),
        Field("memory.events.oom", "oom_total", COUNTER, "How often memory could not be had."),
        Field("memory.events.oom_kill", "oom_kills_total", COUNTER, "Processes killed in it for want of memory."),
        Field("cpu.stat.usage_usec", "cpu_seconds_total", COUNTER, "CPU time.", US),
        Field("cpu.stat.nr_periods", "cpu_periods_total", COUNTER, "Periods in which its CPU quota was watched."),
        Field("cpu.stat.nr_throttled", "cpu_throttled_periods_total", COUNTER, "Periods in which it was throttled."),
        Field("cpu.stat.throttled_usec", "cpu_throttled_seconds_total", COUNTER, "Time it was throttled.", US),
        Field("cpu.pressure.some", "cpu_pressure_seconds_total", COUNTER, "Time some task waited for a CPU.", US),
        Field(
            "memory.pressure.some", "memory_pressure_seconds_total", COUNTER, "Time some task waited for memory.", US
        ),
        Field("memory.pressure.full", "memory_stall_seconds_total", COUNTER, "Time all tasks waited for memory.", US),
        Field("io.pressure.some", "io_pressure_seconds_total", COUNTER, "Time some task waited for I/O.", US),
        Field("io.pressure.full", "io_stall_seconds_total", COUNTER, "Time all tasks waited for I/O.", US),
    ),
    host_only=True,
)

NET = Family(
    "net",
    "/sys/class/net/INTERFACE/statistics, or /proc/PID/net/dev where the process has a network of its own",
    "A tap or macvtap that a VM's process has open, counted by the host and told as the guest sees it: what the guest receives is "
    "`receive`.",
    ("interface",),
    (
        Field("known.kind", "kind", TEXT, "What it is: tap or macvtap."),
        Field("known.mac", "mac", TEXT, "The guest's MAC address, where a device of the guest was found to have it."),
        Field("known.device", "device", TEXT, "That device's id."),
        Field("known.netdev", "netdev", TEXT, "The id of that device's network backend."),
        Field("tx_bytes", "receive_bytes_total", COUNTER, "Bytes the guest was sent."),
        Field("tx_packets", "receive_packets_total", COUNTER, "Packets the guest was sent."),
        Field("tx_errors", "receive_errors_total", COUNTER, "Packets for the guest that met an error on the host."),
        Field(
            "tx_dropped",
            "receive_drops_total",
            COUNTER,
            "Packets for the guest that were dropped, since it did not take them in time.",
        ),
        Field("rx_bytes", "transmit_bytes_total", COUNTER, "Bytes the guest sent."),
        Field("rx_packets", "transmit_packets_total", COUNTER, "Packets the guest sent."),
        Field("rx_errors", "transmit_errors_total", COUNTER, "Packets from the guest that met an error on the host."),
        Field("rx_dropped", "transmit_drops_total", COUNTER, "Packets from the guest that the host dropped."),
    ),
    host_only=True,
)
