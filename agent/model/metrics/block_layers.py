"""Layers of the disks of a guest: images, dirty bitmaps, and names of block nodes."""

from agent.model.family import DETAIL, FLAG, GAUGE, NAME, TEXT, Family, Field

BLOCK_LAYER = Family(
    "block_layer",
    "query-named-block-nodes",
    "A layer of a disk: `format` is the image that the guest sees, `storage` the file or device under this image, `backing-1` the "
    "first backing image, and so on.",
    ("device", "layer"),
    (
        Field("node-name", "node", TEXT, "Node name."),
        Field("drv", "driver", TEXT, "Block driver."),
        Field("file", "path", NAME, "Path or URL of the image."),
        Field("image.virtual-size", "size_bytes", GAUGE, "Virtual size of the image in bytes."),
        Field(
            "image.actual-size",
            "allocated_bytes",
            GAUGE,
            "Size that the host's file system has allocated for the image, in bytes.",
        ),
        Field(
            "image.cluster-size",
            "cluster_bytes",
            GAUGE,
            "Size of one cluster in bytes; an image is allocated in clusters.",
        ),
        Field(
            "write_threshold", "write_threshold_bytes", GAUGE, "Write threshold of the node in bytes; 0 if none is set."
        ),
        Field("ro", "read_only", FLAG, "Whether the image is read-only."),
        Field("encrypted", "encrypted", FLAG, "Whether the image is encrypted."),
        Field("image.format-specific.data.encrypt.format", "encryption", TEXT, "Encryption format."),
        Field("image.format-specific.data.corrupt", "corrupt", FLAG, "Whether the qcow2 image is marked as corrupt."),
        Field("image.dirty-flag", "dirty", FLAG, "Whether the image was not closed cleanly."),
        Field("backing_file", "backing_path", TEXT, "Path of the backing image."),
        Field(
            "encryption_details",
            "encryption_details",
            DETAIL,
            "Cipher, mode, IV generator, hash and number of active key slots of LUKS encryption.",
        ),
        Field(
            "snapshot_list",
            "snapshots",
            DETAIL,
            "Each internal snapshot: id, name, creation time, and size of the saved VM state. A long list has only the last snapshots.",
        ),
        Field("snapshots", "internal_snapshots", GAUGE, "Number of internal snapshots in the image."),
        Field("detect_zeroes", "detect_zeroes", TEXT, "Whether QEMU detects zero writes: off, on or unmap."),
        Field("backing_file_depth", "backing_depth", GAUGE, "Number of layers in the backing chain."),
        Field("cache.direct", "cache_direct", FLAG, "Whether the image bypasses the host's page cache."),
        Field("cache.writeback", "cache_writeback", FLAG, "Whether a write completes before it is flushed to storage."),
        Field("cache.no-flush", "cache_no_flush", FLAG, "Whether QEMU ignores flushes."),
    ),
    on_change=True,
)

BLOCK_BITMAP = Family(
    "block_bitmap",
    "query-named-block-nodes",
    "A dirty bitmap on a layer of a disk, for incremental backups (in query-named-block-nodes since QEMU 4.2).",
    ("device", "layer", "bitmap"),
    (
        Field("count", "dirty_bytes", GAUGE, "Number of bytes written since the bitmap was cleared."),
        Field("granularity", "granularity_bytes", GAUGE, "Number of bytes that one bit covers."),
        Field("recording", "recording", FLAG, "Whether the bitmap records writes."),
        Field("busy", "busy", FLAG, "Whether a job or an export uses the bitmap."),
        Field("persistent", "persistent", FLAG, "Whether the bitmap is stored in the image."),
        Field(
            "inconsistent",
            "inconsistent",
            FLAG,
            "Whether the bitmap is unusable, because QEMU did not save it when the image was closed.",
        ),
    ),
    on_change=True,
)

BLOCK_NAMES = Family(
    "block_names",
    "query-blockstats and query-named-block-nodes",
    "Other names of a disk in QEMU's events: QOM path, block backend and block nodes, including the filter nodes of jobs.",
    ("device",),
    (Field("names", "names", DETAIL, "Names of this disk that no other disk has."),),
    on_change=True,
)
