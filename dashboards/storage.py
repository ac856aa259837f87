"""Dashboard of storage pools: free space, growth, time to full and overcommitment of the storage under images, and the disks on it."""

from dashboards.panels import (
    HOSTS,
    HOSTS_MATCHER,
    TO_VM,
    Column,
    Dashboard,
    graph_panel,
    number_panel,
    query_variable,
    table_panel,
)

BY = "instance, pool, kind"
POOL = "{{instance}} {{pool}}"
DISK = "{{vm}} {{device}}"
SHARED = f'{HOSTS_MATCHER},pool=~"$pool",kind!="device"'
USED = f"qemu_pool_used_bytes{{{SHARED}}}"
FREE = f"qemu_pool_free_bytes{{{SHARED}}}"
SHARE = f"{USED} / ({USED} + {FREE})"
"""Share of what a user without privileges can allocate: a file system may reserve blocks for root."""

HOUR, DAY, WEEK = 3600, 86400, 7 * 86400


def by_pool(series: str) -> str:
    """Return a query for a gauge of each pool, with the labels that identify a row of the table."""
    return f"max by ({BY}) (qemu_pool_{series}{{{SHARED}}})"


def on_pool(series: str) -> str:
    """Return a query for a gauge of each disk whose image is on a selected pool."""
    storage = f'qemu_block_storage_pool{{{HOSTS_MATCHER},layer="storage",pool=~"$pool"}}'
    return f"qemu_block_space_{series}{{{HOSTS_MATCHER}}} and on (instance, vm_uuid, device) {storage}"


STORAGE = Dashboard(
    "qemu-storage-pools",
    "QEMU storage pools",
    "Free space, growth, time to full and overcommitment of the storage under images, and the disks on it.",
    (
        HOSTS,
        query_variable(
            "pool", "Pools", f'label_values(qemu_pool_size_bytes{{{HOSTS_MATCHER},kind!="device"}}, pool)', many=True
        ),
    ),
    HOSTS_MATCHER,
    {
        "Summary": (
            number_panel("Pools", "short", f"count(qemu_pool_size_bytes{{{SHARED}}}) or vector(0)"),
            number_panel("Over 85 % full", "short", f"count({SHARE} > 0.85) or vector(0)", thresholds=((1, "orange"),)),
            number_panel(
                "Full within a day",
                "short",
                f"count(qemu_pool_time_to_full_seconds{{{SHARED}}} < {DAY}) or vector(0)",
                thresholds=((1, "orange"),),
            ),
            number_panel(
                "Full within an hour",
                "short",
                f"count(qemu_pool_time_to_full_seconds{{{SHARED}}} < {HOUR}) or vector(0)",
                thresholds=((1, "red"),),
            ),
            number_panel(
                "Not responding",
                "short",
                f"count(qemu_pool_responsive{{{SHARED}}} == 0) or vector(0)",
                thresholds=((1, "red"),),
                help="Guests hang when they access such storage.",
            ),
            number_panel(
                "Images without a known pool",
                "short",
                f'count(qemu_block_layer_allocated_bytes{{{HOSTS_MATCHER},layer="storage"}} unless on (instance, vm_uuid, device) '
                f"qemu_block_storage_pool{{{HOSTS_MATCHER}}}) or vector(0)",
                help="`qmp-agent doctor` has the reason for each one, and the fix.",
            ),
        ),
        "Pools": (
            table_panel(
                "Pools",
                {"pool": "Pool", "kind": "Kind", "instance": "Host"},
                Column(
                    "Used", "percentunit", f"max by ({BY}) ({SHARE})", ((0, "text"), (0.85, "orange"), (0.95, "red"))
                ),
                Column("Free", "bytes", by_pool("free_bytes")),
                Column("Size", "bytes", by_pool("size_bytes")),
                Column("Committed", "percentunit", by_pool("commitment_ratio"), ((0, "text"), (1, "orange"))),
                Column("Growth", "Bps", by_pool("growth_bytes_per_second")),
                Column("Growth, day", "Bps", by_pool("growth_over_day_bytes_per_second")),
                Column(
                    "Time to full", "s", by_pool("time_to_full_seconds"), ((0, "red"), (DAY, "orange"), (WEEK, "text"))
                ),
                Column("VMs", "short", by_pool("vms")),
                Column("Images", "short", by_pool("images")),
                empty="no pool",
            ),
        ),
        "Over time": (
            graph_panel(
                "Used", "percentunit", (SHARE, POOL), thresholds=((0.85, "orange"), (0.95, "red")), empty="no pool"
            ),
            graph_panel("Free", "bytes", (FREE, POOL), empty="no pool"),
            graph_panel(
                "Committed",
                "percentunit",
                (f"qemu_pool_commitment_ratio{{{SHARED}}}", POOL),
                thresholds=((1, "orange"),),
                help="What the images can grow to, divided by the size. Above 100 % they can fill the pool.",
            ),
        ),
        "Growth and time to full": (
            graph_panel("Growth", "Bps", (f"qemu_pool_growth_bytes_per_second{{{SHARED}}}", POOL)),
            graph_panel(
                "Time to full",
                "s",
                (f"qemu_pool_time_to_full_seconds{{{SHARED}}}", POOL),
                empty="no pool is growing",
            ),
            graph_panel(
                "Responds",
                "short",
                (f"qemu_pool_responsive{{{SHARED}}}", POOL),
                help="0 while the storage does not answer.",
            ),
        ),
        "Inodes and metadata": (
            graph_panel(
                "Inodes used",
                "percentunit",
                (f"1 - qemu_pool_free_inodes{{{SHARED}}} / qemu_pool_inodes{{{SHARED}}}", POOL),
                thresholds=((0.9, "orange"),),
                empty="no fixed number of inodes",
            ),
            graph_panel(
                "Metadata of thin pools used",
                "percentunit",
                (f"1 - qemu_pool_metadata_free_bytes{{{SHARED}}} / qemu_pool_metadata_size_bytes{{{SHARED}}}", POOL),
                thresholds=((0.75, "orange"), (0.85, "red")),
                empty="no LVM thin pool",
            ),
        ),
        "Disks on the selected pools": (
            graph_panel("Used", "bytes", (on_pool("used_bytes"), DISK), link=TO_VM),
            graph_panel("Growth", "Bps", (on_pool("growth_bytes_per_second"), DISK), link=TO_VM),
        ),
    },
)
