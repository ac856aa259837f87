"""The guest's memory."""

from agent.model.family import COUNTER, GAUGE, STATE, TEXT, Family, Field, Kind, Unit

BALLOON = Family(
    "balloon",
    "query-balloon",
    "The guest's memory as the balloon leaves it.",
    (),
    (Field("actual", "actual_bytes", GAUGE, "RAM less what the balloon holds."),),
    on_change=True,
)

GUEST_MEMORY = Family(
    "guest_memory",
    "qom-get guest-stats",
    "What the guest's balloon driver says of its memory; only where guest-stats-polling-interval is set.",
    (),
    (
        Field("last-update", "last_update_timestamp_seconds", GAUGE, "When the guest last told."),
        Field("stats.stat-total-memory", "total_bytes", GAUGE, "Memory the guest's kernel manages."),
        Field("stats.stat-free-memory", "free_bytes", GAUGE, "Memory the guest does not use at all."),
        Field("stats.stat-available-memory", "available_bytes", GAUGE, "Memory the guest could use without swapping."),
        Field(
            "stats.stat-disk-caches",
            "disk_cache_bytes",
            GAUGE,
            "Memory the guest could get back from its caches (QEMU 2.12).",
        ),
        Field("stats.stat-swap-in", "swap_in_bytes_total", COUNTER, "Bytes the guest swapped in."),
        Field("stats.stat-swap-out", "swap_out_bytes_total", COUNTER, "Bytes the guest swapped out."),
        Field("stats.stat-major-faults", "major_faults_total", COUNTER, "Page faults that needed the disk."),
        Field("stats.stat-minor-faults", "minor_faults_total", COUNTER, "Page faults that did not."),
        Field("stats.stat-htlb-pgalloc", "hugetlb_allocations_total", COUNTER, "Huge pages allocated (QEMU 3.0)."),
        Field(
            "stats.stat-htlb-pgfail",
            "hugetlb_failures_total",
            COUNTER,
            "Huge pages that could not be allocated (QEMU 3.0).",
        ),
        Field(
            "stats.stat-oom-kills",
            "oom_kills_total",
            COUNTER,
            "Processes the guest killed for want of memory (QEMU 9.2).",
        ),
        Field(
            "stats.stat-alloc-stalls", "allocation_stalls_total", COUNTER, "Allocations that had to wait (QEMU 9.2)."
        ),
        Field(
            "stats.stat-async-scans", "background_scans_total", COUNTER, "Pages scanned in the background (QEMU 9.2)."
        ),
        Field("stats.stat-direct-scans", "direct_scans_total", COUNTER, "Pages scanned by an allocation (QEMU 9.2)."),
        Field(
            "stats.stat-async-reclaims",
            "background_reclaims_total",
            COUNTER,
            "Pages reclaimed in the background (QEMU 9.2).",
        ),
        Field(
            "stats.stat-direct-reclaims",
            "direct_reclaims_total",
            COUNTER,
            "Pages reclaimed by an allocation (QEMU 9.2).",
        ),
    ),
    unavailable=frozenset({-1, 2**64 - 1}),
)

MEMORY = Family(
    "memory",
    "query-memory-size-summary",
    "The memory that a VM was given (QEMU 2.11).",
    (),
    (
        Field("base-memory", "base_bytes", GAUGE, "The memory it was started with."),
        Field("plugged-memory", "plugged_bytes", GAUGE, "The memory in devices that can be unplugged."),
    ),
    on_change=True,
)

MEMORY_DEVICE = Family(
    "memory_device",
    "query-memory-devices",
    "A memory device: a DIMM, an NVDIMM, virtio-mem, virtio-pmem, hv-balloon.",
    ("device",),
    (
        Field("type", "kind", TEXT, "What it is."),
        Field("data.size", "size_bytes", GAUGE, "How much memory it gives the guest now."),
        Field("data.requested-size", "requested_bytes", GAUGE, "How much it is to give; virtio-mem (QEMU 5.1)."),
        Field(
            "data.max-size",
            "limit_bytes",
            GAUGE,
            "The most it can give; virtio-mem (QEMU 5.1) and hv-balloon (QEMU 8.2).",
        ),
        Field("data.block-size", "block_bytes", GAUGE, "How much it gives or takes at a time; virtio-mem (QEMU 5.1)."),
        Field("data.node", "numa_node", GAUGE, "The guest's NUMA node that it belongs to."),
        Field("data.memdev", "backend", TEXT, "The QOM path of the host's memory under it."),
        Field("data.hotplugged", "hotplugged", Kind.FLAG, "Whether it was plugged while the VM ran."),
    ),
    on_change=True,
)

HV_BALLOON = Family(
    "hv_balloon",
    "query-hv-balloon-status-report",
    "What a Windows guest says of its memory, through Hyper-V's balloon (QEMU 8.2).",
    (),
    (
        Field("committed", "committed_bytes", GAUGE, "Memory that the guest has committed."),
        Field("available", "available_bytes", GAUGE, "Memory that the guest has to spare."),
    ),
    on_change=True,
)

DIRTY_RATE = Family(
    "dirty_rate",
    "query-dirty-rate",
    "How fast the guest dirties its memory, where somebody had it measured with calc-dirty-rate (QEMU 5.2).",
    (),
    (
        Field("status", "status", STATE, "Whether it is being measured, or was."),
        Field("dirty-rate", "bytes_per_second", GAUGE, "What was dirtied each second.", Unit.MEBIBYTES),
        Field("seconds", "measured_seconds", GAUGE, "For how long it was measured."),
        Field("mode", "mode", TEXT, "How: page-sampling, dirty-ring, dirty-bitmap (QEMU 6.2)."),
    ),
    on_change=True,
)

VCPU_DIRTY = Family(
    "vcpu_dirty",
    "query-dirty-rate and query-vcpu-dirty-limit",
    "How fast a vCPU dirties memory, where somebody measures or limits it with the dirty ring (QEMU 6.2, 7.1).",
    ("vcpu",),
    (
        Field(
            "dirty-rate", "bytes_per_second", GAUGE, "What it dirtied each second when it was measured.", Unit.MEBIBYTES
        ),
        Field("limit-rate", "limit_bytes_per_second", GAUGE, "The most it may dirty.", Unit.MEBIBYTES),
        Field("current-rate", "current_bytes_per_second", GAUGE, "What it dirties under that limit.", Unit.MEBIBYTES),
    ),
)

DUMP = Family(
    "dump",
    "query-dump",
    "The dump of the guest's memory that runs, or the last one.",
    (),
    (
        Field("status", "status", STATE, "Where it stands: active, completed, failed."),
        Field("completed", "written_bytes", GAUGE, "How much is written."),
        Field("total", "size_bytes", GAUGE, "How much there is to write."),
    ),
    on_change=True,
)
