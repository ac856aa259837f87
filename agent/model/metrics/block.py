"""Disks of a guest: I/O statistics, written offsets of backing layers, throttle limits, media and space."""

from agent.model.family import COUNTER, DETAIL, FLAG, GAUGE, HISTOGRAM, NAME, STATE, TEXT, Family, Field, Unit

NS = Unit.NANOSECONDS

BLOCK = Family(
    "block",
    "query-blockstats",
    "I/O statistics of a disk, counted in QEMU's block backend since the device was plugged in; a migration resets them.",
    ("device",),
    (
        Field(
            "node-name", "node", TEXT, "Node name of the top block node of the disk; snapshots and mirrors change it."
        ),
        Field("device", "backend", TEXT, "Name of the block backend, if it has one."),
        Field("qdev", "qdev", TEXT, "QOM path or id of the device, as QEMU reports it (QEMU 3.0)."),
        Field(
            "target",
            "target",
            NAME,
            "Target name of the disk in libvirt, such as vda; only for monitors that use libvirt's API without passthrough.",
        ),
        Field("stats.rd_bytes", "read_bytes_total", COUNTER, "Total number of bytes read."),
        Field("stats.wr_bytes", "write_bytes_total", COUNTER, "Total number of bytes written."),
        Field("stats.unmap_bytes", "unmap_bytes_total", COUNTER, "Total number of bytes discarded (QEMU 4.2)."),
        Field(
            "stats.zone_append_bytes",
            "zone_append_bytes_total",
            COUNTER,
            "Total number of bytes appended to zones (QEMU 8.1).",
        ),
        Field("stats.rd_operations", "reads_total", COUNTER, "Total number of reads completed."),
        Field("stats.wr_operations", "writes_total", COUNTER, "Total number of writes completed."),
        Field("stats.flush_operations", "flushes_total", COUNTER, "Total number of flushes completed."),
        Field("stats.unmap_operations", "unmaps_total", COUNTER, "Total number of discards completed (QEMU 4.2)."),
        Field(
            "stats.zone_append_operations",
            "zone_appends_total",
            COUNTER,
            "Total number of zone appends completed (QEMU 8.1).",
        ),
        Field(
            "stats.rd_total_time_ns",
            "read_seconds_total",
            COUNTER,
            "Total time spent in reads in seconds, summed over requests.",
            NS,
        ),
        Field(
            "stats.wr_total_time_ns",
            "write_seconds_total",
            COUNTER,
            "Total time spent in writes in seconds, summed over requests.",
            NS,
        ),
        Field(
            "stats.flush_total_time_ns",
            "flush_seconds_total",
            COUNTER,
            "Total time spent in flushes in seconds, summed over requests.",
            NS,
        ),
        Field(
            "stats.unmap_total_time_ns",
            "unmap_seconds_total",
            COUNTER,
            "Total time spent in discards in seconds, summed over requests (QEMU 4.2).",
            NS,
        ),
        Field(
            "stats.zone_append_total_time_ns",
            "zone_append_seconds_total",
            COUNTER,
            "Total time spent in zone appends in seconds, summed over requests (QEMU 8.1).",
            NS,
        ),
        Field("stats.rd_merged", "reads_merged_total", COUNTER, "Total number of reads merged into other reads."),
        Field("stats.wr_merged", "writes_merged_total", COUNTER, "Total number of writes merged into other writes."),
        Field(
            "stats.unmap_merged",
            "unmaps_merged_total",
            COUNTER,
            "Total number of discards merged into other discards (QEMU 4.2).",
        ),
        Field(
            "stats.zone_append_merged",
            "zone_appends_merged_total",
            COUNTER,
            "Total number of zone appends merged into other zone appends (QEMU 8.1).",
        ),
        Field("stats.failed_rd_operations", "failed_reads_total", COUNTER, "Total number of failed reads."),
        Field(
            "stats.failed_wr_operations",
            "failed_writes_total",
            COUNTER,
            "Total number of failed writes, without the writes that QEMU retries because of werror=stop.",
        ),
        Field("stats.failed_flush_operations", "failed_flushes_total", COUNTER, "Total number of failed flushes."),
        Field(
            "stats.failed_unmap_operations",
            "failed_unmaps_total",
            COUNTER,
            "Total number of failed discards (QEMU 4.2).",
        ),
        Field(
            "stats.failed_zone_append_operations",
            "failed_zone_appends_total",
            COUNTER,
            "Total number of failed zone appends (QEMU 8.1).",
        ),
        Field(
            "stats.invalid_rd_operations",
            "invalid_reads_total",
            COUNTER,
            "Total number of invalid reads that the guest requested.",
        ),
        Field(
            "stats.invalid_wr_operations",
            "invalid_writes_total",
            COUNTER,
            "Total number of invalid writes that the guest requested.",
        ),
        Field(
            "stats.invalid_flush_operations",
            "invalid_flushes_total",
            COUNTER,
            "Total number of invalid flushes that the guest requested.",
        ),
        Field(
            "stats.invalid_unmap_operations",
            "invalid_unmaps_total",
            COUNTER,
            "Total number of invalid discards that the guest requested (QEMU 4.2).",
        ),
        Field(
            "stats.invalid_zone_append_operations",
            "invalid_zone_appends_total",
            COUNTER,
            "Total number of invalid zone appends that the guest requested (QEMU 8.1).",
        ),
        Field(
            "stats.account_invalid",
            "account_invalid",
            DETAIL,
            "Whether an invalid operation resets the idle time.",
        ),
        Field(
            "stats.account_failed",
            "account_failed",
            DETAIL,
            "Whether failed operations count in the latencies and reset the idle time.",
        ),
        *(
            Field(
                f"stats.{qemu}_latency_histogram",
                f"{name}_latency_seconds",
                HISTOGRAM,
                f"Latency of {name.replace('_', ' ')}{'es' if name == 'flush' else 's'} in seconds, with the bins of "
                f"block-latency-histogram-set (QEMU 4.0{since}). Without a sum if QEMU's total time counts other operations.",
                NS,
            )
            for qemu, name, since in (
                ("rd", "read", ""),
                ("wr", "write", ""),
                ("zone_append", "zone_append", "; 8.1"),
                ("flush", "flush", ""),
            )
        ),
        Field(
            "stats.idle_time_ns",
            "idle_seconds",
            GAUGE,
            "Time in seconds since the last access; absent before the first access.",
            NS,
        ),
        Field(
            "stats.wr_highest_offset",
            "write_highest_offset_bytes",
            GAUGE,
            "Highest offset written in the top node since the node was opened, in bytes.",
        ),
        Field("parent.node-name", "storage_node", TEXT, "Node name of the storage layer under the top node."),
        Field(
            "parent.stats.wr_highest_offset",
            "storage_write_highest_offset_bytes",
            GAUGE,
            "Highest offset written in the storage layer since it was opened, in bytes; a lower bound of a thin volume's allocated size.",
        ),
        Field(
            "parent.driver-specific.discard-nb-ok",
            "storage_discards_total",
            COUNTER,
            "Total number of discards that the host's file or device completed (QEMU 4.2).",
        ),
        Field(
            "parent.driver-specific.discard-nb-failed",
            "storage_failed_discards_total",
            COUNTER,
            "Total number of discards that failed on the host's file or device (QEMU 4.2).",
        ),
        Field(
            "parent.driver-specific.discard-bytes-ok",
            "storage_discarded_bytes_total",
            COUNTER,
            "Total number of bytes that the host's file or device discarded (QEMU 4.2).",
        ),
        Field(
            "parent.driver-specific.completion-errors",
            "storage_completion_errors_total",
            COUNTER,
            "Total number of requests that failed on the host's NVMe device (QEMU 5.2).",
        ),
        Field(
            "parent.driver-specific.aligned-accesses",
            "storage_aligned_accesses_total",
            COUNTER,
            "Total number of requests passed to the host's NVMe device without a copy (QEMU 5.2).",
        ),
        Field(
            "parent.driver-specific.unaligned-accesses",
            "storage_unaligned_accesses_total",
            COUNTER,
            "Total number of requests copied to an aligned buffer for the host's NVMe device (QEMU 5.2).",
        ),
    ),
)

BLOCK_TIMED = Family(
    "block_timed",
    "query-blockstats",
    "Latencies of a disk over the last interval, for each interval in its option `stats-intervals`; 0 if there were no requests.",
    ("device", "interval"),
    (
        *(
            Field(
                f"{which}_{qemu}_latency_ns",
                f"{name}_latency_{what}_seconds",
                GAUGE,
                f"{word} latency of {name.replace('_', ' ')}{'es' if name == 'flush' else 's'} in seconds.",
                NS,
            )
            for qemu, name in (("rd", "read"), ("wr", "write"), ("zone_append", "zone_append"), ("flush", "flush"))
            for which, what, word in (("min", "min", "Minimum"), ("avg", "mean", "Mean"), ("max", "max", "Maximum"))
        ),
        Field("avg_rd_queue_depth", "read_queue_depth", GAUGE, "Average number of reads in flight."),
        Field("avg_wr_queue_depth", "write_queue_depth", GAUGE, "Average number of writes in flight."),
        Field(
            "avg_zone_append_queue_depth",
            "zone_append_queue_depth",
            GAUGE,
            "Average number of zone appends in flight (QEMU 8.1).",
        ),
    ),
)

BLOCK_BACKING = Family(
    "block_backing",
    "query-blockstats",
    "A layer of the backing chain of a disk. QEMU's only statistic of such a layer is the highest offset written.",
    ("device", "depth"),
    (
        Field("node-name", "node", TEXT, "Node name of the layer."),
        Field(
            "stats.wr_highest_offset",
            "write_highest_offset_bytes",
            GAUGE,
            "Highest offset written in this layer since the layer was opened, in bytes.",
        ),
        Field("parent.node-name", "storage_node", TEXT, "Node name of the storage under this layer."),
        Field(
            "parent.stats.wr_highest_offset",
            "storage_write_highest_offset_bytes",
            GAUGE,
            "Highest offset written in the storage under this layer since the storage was opened, in bytes.",
        ),
    ),
)

_LIMITS = (("bps", "bytes"), ("iops", "operations"))
_DIRECTIONS = (("", "", "reads and writes together"), ("_rd", "read_", "reads"), ("_wr", "write_", "writes"))

BLOCK_DEVICE = Family(
    "block_device",
    "query-block",
    "The device of a disk: throttle limits, medium and I/O status.",
    ("device",),
    (
        Field("io-status", "io_status", STATE, "I/O status of the device: ok, failed, nospace."),
        Field("type", "kind", TEXT, "Type of the device; most devices report `unknown`."),
        Field("removable", "removable", FLAG, "Whether the medium is removable."),
        Field("locked", "locked", FLAG, "Whether the guest has locked the medium."),
        Field("tray_open", "tray_open", FLAG, "Whether the tray is open."),
        Field("inserted.node-name", "node", TEXT, "Node name of the inserted medium."),
        Field("inserted.group", "throttle_group", TEXT, "Name of the throttle group; its disks share the limits."),
        Field(
            "inserted.iops_size",
            "throttle_iops_size_bytes",
            GAUGE,
            "Size in bytes above which one request counts as several operations; absent if every request counts as one.",
        ),
        *(
            Field(
                f"inserted.{limit}{direction}_max_length",
                f"throttle_{prefix}{unit}_burst_seconds",
                GAUGE,
                f"Maximum time in seconds for which {what} may exceed the limit of {unit} per second.",
            )
            for limit, unit in _LIMITS
            for direction, prefix, what in _DIRECTIONS
        ),
        *(
            Field(
                f"inserted.{limit}{direction}{end}",
                f"throttle_{prefix}{unit}{burst}_per_second",
                GAUGE,
                f"{'Burst limit' if end else 'Limit'} of {unit} per second for {what}; 0 without a limit.",
            )
            for limit, unit in _LIMITS
            for direction, prefix, what in _DIRECTIONS
            for end, burst in (("", ""), ("_max", "_burst"))
        ),
    ),
    on_change=True,
)

BLOCK_SPACE = Family(
    "block_space",
    "query-blockstats and query-named-block-nodes",
    "Space that a thin disk uses and has left, and the time until it is full.",
    ("device",),
    (
        Field(
            "layer",
            "measure",
            TEXT,
            "Measure of `used_bytes`: `offset`, the highest offset written; or `allocated`, the allocated size of the file or volume.",
        ),
        Field(
            "used_bytes",
            "used_bytes",
            GAUGE,
            "Number of bytes used. With the measure `offset`, the value is a lower bound, and absent before the first observed write.",
        ),
        Field(
            "limited_by",
            "limited_by",
            STATE,
            "What limits the growth: `device`, `pool`, `virtual_size` or `unknown`. At its virtual size, a file or volume stops "
            "growing, and no write fails.",
        ),
        Field("pool", "pool", TEXT, "Pool of the image."),
        Field("limit_bytes", "limit_bytes", GAUGE, "Number of used bytes at which the growth stops."),
        Field("free_bytes", "free_bytes", GAUGE, "Number of bytes left until the limit."),
        Field(
            "growth_bytes_per_second",
            "growth_bytes_per_second",
            GAUGE,
            "Growth of the used bytes over the last ten minutes, in bytes per second.",
        ),
        Field(
            "time_to_full_seconds",
            "time_to_full_seconds",
            GAUGE,
            "Time in seconds until the disk is full, at its current growth. If the pool is the limit, the growth of the whole pool counts. "
            "Absent without growth.",
        ),
        Field(
            "exceeded_levels", "exceeded_levels", GAUGE, "Number of configured alert levels that the used bytes exceed."
        ),
        Field(
            "armed_threshold_bytes",
            "armed_threshold_bytes",
            GAUGE,
            "Write threshold that the agent set on the disk's node, in bytes.",
        ),
        Field(
            "threshold_foreign",
            "threshold_foreign",
            FLAG,
            "Whether another client, such as libvirt, uses the write threshold of the disk's node. If so, the agent sets no threshold.",
        ),
    ),
)
