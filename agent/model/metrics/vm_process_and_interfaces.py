"""Process, threads, cgroup and network interfaces of a VM, read from the host's kernel without a command to QEMU.

The path of a field consists of the file's name and the kernel's name for the field. agent/host/procfs.py names the fields of
/proc/PID/stat.
"""

from agent.model.family import COUNTER, DETAIL, GAUGE, STATE, TEXT, Family, Field, Unit

NS = Unit.NANOSECONDS
US = Unit.MICROSECONDS
TICKS = Unit.TICKS
KB = Unit.KIBIBYTES

_THREAD = (
    Field("known.thread", "thread", DETAIL, "Thread id on the host."),
    Field(
        "schedstat.run", "cpu_seconds_total", COUNTER, "Total time that the thread ran on a host CPU, in seconds.", NS
    ),
    Field(
        "schedstat.delay",
        "run_delay_seconds_total",
        COUNTER,
        "Total time that the thread was ready to run but had no host CPU, in seconds; the guest sees this time as steal.",
        NS,
    ),
    Field(
        "schedstat.slices",
        "timeslices_total",
        COUNTER,
        "Total number of times that the thread was scheduled on a host CPU.",
    ),
    Field(
        "stat.user", "user_seconds_total", COUNTER, "Total time in user mode in seconds, including guest code.", TICKS
    ),
    Field("stat.system", "system_seconds_total", COUNTER, "Total time in the host's kernel in seconds.", TICKS),
    Field(
        "stat.block_io_delay",
        "block_io_delay_seconds_total",
        COUNTER,
        "Total time in seconds that the thread waited for host block devices; 0 if delay accounting is off in the host's kernel.",
        TICKS,
    ),
    Field("stat.processor", "host_cpu", GAUGE, "Number of the host CPU that the thread last ran on."),
    Field("stat.state", "state", STATE, "State of the thread: running, sleeping, disk-sleep, stopped, ..."),
)

VCPU = Family(
    "vcpu",
    "/proc/PID/task/THREAD",
    "The thread of a vCPU: how the host's kernel schedules it.",
    ("vcpu",),
    (
        *_THREAD,
        Field(
            "stat.guest",
            "guest_seconds_total",
            COUNTER,
            "Total time in guest code in seconds; counted by KVM only.",
            TICKS,
        ),
        Field("known.qom_path", "qom_path", TEXT, "QOM path of the vCPU (query-cpus-fast)."),
        Field(
            "known.topology",
            "topology",
            DETAIL,
            "Node, socket, die, core and thread of the vCPU, if the machine has them (query-cpus-fast: props).",
        ),
    ),
    from_host_or_agent=True,
)

IOTHREAD = Family(
    "iothread",
    "/proc/PID/task/THREAD",
    "An I/O thread (iothread object): how the host's kernel schedules it.",
    ("iothread",),
    (
        *_THREAD,
        Field(
            "known.poll_max_ns",
            "poll_max_seconds",
            GAUGE,
            "Maximum polling time before the thread sleeps, in seconds; 0 disables polling (query-iothreads: poll-max-ns).",
            NS,
        ),
        Field(
            "known.poll_grow", "poll_grow", DETAIL, "Growth factor of the polling time (query-iothreads: poll-grow)."
        ),
        Field(
            "known.poll_shrink",
            "poll_shrink",
            DETAIL,
            "Shrink factor of the polling time (query-iothreads: poll-shrink).",
        ),
        Field(
            "known.aio_max_batch",
            "aio_max_batch",
            DETAIL,
            "Maximum number of requests in one batch to the kernel; 0 is QEMU's default (query-iothreads: aio-max-batch).",
        ),
    ),
    from_host_or_agent=True,
)

PROCESS = Family(
    "process",
    "/proc/PID",
    "A VM's QEMU process. Each value is for the whole process, unless the text names the main thread.",
    (),
    (
        Field("known.pid", "pid", DETAIL, "Process id on the host."),
        Field(
            "known.start_seconds",
            "start_timestamp_seconds",
            GAUGE,
            "Start time of the process in seconds since the epoch.",
        ),
        Field("known.cgroup", "cgroup", TEXT, "Path of the process's cgroup."),
        Field(
            "stat.user",
            "user_seconds_total",
            COUNTER,
            "Total time in user mode in seconds, including guest code.",
            TICKS,
        ),
        Field("stat.system", "system_seconds_total", COUNTER, "Total time in the host's kernel in seconds.", TICKS),
        Field(
            "stat.guest",
            "guest_seconds_total",
            COUNTER,
            "Total time in guest code in seconds; counted by KVM only.",
            TICKS,
        ),
        Field("stat.minor_faults", "minor_faults_total", COUNTER, "Total number of page faults without disk access."),
        Field("stat.major_faults", "major_faults_total", COUNTER, "Total number of page faults with disk access."),
        Field("stat.threads", "threads", GAUGE, "Number of threads."),
        Field("stat.state", "state", STATE, "State of the main thread: running, sleeping, disk-sleep, stopped, ..."),
        Field(
            "schedstat.run",
            "main_loop_cpu_seconds_total",
            COUNTER,
            "Total time that the main thread ran on a host CPU, in seconds.",
            NS,
        ),
        Field(
            "schedstat.delay",
            "main_loop_run_delay_seconds_total",
            COUNTER,
            "Total time that the main thread was ready to run but had no host CPU, in seconds.",
            NS,
        ),
        Field(
            "status.voluntary_ctxt_switches",
            "main_loop_voluntary_switches_total",
            COUNTER,
            "Total number of context switches because the main thread waited.",
        ),
        Field(
            "status.nonvoluntary_ctxt_switches",
            "main_loop_involuntary_switches_total",
            COUNTER,
            "Total number of context switches because the main thread was preempted.",
        ),
        Field("status.VmSize", "virtual_bytes", GAUGE, "Size of the address space in bytes.", KB),
        Field(
            "status.VmRSS", "resident_bytes", GAUGE, "Size of resident memory in bytes, huge pages not included.", KB
        ),
        Field("status.RssAnon", "resident_anonymous_bytes", GAUGE, "Size of resident anonymous memory in bytes.", KB),
        Field("status.RssFile", "resident_file_bytes", GAUGE, "Size of resident file mappings in bytes.", KB),
        Field(
            "status.RssShmem",
            "resident_shared_bytes",
            GAUGE,
            "Size of resident shared memory, such as a memfd, in bytes.",
            KB,
        ),
        Field(
            "status.VmHWM",
            "resident_max_bytes",
            GAUGE,
            "Maximum size of resident memory since the start of the process, in bytes.",
            KB,
        ),
        Field("status.VmSwap", "swap_bytes", GAUGE, "Size of swapped-out memory in bytes.", KB),
        Field("status.VmLck", "locked_bytes", GAUGE, "Size of locked memory in bytes.", KB),
        Field("status.HugetlbPages", "hugetlb_bytes", GAUGE, "Size of memory in huge pages in bytes.", KB),
        Field("io.syscr", "read_calls_total", COUNTER, "Total number of read system calls."),
        Field("io.read_bytes", "read_bytes_total", COUNTER, "Total number of bytes read from host storage."),
        Field("io.write_bytes", "write_bytes_total", COUNTER, "Total number of bytes written to host storage."),
        Field(
            "io.cancelled_write_bytes",
            "cancelled_write_bytes_total",
            COUNTER,
            "Total number of bytes that were discarded before they reached storage. `write_bytes_total` includes these bytes.",
        ),
        Field("fd", "open_fds", GAUGE, "Number of open file descriptors; absent without permission to count them."),
    ),
    from_host_or_agent=True,
)

CGROUP = Family(
    "cgroup",
    "/sys/fs/cgroup",
    "The cgroup (version 2) of a VM's process. The values are for all processes in the cgroup. libvirt makes a cgroup for each VM. "
    "Without libvirt, several VMs may share a cgroup.",
    (),
    (
        Field("path", "path", TEXT, "Path of the cgroup."),
        Field(
            "memory.current",
            "memory_bytes",
            GAUGE,
            "Size of memory charged to the cgroup in bytes, including page cache.",
        ),
        Field("memory.max", "memory_limit_bytes", GAUGE, "Memory limit in bytes; absent without a limit."),
        Field("memory.swap.current", "swap_bytes", GAUGE, "Size of swapped-out memory in bytes."),
        Field(
            "memory.events.high",
            "memory_throttled_total",
            COUNTER,
            "Total number of times that the cgroup was throttled because it exceeded memory.high.",
        ),
        Field(
            "memory.events.max",
            "memory_limit_reached_total",
            COUNTER,
            "Total number of times that the cgroup was about to exceed its memory limit, memory.max.",
        ),
        Field(
            "memory.events.oom",
            "oom_total",
            COUNTER,
            "Total number of times that an allocation was about to fail because the cgroup was at its memory limit.",
        ),
        Field(
            "memory.events.oom_kill",
            "oom_kills_total",
            COUNTER,
            "Total number of processes of the cgroup that the OOM killer killed.",
        ),
        Field(
            "cpu.stat.usage_usec",
            "cpu_seconds_total",
            COUNTER,
            "Total CPU time of all processes of the cgroup in seconds.",
            US,
        ),
        Field(
            "cpu.stat.nr_periods",
            "cpu_periods_total",
            COUNTER,
            "Total number of periods in which the CPU quota (cpu.max) was enforced.",
        ),
        Field(
            "cpu.stat.nr_throttled",
            "cpu_throttled_periods_total",
            COUNTER,
            "Total number of periods in which the CPU quota throttled the cgroup.",
        ),
        Field(
            "cpu.stat.throttled_usec",
            "cpu_throttled_seconds_total",
            COUNTER,
            "Total time that the CPU quota throttled the cgroup, in seconds.",
            US,
        ),
        Field(
            "cpu.pressure.some",
            "pressure_cpu_waiting_seconds_total",
            COUNTER,
            "Total time that at least one process of the cgroup waited for a CPU, in seconds (PSI: some).",
            US,
        ),
        Field(
            "memory.pressure.some",
            "pressure_memory_waiting_seconds_total",
            COUNTER,
            "Total time that at least one process of the cgroup waited for memory, in seconds (PSI: some).",
            US,
        ),
        Field(
            "memory.pressure.full",
            "pressure_memory_stalled_seconds_total",
            COUNTER,
            "Total time that all processes of the cgroup waited for memory at once, in seconds (PSI: full).",
            US,
        ),
        Field(
            "io.pressure.some",
            "pressure_io_waiting_seconds_total",
            COUNTER,
            "Total time that at least one process of the cgroup waited for I/O, in seconds (PSI: some).",
            US,
        ),
        Field(
            "io.pressure.full",
            "pressure_io_stalled_seconds_total",
            COUNTER,
            "Total time that all processes of the cgroup waited for I/O at once, in seconds (PSI: full).",
            US,
        ),
    ),
    from_host_or_agent=True,
)

NET = Family(
    "net",
    "/sys/class/net/INTERFACE/statistics; /proc/PID/net/dev if the process has its own network namespace; rtnetlink for a VF",
    "A tap or macvtap interface of a VM's process, or a virtual function (SR-IOV VF) passed through to it, counted by the host. "
    "`receive` and `transmit` are from the guest's side. The counters of a VF are at most one polling interval older than the sample.",
    ("interface",),
    (
        Field("known.kind", "kind", TEXT, "Type of the interface: tap, macvtap or vf."),
        Field("known.host_address", "host_address", TEXT, "PCI address of a VF on the host."),
        Field(
            "known.mac",
            "mac",
            TEXT,
            "MAC address of the guest's network device, or the address that the host set for a VF; absent if it is unknown.",
        ),
        Field("known.device", "device", TEXT, "Id of the guest's network device."),
        Field("known.netdev", "netdev", TEXT, "Id of the network backend (netdev) of the device."),
        Field("tx_bytes", "receive_bytes_total", COUNTER, "Total number of bytes sent to the guest."),
        Field("tx_packets", "receive_packets_total", COUNTER, "Total number of packets sent to the guest."),
        Field(
            "tx_errors",
            "receive_errors_total",
            COUNTER,
            "Total number of packets to the guest that the host failed to send.",
        ),
        Field(
            "tx_dropped",
            "receive_drops_total",
            COUNTER,
            "Total number of packets to the guest that the host dropped, because the guest did not read them in time.",
        ),
        Field("rx_bytes", "transmit_bytes_total", COUNTER, "Total number of bytes that the guest sent."),
        Field("rx_packets", "transmit_packets_total", COUNTER, "Total number of packets that the guest sent."),
        Field(
            "rx_errors",
            "transmit_errors_total",
            COUNTER,
            "Total number of packets from the guest that the host failed to receive.",
        ),
        Field(
            "rx_dropped",
            "transmit_drops_total",
            COUNTER,
            "Total number of packets from the guest that the host dropped.",
        ),
    ),
    from_host_or_agent=True,
)
