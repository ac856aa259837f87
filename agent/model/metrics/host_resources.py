"""The host's CPUs and memory, and the sums that its VMs use. The samples belong to the host, and not to one VM.

Each value explains what VMs use or wait for. node_exporter has many more values of a host. docs/reference/host.md has the reason for each
value.
"""

from agent.model.family import COUNTER, DETAIL, FLAG, GAUGE, Family, Field, Unit

US = Unit.MICROSECONDS
KB = Unit.KIBIBYTES
PAGES = Unit.PAGES

HOST = Family(
    "host",
    "/proc, /sys and the latest samples of all VMs",
    "The host's CPUs and memory, how much of them the VMs use, and how long processes wait for them.",
    (),
    (
        Field(
            "sum.running_vms",
            "running_vms",
            GAUGE,
            "Number of VMs on the host whose guest runs. A VM with a monitor on TCP counts, here and in the sums, only if its process is "
            "known on this host.",
        ),
        Field(
            "sum.unknown_vms",
            "unknown_vms",
            GAUGE,
            "Number of VMs on the host that are missing in the sums, because their vCPUs or memory are unknown. If this number is above 0, "
            "the sums and ratios are lower bounds.",
        ),
        Field("sum.vcpus", "vcpus", GAUGE, "Number of vCPUs of the VMs on the host whose guest runs."),
        Field("cpu.online", "online_cpus", GAUGE, "Number of CPUs that are online."),
        Field(
            "sum.vcpu_commitment",
            "vcpu_commitment_ratio",
            GAUGE,
            "Number of vCPUs divided by the number of online CPUs.",
        ),
        Field(
            "sum.guest_memory",
            "guest_memory_bytes",
            GAUGE,
            "Size of the memory of all guests on the host in bytes, including paused guests and plugged memory. A balloon does not reduce "
            "it.",
        ),
        Field("meminfo.MemTotal", "memory_bytes", GAUGE, "Size of the host's memory in bytes.", KB),
        Field(
            "sum.memory_commitment",
            "memory_commitment_ratio",
            GAUGE,
            "Memory of all guests divided by the host's memory. Above 1, the host cannot hold the memory of all guests at once.",
        ),
        Field(
            "meminfo.MemAvailable",
            "memory_available_bytes",
            GAUGE,
            "Size in bytes of the memory that processes can still allocate without swapping.",
            KB,
        ),
        Field("sum.hugetlb", "vm_hugetlb_bytes", GAUGE, "Size in bytes of the huge pages that VMs use."),
        Field("sum.swap", "vm_swap_bytes", GAUGE, "Size in bytes of the memory of VMs that is swapped out."),
        Field("meminfo.SwapTotal", "swap_bytes", GAUGE, "Size of the host's swap space in bytes; 0 without swap.", KB),
        Field("meminfo.SwapFree", "swap_free_bytes", GAUGE, "Size of free swap space in bytes.", KB),
        Field("vmstat.pswpin", "swap_in_bytes_total", COUNTER, "Total number of bytes read from swap.", PAGES),
        Field("vmstat.pswpout", "swap_out_bytes_total", COUNTER, "Total number of bytes written to swap.", PAGES),
        Field("ksm.run", "ksm_running", FLAG, "Whether KSM merges equal pages of VMs."),
        Field(
            "ksm.pages_sharing",
            "ksm_saved_bytes",
            GAUGE,
            "Size in bytes of the memory that KSM saves. When merged pages begin to differ, the VMs need this memory again.",
            PAGES,
        ),
        Field(
            "loadavg.1", "load_1m", GAUGE, "Load average over one minute: tasks that run or wait for a CPU or for I/O."
        ),
        Field(
            "pressure.cpu.some",
            "pressure_cpu_waiting_seconds_total",
            COUNTER,
            "Total time that at least one task of the host waited for a CPU, in seconds (PSI: some).",
            US,
        ),
        Field(
            "pressure.memory.some",
            "pressure_memory_waiting_seconds_total",
            COUNTER,
            "Total time that at least one task of the host waited for memory, in seconds (PSI: some).",
            US,
        ),
        Field(
            "pressure.memory.full",
            "pressure_memory_stalled_seconds_total",
            COUNTER,
            "Total time that all non-idle tasks of the host waited for memory at once, in seconds (PSI: full).",
            US,
        ),
        Field(
            "pressure.io.some",
            "pressure_io_waiting_seconds_total",
            COUNTER,
            "Total time that at least one task of the host waited for I/O, in seconds (PSI: some).",
            US,
        ),
        Field(
            "pressure.io.full",
            "pressure_io_stalled_seconds_total",
            COUNTER,
            "Total time that all non-idle tasks of the host waited for I/O at once, in seconds (PSI: full).",
            US,
        ),
        Field(
            "sum.contention",
            "contention",
            DETAIL,
            "For each resource that VMs wait for, the VMs that wait longest and the VMs that use most of it. Absent if no VM waits.",
        ),
    ),
    per_host=True,
)

HOST_HUGEPAGES = Family(
    "host_hugepages",
    "/sys/kernel/mm/hugepages",
    "The host's pool of huge pages of one size.",
    ("size",),
    (
        Field("nr_hugepages", "pool_bytes", GAUGE, "Size of the pool in bytes."),
        Field("free_hugepages", "free_bytes", GAUGE, "Size in bytes of the free pages, including reserved pages."),
        Field(
            "resv_hugepages",
            "reserved_bytes",
            GAUGE,
            "Size in bytes of the free pages that are reserved for a process, such as a VM whose memory is not preallocated.",
        ),
    ),
    per_host=True,
)
