"""Migration of a VM to another host."""

from agent.model.family import COUNTER, DETAIL, GAUGE, STATE, TEXT, Family, Field, Unit

NS = Unit.NANOSECONDS
MS = Unit.MILLISECONDS

INACTIVE_STATUSES = frozenset({"none", "completed", "failed", "cancelled"})
"""Values of `status` while no migration is in progress. With any other value, the agent polls at `intervals.migrations_and_jobs`."""

MIGRATION = Family(
    "migration",
    "query-migrate",
    "The current or last migration of this VM. QEMU reports most fields only at the source. At the destination, QEMU reports the status, "
    "the addresses, the error, and the times of postcopy.",
    (),
    (
        Field(
            "status",
            "status",
            STATE,
            "QEMU's MigrationStatus: none, setup, active, completed, failed, ...; `none` if this process has not been migrated.",
        ),
        Field("ram.transferred", "ram_transferred_bytes_total", COUNTER, "Total number of bytes of RAM sent."),
        Field("ram.remaining", "ram_remaining_bytes", GAUGE, "Number of bytes of RAM left to send."),
        Field("ram.total", "ram_bytes", GAUGE, "Size of the VM's RAM in bytes."),
        Field(
            "ram.duplicate",
            "ram_zero_pages_total",
            COUNTER,
            "Total number of pages that contained only zeros; QEMU sends no content for them.",
        ),
        Field(
            "ram.skipped",
            "ram_skipped_pages_total",
            COUNTER,
            "Total number of pages skipped (QEMU before 8.1; always 0).",
        ),
        Field("ram.normal", "ram_normal_pages_total", COUNTER, "Total number of pages sent with their whole content."),
        Field(
            "ram.normal-bytes",
            "ram_normal_bytes_total",
            COUNTER,
            "Total number of bytes of pages sent with their whole content.",
        ),
        Field(
            "ram.dirty-pages-rate",
            "ram_dirty_pages_per_second",
            GAUGE,
            "Number of pages that the guest dirties per second.",
        ),
        Field(
            "ram.mbps",
            "throughput_bytes_per_second",
            GAUGE,
            "Throughput of the migration stream in bytes per second.",
            Unit.MEGABITS,
        ),
        Field(
            "ram.dirty-sync-count",
            "passes_total",
            COUNTER,
            "Total number of passes over the RAM; each pass sends the pages that the guest dirtied during the previous pass.",
        ),
        Field(
            "ram.postcopy-requests",
            "postcopy_requests_total",
            COUNTER,
            "Total number of pages that the destination requested in postcopy.",
        ),
        Field("ram.page-size", "ram_page_bytes", GAUGE, "Size of one page of RAM in bytes."),
        Field("ram.multifd-bytes", "multifd_bytes_total", COUNTER, "Total number of bytes sent over multifd channels."),
        Field("ram.pages-per-second", "pages_per_second", GAUGE, "Number of pages sent per second."),
        Field("ram.precopy-bytes", "precopy_bytes_total", COUNTER, "Total number of bytes sent in precopy (QEMU 7.0)."),
        Field(
            "ram.downtime-bytes",
            "downtime_bytes_total",
            COUNTER,
            "Total number of bytes sent while the guest was stopped (QEMU 7.0).",
        ),
        Field(
            "ram.postcopy-bytes", "postcopy_bytes_total", COUNTER, "Total number of bytes sent in postcopy (QEMU 7.0)."
        ),
        Field(
            "ram.dirty-sync-missed-zero-copy",
            "zero_copy_fallbacks_total",
            COUNTER,
            "Total number of passes in which zero-copy fell back to copying (QEMU 7.1).",
        ),
        Field(
            "remaining",
            "remaining_bytes",
            GAUGE,
            "Number of bytes left to send, of RAM and devices together (QEMU 11.1).",
        ),
        Field(
            "disk.transferred",
            "disk_transferred_bytes_total",
            COUNTER,
            "Total number of bytes of disk sent (QEMU before 9.1).",
        ),
        Field(
            "disk.remaining", "disk_remaining_bytes", GAUGE, "Number of bytes of disk left to send (QEMU before 9.1)."
        ),
        Field("disk.total", "disk_bytes", GAUGE, "Size of the disks to migrate in bytes (QEMU before 9.1)."),
        Field(
            "compression.pages",
            "compressed_pages_total",
            COUNTER,
            "Total number of pages sent compressed (QEMU before 9.1).",
        ),
        Field(
            "compression.compressed-size",
            "compressed_bytes_total",
            COUNTER,
            "Total number of bytes sent compressed (QEMU before 9.1).",
        ),
        Field(
            "compression.busy",
            "compression_skipped_pages_total",
            COUNTER,
            "Total number of pages sent uncompressed because no thread was free (QEMU before 9.1).",
        ),
        Field(
            "vfio.transferred",
            "vfio_transferred_bytes_total",
            COUNTER,
            "Total number of bytes of VFIO device state sent.",
        ),
        Field("xbzrle-cache.cache-size", "xbzrle_cache_bytes", GAUGE, "Size of the XBZRLE cache in bytes."),
        Field("xbzrle-cache.bytes", "xbzrle_bytes_total", COUNTER, "Total number of bytes sent with XBZRLE encoding."),
        Field("xbzrle-cache.pages", "xbzrle_pages_total", COUNTER, "Total number of pages sent with XBZRLE encoding."),
        Field(
            "xbzrle-cache.cache-miss",
            "xbzrle_cache_misses_total",
            COUNTER,
            "Total number of pages missing from the XBZRLE cache.",
        ),
        Field(
            "xbzrle-cache.cache-miss-rate",
            "xbzrle_cache_miss_ratio",
            GAUGE,
            "Share of pages missing from the XBZRLE cache.",
        ),
        Field(
            "xbzrle-cache.encoding-rate",
            "xbzrle_encoding_ratio",
            GAUGE,
            "Compression ratio of XBZRLE.",
        ),
        Field(
            "xbzrle-cache.overflow",
            "xbzrle_overflows_total",
            COUNTER,
            "Total number of pages that XBZRLE could not compress.",
        ),
        Field(
            "total-time",
            "elapsed_seconds",
            GAUGE,
            "Time in seconds since the start of the migration; after the end, the duration.",
            MS,
        ),
        Field("expected-downtime", "expected_downtime_seconds", GAUGE, "Expected downtime in seconds.", MS),
        Field("downtime", "downtime_seconds", GAUGE, "Time for which the guest was stopped, in seconds.", MS),
        Field(
            "setup-time",
            "setup_seconds",
            GAUGE,
            "Time between the start of the migration and the first byte sent, in seconds.",
            MS,
        ),
        Field(
            "cpu-throttle-percentage",
            "cpu_throttle_ratio",
            GAUGE,
            "Share of time for which QEMU stops the vCPUs, so that the guest dirties less RAM.",
            Unit.PERCENT,
        ),
        Field(
            "dirty-limit-throttle-time-per-round",
            "dirty_limit_throttle_seconds",
            GAUGE,
            "Maximum time in seconds that a vCPU was throttled in one round of the dirty limit (QEMU 8.1).",
            Unit.MICROSECONDS,
        ),
        Field(
            "dirty-limit-ring-full-time",
            "dirty_limit_ring_full_seconds",
            GAUGE,
            "Average time in seconds until the dirty ring of a vCPU is full (QEMU 8.1).",
            Unit.MICROSECONDS,
        ),
        Field(
            "postcopy-blocktime",
            "postcopy_blocked_seconds",
            GAUGE,
            "Time in seconds for which all vCPUs were blocked at once in postcopy.",
            MS,
        ),
        Field(
            "postcopy-vcpu-blocktime",
            "postcopy_vcpu_blocked_milliseconds",
            DETAIL,
            "Time in milliseconds for which each vCPU was blocked in postcopy.",
        ),
        Field(
            "postcopy-latency",
            "postcopy_latency_seconds",
            GAUGE,
            "Average latency of page faults in postcopy in seconds (QEMU 10.1, unstable).",
            NS,
        ),
        Field(
            "postcopy-non-vcpu-latency",
            "postcopy_non_vcpu_latency_seconds",
            GAUGE,
            "Average latency of postcopy faults in threads other than vCPUs, in seconds (QEMU 10.1, unstable).",
            NS,
        ),
        Field(
            "postcopy-latency-dist",
            "postcopy_latency_counts",
            DETAIL,
            "Number of page faults in postcopy by latency, in buckets that double from 1 us (QEMU 10.1, unstable).",
        ),
        Field(
            "postcopy-vcpu-latency",
            "postcopy_vcpu_latency_nanoseconds",
            DETAIL,
            "Average latency of each vCPU's postcopy faults in nanoseconds (QEMU 10.1, unstable).",
        ),
        Field(
            "left",
            "remaining_seconds",
            GAUGE,
            "Time in seconds until all RAM is sent, at the current throughput and dirty rate. Absent if the dirty rate is as high.",
        ),
        Field("error-desc", "error", TEXT, "Error message from QEMU if the migration failed."),
        Field("blocked-reasons", "blocked_reasons", DETAIL, "Reasons why this VM cannot be migrated (QEMU 6.0)."),
        Field("socket-address", "socket_addresses", DETAIL, "Addresses that the destination listens on."),
    ),
    on_change=True,
)

MIGRATION_ENDED = Family(
    "migration.ended",
    "query-migrate",
    "A migration ended. After a failure, QEMU omits some values; the record then has these values from the previous poll.",
    (),
    (
        Field("outcome", "outcome", TEXT, "`completed`, `failed` or `cancelled`."),
        Field(
            "role",
            "role",
            TEXT,
            "`source` or `destination`; absent if unknown. At the destination, QEMU reports no statistics.",
        ),
        Field("elapsed_seconds", "elapsed_seconds", GAUGE, "Duration in seconds."),
        Field("downtime_seconds", "downtime_seconds", GAUGE, "Time for which the guest was stopped, in seconds."),
        Field(
            "setup_seconds",
            "setup_seconds",
            GAUGE,
            "Time between the start of the migration and the first byte sent, in seconds.",
        ),
        Field(
            "transferred_bytes", "transferred_bytes", GAUGE, "Number of bytes of RAM, disk and VFIO device state sent."
        ),
        Field("ram_bytes", "ram_bytes", GAUGE, "Size of the VM's RAM in bytes."),
        Field("passes", "passes", GAUGE, "Number of passes over the RAM."),
        Field(
            "throughput_bytes_per_second",
            "throughput_bytes_per_second",
            GAUGE,
            "Average throughput in bytes per second.",
        ),
        Field(
            "postcopy_requests",
            "postcopy_requests",
            GAUGE,
            "Number of pages that the destination requested in postcopy.",
        ),
        Field(
            "cpu_throttle_ratio",
            "cpu_throttle_ratio",
            GAUGE,
            "Share of time for which QEMU stopped the vCPUs, at the last poll during the migration.",
        ),
        Field("error", "error", TEXT, "Error message from QEMU if the migration failed."),
    ),
)
"""The record `qemu.migration.ended`. This family is not exported to Prometheus."""
