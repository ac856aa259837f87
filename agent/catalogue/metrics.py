"""Every field that we take out of QEMU, a row each.

One row makes the record's field, the Prometheus series, the JSON schema's property and the line in docs/metrics.md. Paths and units are
those of QEMU's qapi/, 2.6 to 11.1; a field younger than 2.6 says so in its help.
"""

from agent.catalogue.model import Family, Field, Kind, Unit

COUNTER, GAUGE, FLAG, STATE, TEXT, DETAIL = Kind
NS, MS = Unit.NANOSECONDS, Unit.MILLISECONDS

BLOCK = Family(
    "block",
    "query-blockstats",
    "What a guest's disk did, counted in QEMU's block backend since the device was plugged; zero again after a migration.",
    ("device",),
    (
        Field("node-name", "node", TEXT, "The disk's top block node; changes under snapshots and mirrors."),
        Field("device", "backend", TEXT, "The block backend's name, where it has one."),
        Field("qdev", "qdev", TEXT, "The device's QOM path or id, as QEMU gives it (QEMU 3.0)."),
        Field("stats.rd_bytes", "read_bytes_total", COUNTER, "Bytes read."),
        Field("stats.wr_bytes", "write_bytes_total", COUNTER, "Bytes written."),
        Field("stats.unmap_bytes", "unmap_bytes_total", COUNTER, "Bytes discarded (QEMU 4.2)."),
        Field("stats.zone_append_bytes", "zone_append_bytes_total", COUNTER, "Bytes appended to zones (QEMU 8.1)."),
        Field("stats.rd_operations", "reads_total", COUNTER, "Reads completed."),
        Field("stats.wr_operations", "writes_total", COUNTER, "Writes completed."),
        Field("stats.flush_operations", "flushes_total", COUNTER, "Flushes completed."),
        Field("stats.unmap_operations", "unmaps_total", COUNTER, "Discards completed (QEMU 4.2)."),
        Field("stats.zone_append_operations", "zone_appends_total", COUNTER, "Zone appends completed (QEMU 8.1)."),
        Field(
            "stats.rd_total_time_ns", "read_seconds_total", COUNTER, "Time spent in reads, summed over requests.", NS
        ),
        Field(
            "stats.wr_total_time_ns", "write_seconds_total", COUNTER, "Time spent in writes, summed over requests.", NS
        ),
        Field(
            "stats.flush_total_time_ns",
            "flush_seconds_total",
            COUNTER,
            "Time spent in flushes, summed over requests.",
            NS,
        ),
        Field("stats.unmap_total_time_ns", "unmap_seconds_total", COUNTER, "Time spent in discards (QEMU 4.2).", NS),
        Field(
            "stats.zone_append_total_time_ns",
            "zone_append_seconds_total",
            COUNTER,
            "Time spent in zone appends (QEMU 8.1).",
            NS,
        ),
        Field("stats.rd_merged", "reads_merged_total", COUNTER, "Reads merged into others."),
        Field("stats.wr_merged", "writes_merged_total", COUNTER, "Writes merged into others."),
        Field("stats.unmap_merged", "unmaps_merged_total", COUNTER, "Discards merged into others (QEMU 4.2)."),
        Field(
            "stats.zone_append_merged",
            "zone_appends_merged_total",
            COUNTER,
            "Zone appends merged into others (QEMU 8.1).",
        ),
        Field("stats.failed_rd_operations", "failed_reads_total", COUNTER, "Reads that failed."),
        Field(
            "stats.failed_wr_operations",
            "failed_writes_total",
            COUNTER,
            "Writes that failed; not those held back by werror=stop.",
        ),
        Field("stats.failed_flush_operations", "failed_flushes_total", COUNTER, "Flushes that failed."),
        Field("stats.failed_unmap_operations", "failed_unmaps_total", COUNTER, "Discards that failed (QEMU 4.2)."),
        Field(
            "stats.failed_zone_append_operations",
            "failed_zone_appends_total",
            COUNTER,
            "Zone appends that failed (QEMU 8.1).",
        ),
        Field("stats.invalid_rd_operations", "invalid_reads_total", COUNTER, "Reads the guest asked for wrongly."),
        Field("stats.invalid_wr_operations", "invalid_writes_total", COUNTER, "Writes the guest asked for wrongly."),
        Field(
            "stats.invalid_flush_operations", "invalid_flushes_total", COUNTER, "Flushes the guest asked for wrongly."
        ),
        Field(
            "stats.invalid_unmap_operations",
            "invalid_unmaps_total",
            COUNTER,
            "Discards the guest asked for wrongly (QEMU 4.2).",
        ),
        Field(
            "stats.invalid_zone_append_operations",
            "invalid_zone_appends_total",
            COUNTER,
            "Zone appends asked for wrongly (QEMU 8.1).",
        ),
        Field(
            "stats.account_invalid", "account_invalid", DETAIL, "Whether invalid operations count into the last access."
        ),
        Field("stats.account_failed", "account_failed", DETAIL, "Whether failed operations count into the times."),
        Field("stats.idle_time_ns", "idle_seconds", GAUGE, "Time since the last access; absent until the first.", NS),
        Field(
            "stats.wr_highest_offset",
            "write_highest_offset_bytes",
            GAUGE,
            "End of the highest write on the top node since it was opened.",
        ),
        Field("parent.node-name", "storage_node", TEXT, "The block node of the storage layer under the top node."),
        Field(
            "parent.stats.wr_highest_offset",
            "storage_write_highest_offset_bytes",
            GAUGE,
            "End of the highest write on the storage layer since it was opened: where a thin volume is full.",
        ),
    ),
)

BLOCK_BACKING = Family(
    "block_backing",
    "query-blockstats",
    "A layer of a disk's backing chain. QEMU counts nothing but the highest offset there.",
    ("device", "depth"),
    (
        Field("node-name", "node", TEXT, "The layer's block node."),
        Field(
            "stats.wr_highest_offset",
            "write_highest_offset_bytes",
            GAUGE,
            "End of the highest write on this layer since it was opened.",
        ),
        Field("parent.node-name", "storage_node", TEXT, "The block node of the storage under this layer."),
        Field(
            "parent.stats.wr_highest_offset",
            "storage_write_highest_offset_bytes",
            GAUGE,
            "End of the highest write on this layer's storage since it was opened.",
        ),
    ),
)

BLOCK_LAYER = Family(
    "block_layer",
    "query-named-block-nodes",
    "A layer of a disk: `format` is what the guest sees, `storage` what it lies on, `backing-1` and on what was there before a snapshot.",
    ("device", "layer"),
    (
        Field("node-name", "node", TEXT, "The block node."),
        Field("drv", "driver", TEXT, "The block driver."),
        Field("file", "path", TEXT, "Where it lies."),
        Field("image.virtual-size", "size_bytes", GAUGE, "How large it is to the layer above."),
        Field("image.actual-size", "allocated_bytes", GAUGE, "How much of it the host's file system has allocated."),
        Field("image.cluster-size", "cluster_bytes", GAUGE, "How much is allocated at a time."),
        Field("write_threshold", "write_threshold_bytes", GAUGE, "The write threshold that somebody set; 0 is none."),
        Field("ro", "read_only", FLAG, "Whether it is read-only."),
        Field("encrypted", "encrypted", FLAG, "Whether it is encrypted."),
        Field("backing_file_depth", "backing_depth", GAUGE, "How many layers lie under it."),
        Field("cache.direct", "cache_direct", FLAG, "Whether the host's page cache is passed by."),
        Field("cache.writeback", "cache_writeback", FLAG, "Whether writes count as done before they are flushed."),
        Field("cache.no-flush", "cache_no_flush", FLAG, "Whether flushes are ignored."),
    ),
    on_change=True,
)

BLOCK_SPACE = Family(
    "block_space",
    "query-blockstats and query-named-block-nodes",
    "How full a thin disk is, and when it will be.",
    ("device",),
    (
        Field(
            "layer",
            "measure",
            TEXT,
            "`offset`: how far into its device it was written; `allocated`: how much its file has allocated.",
        ),
        Field("used_bytes", "used_bytes", GAUGE, "How much is used."),
        Field("limit_bytes", "limit_bytes", GAUGE, "How much there is."),
        Field("headroom_bytes", "headroom_bytes", GAUGE, "How much is left."),
        Field("growth_bytes_per_second", "growth_bytes_per_second", GAUGE, "How fast it grew in the last ten minutes."),
        Field(
            "full_in_seconds",
            "full_in_seconds",
            GAUGE,
            "How long it lasts at that rate; absent while it does not grow.",
        ),
        Field("levels_exceeded", "levels_exceeded", GAUGE, "How many levels of its ladder are exceeded."),
        Field("armed_threshold_bytes", "armed_threshold_bytes", GAUGE, "The write threshold that the agent set."),
        Field(
            "foreign_threshold",
            "foreign_threshold",
            FLAG,
            "Whether the threshold's slot is somebody else's, and left alone.",
        ),
    ),
)

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
        Field("error-desc", "error", TEXT, "Why it failed, in QEMU's words."),
        Field("blocked-reasons", "blocked_reasons", DETAIL, "Why this VM cannot be migrated (QEMU 6.0)."),
        Field("socket-address", "socket_addresses", DETAIL, "Where the destination listens."),
    ),
    on_change=True,
)

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

RUNSTATE = Family(
    "runstate",
    "query-status",
    "Whether the guest runs, and if not, why.",
    (),
    (
        Field("status", "status", STATE, "QEMU's RunState: running, paused, io-error, guest-panicked, inmigrate, ..."),
        Field("running", "running", FLAG, "Whether the vCPUs run."),
    ),
    on_change=True,
)

FAMILIES = (BLOCK, BLOCK_BACKING, BLOCK_LAYER, BLOCK_SPACE, MIGRATION, BALLOON, GUEST_MEMORY, RUNSTATE)
