"""What a guest's disks do, and what they are made of."""

from agent.model.family import COUNTER, DETAIL, FLAG, GAUGE, HISTOGRAM, NAME, STATE, TEXT, Family, Field, Unit

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
        Field("target", "target", NAME, "The disk's name in libvirt, such as vda; over libvirt's own calls only."),
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
        *(
            Field(
                f"stats.{qemu}_latency_histogram",
                f"{name}_latency_seconds",
                HISTOGRAM,
                f"How long {name.replace('_', ' ')}s took, in the bins that somebody set (QEMU 4.0{since}); "
                "the sum is since the device was plugged.",
                NS,
            )
            for qemu, name, since in (
                ("rd", "read", ""),
                ("wr", "write", ""),
                ("zone_append", "zone_append", "; 8.1"),
                ("flush", "flush", ""),
            )
        ),
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
        Field(
            "parent.driver-specific.discard-nb-ok",
            "storage_discards_total",
            COUNTER,
            "Discards that the host's file or device carried out (QEMU 4.2).",
        ),
        Field(
            "parent.driver-specific.discard-nb-failed",
            "storage_failed_discards_total",
            COUNTER,
            "Discards that the host's file or device refused (QEMU 4.2).",
        ),
        Field(
            "parent.driver-specific.discard-bytes-ok",
            "storage_discarded_bytes_total",
            COUNTER,
            "Bytes that the host's file or device discarded (QEMU 4.2).",
        ),
        Field(
            "parent.driver-specific.completion-errors",
            "storage_completion_errors_total",
            COUNTER,
            "Requests that the host's NVMe device failed (QEMU 5.2).",
        ),
        Field(
            "parent.driver-specific.aligned-accesses",
            "storage_aligned_accesses_total",
            COUNTER,
            "Requests passed on to the host's NVMe device as they are (QEMU 5.2).",
        ),
        Field(
            "parent.driver-specific.unaligned-accesses",
            "storage_unaligned_accesses_total",
            COUNTER,
            "Requests copied first, being ill aligned for the host's NVMe device (QEMU 5.2).",
        ),
    ),
)

BLOCK_TIMED = Family(
    "block_timed",
    "query-blockstats",
    "Latencies over the last interval, of those that the disk's `stats-intervals` name; 0 where nothing was done in it.",
    ("device", "interval"),
    (
        *(
            Field(
                f"{which}_{qemu}_latency_ns",
                f"{name}_latency_{what}_seconds",
                GAUGE,
                f"The {which}imum latency of {name.replace('_', ' ')}s."
                if which != "avg"
                else f"The mean latency of {name.replace('_', ' ')}s.",
                NS,
            )
            for qemu, name in (("rd", "read"), ("wr", "write"), ("zone_append", "zone_append"), ("flush", "flush"))
            for which, what in (("min", "min"), ("avg", "mean"), ("max", "max"))
        ),
        Field("avg_rd_queue_depth", "read_queue_depth", GAUGE, "Reads under way, on average."),
        Field("avg_wr_queue_depth", "write_queue_depth", GAUGE, "Writes under way, on average."),
        Field(
            "avg_zone_append_queue_depth",
            "zone_append_queue_depth",
            GAUGE,
            "Zone appends under way, on average (QEMU 8.1).",
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
        Field("file", "path", NAME, "Where it lies."),
        Field("image.virtual-size", "size_bytes", GAUGE, "How large it is to the layer above."),
        Field("image.actual-size", "allocated_bytes", GAUGE, "How much of it the host's file system has allocated."),
        Field("image.cluster-size", "cluster_bytes", GAUGE, "How much is allocated at a time."),
        Field("write_threshold", "write_threshold_bytes", GAUGE, "The write threshold that somebody set; 0 is none."),
        Field("ro", "read_only", FLAG, "Whether it is read-only."),
        Field("encrypted", "encrypted", FLAG, "Whether it is encrypted."),
        Field("image.format-specific.data.encrypt.format", "encryption", TEXT, "How it is encrypted."),
        Field("image.format-specific.data.corrupt", "corrupt", FLAG, "Whether a qcow2 image is marked as corrupt."),
        Field("image.dirty-flag", "dirty", FLAG, "Whether the image was not closed cleanly."),
        Field("backing_file", "backing_path", TEXT, "Where the layer under it lies."),
        Field("snapshots", "internal_snapshots", GAUGE, "How many snapshots the image holds inside itself."),
        Field("detect_zeroes", "detect_zeroes", TEXT, "Whether written zeroes are looked for."),
        Field("backing_file_depth", "backing_depth", GAUGE, "How many layers lie under it."),
        Field("cache.direct", "cache_direct", FLAG, "Whether the host's page cache is passed by."),
        Field("cache.writeback", "cache_writeback", FLAG, "Whether writes count as done before they are flushed."),
        Field("cache.no-flush", "cache_no_flush", FLAG, "Whether flushes are ignored."),
    ),
    on_change=True,
)

BLOCK_BITMAP = Family(
    "block_bitmap",
    "query-named-block-nodes",
    "A dirty bitmap on a disk's layer, by which somebody makes incremental backups (QEMU 4.2 here).",
    ("device", "layer", "bitmap"),
    (
        Field("count", "dirty_bytes", GAUGE, "How much was written since it was cleared."),
        Field("granularity", "granularity_bytes", GAUGE, "How much one of its bits stands for."),
        Field("recording", "recording", FLAG, "Whether it records writes."),
        Field("busy", "busy", FLAG, "Whether a job or an export uses it."),
        Field("persistent", "persistent", FLAG, "Whether it is kept in the image."),
        Field("inconsistent", "inconsistent", FLAG, "Whether it was not saved in time and is of no more use."),
    ),
    on_change=True,
)

_LIMITS = (("bps", "bytes"), ("iops", "operations"))
_WAYS = (("", "", "reads and writes together"), ("_rd", "read_", "reads"), ("_wr", "write_", "writes"))

BLOCK_DEVICE = Family(
    "block_device",
    "query-block",
    "A disk as its device has it: the limits set on it, its medium, and whether it met I/O errors.",
    ("device",),
    (
        Field("io-status", "io_status", STATE, "Whether it met an I/O error that stops: ok, failed, nospace."),
        Field("type", "kind", TEXT, "Its kind; most say unknown."),
        Field("removable", "removable", FLAG, "Whether its medium can be taken out."),
        Field("locked", "locked", FLAG, "Whether the guest has locked its medium."),
        Field("tray_open", "tray_open", FLAG, "Whether its tray is open."),
        Field("inserted.node-name", "node", TEXT, "Its medium's block node."),
        Field("inserted.group", "throttle_group", TEXT, "With whom it shares its limits."),
        *(
            Field(
                f"inserted.{limit}{way}{end}",
                f"throttle_{ours}{unit}{burst}_per_second",
                GAUGE,
                f"The limit{' in a burst' if end else ''} of {unit} for {what}; 0 is none.",
            )
            for limit, unit in _LIMITS
            for way, ours, what in _WAYS
            for end, burst in (("", ""), ("_max", "_burst"))
        ),
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
        Field("free_bytes", "free_bytes", GAUGE, "How much is left."),
        Field("growth_bytes_per_second", "growth_bytes_per_second", GAUGE, "How fast it grew in the last ten minutes."),
        Field(
            "time_to_full_seconds",
            "time_to_full_seconds",
            GAUGE,
            "How long it lasts at that rate; absent while it does not grow.",
        ),
        Field("exceeded_levels", "exceeded_levels", GAUGE, "How many levels of its ladder are exceeded."),
        Field("armed_threshold_bytes", "armed_threshold_bytes", GAUGE, "The write threshold that the agent set."),
        Field(
            "threshold_foreign",
            "threshold_foreign",
            FLAG,
            "Whether the threshold's slot is somebody else's, and left alone.",
        ),
    ),
)
