"""Memory of a guest."""

from agent.model.family import COUNTER, DETAIL, GAUGE, STATE, TEXT, Family, Field, FieldKind, Unit

BALLOON = Family(
    "balloon",
    "query-balloon",
    "Size of the guest's memory after ballooning.",
    (),
    (Field("actual", "actual_bytes", GAUGE, "Size of the guest's RAM in bytes, without the memory in the balloon."),),
    on_change=True,
)

GUEST_MEMORY = Family(
    "guest_memory",
    "qom-get guest-stats",
    "Memory statistics that the guest's balloon driver reports. Absent unless guest-stats-polling-interval is set.",
    (),
    (
        Field(
            "last-update",
            "last_update_timestamp_seconds",
            GAUGE,
            "Time of the guest's last update in seconds since the epoch.",
        ),
        Field(
            "stats.stat-total-memory",
            "total_bytes",
            GAUGE,
            "Size of the memory that the guest's kernel manages, in bytes.",
        ),
        Field("stats.stat-free-memory", "free_bytes", GAUGE, "Size of the guest's unused memory in bytes."),
        Field(
            "stats.stat-available-memory",
            "available_bytes",
            GAUGE,
            "Size of the memory that the guest can use without swapping, in bytes.",
        ),
        Field(
            "stats.stat-disk-caches",
            "disk_cache_bytes",
            GAUGE,
            "Size of the guest's caches that it can reclaim, in bytes (QEMU 2.12).",
        ),
        Field("stats.stat-swap-in", "swap_in_bytes_total", COUNTER, "Total number of bytes that the guest swapped in."),
        Field(
            "stats.stat-swap-out", "swap_out_bytes_total", COUNTER, "Total number of bytes that the guest swapped out."
        ),
        Field(
            "stats.stat-major-faults", "major_faults_total", COUNTER, "Total number of page faults with disk access."
        ),
        Field(
            "stats.stat-minor-faults", "minor_faults_total", COUNTER, "Total number of page faults without disk access."
        ),
        Field(
            "stats.stat-htlb-pgalloc",
            "hugetlb_allocations_total",
            COUNTER,
            "Total number of huge pages that the guest allocated (QEMU 3.0).",
        ),
        Field(
            "stats.stat-htlb-pgfail",
            "hugetlb_failures_total",
            COUNTER,
            "Total number of huge pages that the guest failed to allocate (QEMU 3.0).",
        ),
        Field(
            "stats.stat-oom-kills",
            "oom_kills_total",
            COUNTER,
            "Total number of processes that the guest's OOM killer killed (QEMU 9.2).",
        ),
        Field(
            "stats.stat-alloc-stalls",
            "allocation_stalls_total",
            COUNTER,
            "Total number of memory allocations of the guest that had to wait for reclaim (QEMU 9.2).",
        ),
        Field(
            "stats.stat-async-scans",
            "background_scans_total",
            COUNTER,
            "Total number of pages that the guest scanned for reclaim in the background (QEMU 9.2).",
        ),
        Field(
            "stats.stat-direct-scans",
            "direct_scans_total",
            COUNTER,
            "Total number of pages that the guest scanned for reclaim during an allocation (QEMU 9.2).",
        ),
        Field(
            "stats.stat-async-reclaims",
            "background_reclaims_total",
            COUNTER,
            "Total number of pages that the guest reclaimed in the background (QEMU 9.2).",
        ),
        Field(
            "stats.stat-direct-reclaims",
            "direct_reclaims_total",
            COUNTER,
            "Total number of pages that the guest reclaimed during an allocation (QEMU 9.2).",
        ),
    ),
    unavailable=frozenset({-1, 2**64 - 1}),
)

MEMORY = Family(
    "memory",
    "query-memory-size-summary",
    "Size of the memory that a VM was given (QEMU 2.11).",
    (),
    (
        Field(
            "base-memory", "base_bytes", GAUGE, "Size of the memory that the VM was started with (option -m), in bytes."
        ),
        Field(
            "plugged-memory",
            "plugged_bytes",
            GAUGE,
            "Size of the memory in devices that can be hot-unplugged, in bytes.",
        ),
    ),
    on_change=True,
)

MEMORY_DEVICE = Family(
    "memory_device",
    "query-memory-devices",
    "A memory device: a DIMM, an NVDIMM, virtio-mem, virtio-pmem or hv-balloon.",
    ("device",),
    (
        Field("type", "kind", TEXT, "Type of the device."),
        Field("data.size", "size_bytes", GAUGE, "Size of the memory that the device gives to the guest, in bytes."),
        Field(
            "data.requested-size",
            "requested_bytes",
            GAUGE,
            "Size that the manager requested in bytes; for virtio-mem only (QEMU 5.1).",
        ),
        Field(
            "data.max-size",
            "limit_bytes",
            GAUGE,
            "Maximum size in bytes; for virtio-mem (QEMU 5.1) and hv-balloon (QEMU 8.2) only.",
        ),
        Field(
            "data.block-size",
            "block_bytes",
            GAUGE,
            "Size in bytes of the unit in which the device changes its size; for virtio-mem only (QEMU 5.1).",
        ),
        Field("data.node", "numa_node", GAUGE, "Number of the guest's NUMA node."),
        Field("address", "address", DETAIL, "Physical address of the memory in the guest (addr or memaddr)."),
        Field("data.slot", "slot", DETAIL, "Number of the slot; for DIMMs and NVDIMMs only."),
        Field("data.memdev", "backend", TEXT, "QOM path of the memory backend."),
        Field("data.hotplugged", "hotplugged", FieldKind.FLAG, "Whether the device was hot-plugged."),
    ),
    on_change=True,
)

HV_BALLOON = Family(
    "hv_balloon",
    "query-hv-balloon-status-report",
    "Memory status of a Windows guest, reported through the Hyper-V balloon (QEMU 8.2).",
    (),
    (
        Field("committed", "committed_bytes", GAUGE, "Size of the guest's committed memory in bytes."),
        Field("available", "available_bytes", GAUGE, "Size of the guest's available memory in bytes."),
    ),
    on_change=True,
)

DIRTY_RATE = Family(
    "dirty_rate",
    "query-dirty-rate",
    "Rate at which the guest dirties its memory, if a client measured the rate with calc-dirty-rate (QEMU 5.2).",
    (),
    (
        Field("status", "status", STATE, "Status of the measurement: `measuring` or `measured`."),
        Field("dirty-rate", "bytes_per_second", GAUGE, "Dirty rate in bytes per second.", Unit.MEBIBYTES),
        Field("seconds", "measured_seconds", GAUGE, "Duration of the measurement of the dirty rate in seconds."),
        Field("mode", "mode", TEXT, "Method of the measurement: page-sampling, dirty-ring or dirty-bitmap (QEMU 6.2)."),
    ),
    on_change=True,
)

VCPU_DIRTY = Family(
    "vcpu_dirty",
    "query-dirty-rate and query-vcpu-dirty-limit",
    "Rate at which a vCPU dirties memory, if a client measures (QEMU 6.2) or limits (QEMU 7.1) the rate with the dirty ring.",
    ("vcpu",),
    (
        Field(
            "dirty-rate",
            "bytes_per_second",
            GAUGE,
            "Dirty rate of the last measurement in bytes per second.",
            Unit.MEBIBYTES,
        ),
        Field("limit-rate", "limit_bytes_per_second", GAUGE, "Dirty limit in bytes per second.", Unit.MEBIBYTES),
        Field(
            "current-rate",
            "current_bytes_per_second",
            GAUGE,
            "Current dirty rate under the limit in bytes per second.",
            Unit.MEBIBYTES,
        ),
    ),
)

DUMP = Family(
    "dump",
    "query-dump",
    "The running or the last dump of the guest's memory.",
    (),
    (
        Field("status", "status", STATE, "Status: active, completed or failed."),
        Field("completed", "written_bytes", GAUGE, "Number of bytes of the dump that QEMU has written."),
        Field("total", "size_bytes", GAUGE, "Size of the whole dump in bytes."),
    ),
    on_change=True,
)
