"""What a guest's disks do, and what they are made of."""

from agent.catalogue.model import Family, Field, Kind, Unit

COUNTER = Kind.COUNTER
GAUGE = Kind.GAUGE
FLAG = Kind.FLAG
TEXT = Kind.TEXT
DETAIL = Kind.DETAIL
NS = Unit.NANOSECONDS

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
