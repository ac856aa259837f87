"""The guest's memory."""

from agent.catalogue.model import Family, Field, Kind

COUNTER = Kind.COUNTER
GAUGE = Kind.GAUGE

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
