"""Families of storage pools. The samples of a pool belong to the host, and not to one VM. `agent.alerts.pool_usage` computes the values."""

from agent.model.family import DETAIL, FLAG, GAUGE, NAME, TEXT, Family, Field

_SOURCES = "statvfs, the kernel's size of a device, LVM, ZFS or libvirt"

POOL = Family(
    "pool",
    _SOURCES,
    "Storage that images of VMs share: a file system, a quota, an LVM thin pool, a ZFS pool or a pool of libvirt; or a block device with "
    "one image.",
    ("pool", "kind"),
    (
        Field("key", "key", TEXT, "Identity of the pool on this host."),
        Field("type", "type", TEXT, "File system type, or libvirt's type of the pool."),
        Field(
            "responsive",
            "responsive",
            FLAG,
            "Whether the storage responds. If not, the agent sends no command that accesses storage to the VMs on this pool.",
        ),
        Field(
            "age",
            "age_seconds",
            GAUGE,
            "Age of the other values in seconds. Absent if the agent read them for this record.",
        ),
        Field("size", "size_bytes", GAUGE, "Size of the pool in bytes."),
        Field("used", "used_bytes", GAUGE, "Number of bytes in use, by images and by all other files."),
        Field("free", "free_bytes", GAUGE, "Number of bytes that a process without privileges can still allocate."),
        Field("inodes", "inodes", GAUGE, "Number of inodes; absent if the file system has no fixed number."),
        Field("free_inodes", "free_inodes", GAUGE, "Number of free inodes."),
        Field("metadata_size", "metadata_size_bytes", GAUGE, "Size of the metadata of an LVM thin pool in bytes."),
        Field(
            "metadata_free", "metadata_free_bytes", GAUGE, "Number of free bytes of the metadata of an LVM thin pool."
        ),
        Field(
            "provisioned",
            "provisioned_bytes",
            GAUGE,
            "Number of bytes to which all images of running VMs on the pool can grow. Internal snapshots can make an image larger.",
        ),
        Field(
            "commitment",
            "commitment_ratio",
            GAUGE,
            "Provisioned bytes divided by the size. Above 1, the images together can fill the pool.",
        ),
        Field(
            "growth",
            "growth_bytes_per_second",
            GAUGE,
            "Growth of `used_bytes` over the last ten minutes, in bytes per second; negative if the pool shrinks.",
        ),
        Field(
            "growth_over_day",
            "growth_over_day_bytes_per_second",
            GAUGE,
            "Growth of `used_bytes` over the last day, in bytes per second; negative if the pool shrinks.",
        ),
        Field(
            "time_to_full",
            "time_to_full_seconds",
            GAUGE,
            "Forecast of the time in seconds until the pool is full, from the growth over windows of ten seconds to one day. Absent "
            "if there is no forecast.",
        ),
        Field(
            "time_to_full_at_day_growth",
            "time_to_full_at_day_growth_seconds",
            GAUGE,
            "Time in seconds until the pool is full, at the growth over the last day. Absent if the pool does not grow.",
        ),
        Field("exceeded_levels", "exceeded_levels", GAUGE, "Number of configured alert levels that the pool exceeds."),
        Field("images", "images", GAUGE, "Number of images of running VMs on the pool, backing images included."),
        Field("vms", "vms", GAUGE, "Number of VMs with images on the pool."),
        Field("vm_names", "vm_names", DETAIL, "Names of the VMs with images on the pool, at most 32."),
        Field("growers", "growers", DETAIL, "The disks that grow fastest: VM, device, and growth in bytes per second."),
        Field(
            "problem",
            "problem",
            TEXT,
            "Problem that LVM or ZFS reports, such as `out_of_data_space`; or `read_only`, if the file system is read-only.",
        ),
        Field("error", "error", TEXT, "Why the pool cannot be read."),
    ),
    per_host=True,
)

BLOCK_STORAGE = Family(
    "block_storage",
    "query-named-block-nodes and /proc/PID/mountinfo",
    "The pool of each image of a disk, for joins with the metrics `qemu_pool_*`.",
    ("device", "layer"),
    (
        Field("pool", "pool", NAME, "Pool of the image; absent if it is unknown."),
        Field("kind", "kind", TEXT, "Kind of the pool: filesystem, device, lvm_thin, zfs or libvirt."),
        Field("path", "path", TEXT, "Path of the image."),
        Field("unknown", "unknown", TEXT, "Why the pool is unknown, and what to do."),
    ),
    on_change=True,
    from_host_or_agent=True,
)
