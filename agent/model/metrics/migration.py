"""A VM on its way to another host."""

from agent.model.family import COUNTER, DETAIL, GAUGE, STATE, TEXT, Family, Field, Unit

NS = Unit.NANOSECONDS
MS = Unit.MILLISECONDS

ENDED = frozenset({"none", "completed", "failed", "cancelled"})
"""States in which nothing moves. Any other, one from a future QEMU too, is worth looking at each second."""

MIGRATION = Family(
    "migration",
    "query-migrate",
    "The migration of this VM, as source (all fields) or destination (status only); the last one's figures stay until the next.",
    (),
    (
        Field("status", "status", STATE, "Where the migration stands; none where there was none in this process."),
        Field("ram.transferred", "ram_transferred_bytes_total", COUNTER, "Bytes of RAM sent."),
        Field("ram.remaining", "ram_remaining_bytes", GAUGE, "Bytes of RAM still to send."),
        Field("ram.total", "ram_bytes", GAUGE, "Bytes of RAM the VM has."),
        Field("ram.duplicate", "ram_zero_pages_total", COUNTER, "Pages sent as zero pages."),
        Field("ram.skipped", "ram_skipped_pages_total", COUNTER, "Pages skipped (QEMU before 8.1; always 0)."),
        Field("ram.normal", "ram_normal_pages_total", COUNTER, "Pages sent whole."),
        Field("ram.normal-bytes", "ram_normal_bytes_total", COUNTER, "Bytes of pages sent whole."),
        Field("ram.dirty-pages-rate", "ram_dirty_pages_per_second", GAUGE, "Pages the guest dirties each second."),
        Field("ram.mbps", "throughput_bytes_per_second", GAUGE, "Speed of the migration's stream.", Unit.MEGABITS),
        Field("ram.dirty-sync-count", "passes_total", COUNTER, "Passes over the RAM begun."),
        Field(
            "ram.postcopy-requests", "postcopy_requests_total", COUNTER, "Pages the destination asked for in postcopy."
        ),
        Field("ram.page-size", "ram_page_bytes", GAUGE, "Bytes in one of the pages counted here."),
        Field("ram.multifd-bytes", "multifd_bytes_total", COUNTER, "Bytes sent over multifd channels."),
        Field("ram.pages-per-second", "pages_per_second", GAUGE, "Pages sent each second."),
        Field("ram.precopy-bytes", "precopy_bytes_total", COUNTER, "Bytes sent in precopy (QEMU 7.0)."),
        Field(
            "ram.downtime-bytes", "downtime_bytes_total", COUNTER, "Bytes sent while the guest was stopped (QEMU 7.0)."
        ),
        Field("ram.postcopy-bytes", "postcopy_bytes_total", COUNTER, "Bytes sent in postcopy (QEMU 7.0)."),
        Field(
            "ram.dirty-sync-missed-zero-copy",
            "zero_copy_fallbacks_total",
            COUNTER,
            "Passes where zero-copy had to copy (QEMU 7.1).",
        ),
        Field("remaining", "remaining_bytes", GAUGE, "Bytes of everything still to send (QEMU 11.1)."),
        Field("disk.transferred", "disk_transferred_bytes_total", COUNTER, "Bytes of disk sent (QEMU before 9.1)."),
        Field("disk.remaining", "disk_remaining_bytes", GAUGE, "Bytes of disk still to send (QEMU before 9.1)."),
        Field("disk.total", "disk_bytes", GAUGE, "Bytes of disk to migrate (QEMU before 9.1)."),
        Field("compression.pages", "compressed_pages_total", COUNTER, "Pages sent compressed (QEMU before 9.1)."),
        Field(
            "compression.compressed-size",
            "compressed_bytes_total",
            COUNTER,
            "Bytes that those took once compressed (QEMU before 9.1).",
        ),
        Field(
            "compression.busy",
            "compression_busy_total",
            COUNTER,
            "Pages sent as they are, since no thread was free to compress them (QEMU before 9.1).",
        ),
        Field("vfio.transferred", "vfio_transferred_bytes_total", COUNTER, "Bytes of VFIO device state sent."),
        Field("xbzrle-cache.cache-size", "xbzrle_cache_bytes", GAUGE, "Size of the XBZRLE cache."),
        Field("xbzrle-cache.bytes", "xbzrle_bytes_total", COUNTER, "Bytes sent XBZRLE-encoded."),
        Field("xbzrle-cache.pages", "xbzrle_pages_total", COUNTER, "Pages sent XBZRLE-encoded."),
        Field("xbzrle-cache.cache-miss", "xbzrle_cache_misses_total", COUNTER, "Pages not found in the XBZRLE cache."),
        Field(
            "xbzrle-cache.cache-miss-rate",
            "xbzrle_cache_miss_ratio",
            GAUGE,
            "Share of pages not found in the XBZRLE cache.",
        ),
        Field(
            "xbzrle-cache.encoding-rate",
            "xbzrle_encoding_ratio",
            GAUGE,
            "How many times smaller XBZRLE made its pages.",
        ),
        Field("xbzrle-cache.overflow", "xbzrle_overflows_total", COUNTER, "Pages that XBZRLE could not make smaller."),
        Field("total-time", "elapsed_seconds", GAUGE, "Time since the migration began, or that it took.", MS),
        Field("expected-downtime", "expected_downtime_seconds", GAUGE, "Downtime if the guest were stopped now.", MS),
        Field("downtime", "downtime_seconds", GAUGE, "Time the guest was stopped.", MS),
        Field("setup-time", "setup_seconds", GAUGE, "Time before the first byte.", MS),
        Field(
            "cpu-throttle-percentage",
            "cpu_throttle_ratio",
            GAUGE,
            "How much the guest's vCPUs are slowed.",
            Unit.PERCENT,
        ),
        Field(
            "dirty-limit-throttle-time-per-round",
            "dirty_limit_throttle_seconds",
            GAUGE,
            "Longest time a vCPU was held back in one round (QEMU 8.1).",
            Unit.MICROSECONDS,
        ),
        Field(
            "dirty-limit-ring-full-time",
            "dirty_limit_ring_full_seconds",
            GAUGE,
            "Average time to fill a dirty ring (QEMU 8.1).",
            Unit.MICROSECONDS,
        ),
        Field("postcopy-blocktime", "postcopy_blocked_seconds", GAUGE, "Time all vCPUs were blocked in postcopy.", MS),
        Field(
            "postcopy-vcpu-blocktime",
            "postcopy_vcpu_blocked_milliseconds",
            DETAIL,
            "Milliseconds that each vCPU was blocked in postcopy.",
        ),
        Field(
            "postcopy-latency",
            "postcopy_latency_seconds",
            GAUGE,
            "Average latency of a postcopy fault (QEMU 10.1, unstable).",
            NS,
        ),
        Field(
            "postcopy-non-vcpu-latency",
            "postcopy_other_latency_seconds",
            GAUGE,
            "Average latency of a postcopy fault of none of the vCPUs (QEMU 10.1, unstable).",
            NS,
        ),
        Field(
            "postcopy-latency-dist",
            "postcopy_latency_counts",
            DETAIL,
            "Postcopy faults by latency, each slot twice as long as the one before, from 1 us (QEMU 10.1, unstable).",
        ),
        Field(
            "postcopy-vcpu-latency",
            "postcopy_vcpu_latency_nanoseconds",
            DETAIL,
            "Average latency of each vCPU's postcopy faults (QEMU 10.1, unstable).",
        ),
        Field(
            "left",
            "remaining_seconds",
            GAUGE,
            "How long the RAM that remains takes at this speed, less what the guest dirties; absent while that is as fast.",
        ),
        Field("error-desc", "error", TEXT, "Why it failed, in QEMU's words."),
        Field("blocked-reasons", "blocked_reasons", DETAIL, "Why this VM cannot be migrated (QEMU 6.0)."),
        Field("socket-address", "socket_addresses", DETAIL, "Where the destination listens."),
    ),
    on_change=True,
)

MIGRATION_ENDED = Family(
    "migration.ended",
    "query-migrate",
    "A migration came to its end. Where QEMU's last answer lacks a figure, as it does after a failure, the one before has it.",
    (),
    (
        Field("outcome", "outcome", TEXT, "`completed`, `failed` or `cancelled`."),
        Field("role", "role", TEXT, "`source`, or `destination`, of which QEMU tells no figures."),
        Field("elapsed_seconds", "elapsed_seconds", GAUGE, "How long it took."),
        Field("downtime_seconds", "downtime_seconds", GAUGE, "How long the guest was stopped for it."),
        Field("setup_seconds", "setup_seconds", GAUGE, "How long it took until the first byte."),
        Field("transferred_bytes", "transferred_bytes", GAUGE, "Bytes of RAM, disk and VFIO device state sent."),
        Field("ram_bytes", "ram_bytes", GAUGE, "Bytes of RAM the VM has."),
        Field("passes", "passes", GAUGE, "Passes over the RAM."),
        Field(
            "throughput_bytes_per_second", "throughput_bytes_per_second", GAUGE, "What was sent, by how long it took."
        ),
        Field("postcopy_requests", "postcopy_requests", GAUGE, "Pages the destination asked for in postcopy."),
        Field("cpu_throttle_ratio", "cpu_throttle_ratio", GAUGE, "How much the vCPUs were slowed when last seen."),
        Field("error", "error", TEXT, "Why it failed, in QEMU's words."),
    ),
)
"""A record of its own, `qemu.migration.ended`; it has no series."""
