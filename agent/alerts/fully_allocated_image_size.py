"""Computes the maximum size of an image file. Pure."""

from math import ceil

_DEFAULT_CLUSTER_BYTES = 65536
_ENTRY_BYTES = 8
_REFCOUNT_BYTES = 2


def fully_allocated_image_bytes(driver: str, size: int, cluster_bytes: int = 0) -> int:
    """Return the size of a fully allocated image file without internal snapshots, in bytes.

    For qcow2, the result equals that of `qemu-img measure` (block/qcow2.c: qcow2_calc_prealloc_size) with refcounts of 16 bits.

    Args:
        driver: Driver of the image format, such as `qcow2`.
        size: Virtual size of the image in bytes.
        cluster_bytes: Size of a cluster in bytes. 0 if unknown; QEMU's default of 64 KiB then applies.
    """
    if driver != "qcow2":
        return size
    cluster_size = cluster_bytes if cluster_bytes >= 512 else _DEFAULT_CLUSTER_BYTES
    entries_per_cluster = cluster_size // _ENTRY_BYTES
    data_bytes = _round_up(size, cluster_size)
    l2_entries = _round_up(data_bytes // cluster_size, entries_per_cluster)
    l1_entries = _round_up(l2_entries * _ENTRY_BYTES // cluster_size, entries_per_cluster)
    metadata_bytes = cluster_size + (l2_entries + l1_entries) * _ENTRY_BYTES
    return data_bytes + metadata_bytes + _refcount_bytes((data_bytes + metadata_bytes) // cluster_size, cluster_size)


def _refcount_bytes(other_clusters: int, cluster_size: int) -> int:
    """Return the size of the refcount table and the refcount blocks, in bytes. The blocks also count the clusters of table and blocks."""
    refcount_blocks = table_clusters = total_clusters = 0
    while True:
        refcount_blocks = ceil((other_clusters + table_clusters + refcount_blocks) / (cluster_size // _REFCOUNT_BYTES))
        table_clusters = ceil(refcount_blocks / (cluster_size // _ENTRY_BYTES))
        if total_clusters == (total_clusters := other_clusters + refcount_blocks + table_clusters):
            return (refcount_blocks + table_clusters) * cluster_size


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
