"""Computes the maximum size of an image file. Pure."""

from math import ceil

_DEFAULT_CLUSTER_BYTES = 65536
_ENTRY_BYTES = 8
_REFCOUNT_BYTES = 2


def max_file_bytes(driver: str, size: int, cluster_bytes: int = 0) -> int:
    """Return the size of a fully allocated image file without internal snapshots, in bytes.

    For qcow2, the result equals that of `qemu-img measure` (block/qcow2.c: qcow2_calc_prealloc_size) with refcounts of 16 bits.

    Args:
        driver: driver of the image format, such as `qcow2`.
        size: virtual size of the image in bytes.
        cluster_bytes: size of a cluster in bytes; 0 means unknown, and the default of 64 KiB is used.
    """
    if driver != "qcow2":
        return size
    cluster = cluster_bytes if cluster_bytes >= 512 else _DEFAULT_CLUSTER_BYTES
    entries = cluster // _ENTRY_BYTES
    data = _round_up(size, cluster)
    l2_entries = _round_up(data // cluster, entries)
    l1_entries = _round_up(l2_entries * _ENTRY_BYTES // cluster, entries)
    metadata = cluster + (l2_entries + l1_entries) * _ENTRY_BYTES
    return data + metadata + _refcount_bytes((data + metadata) // cluster, cluster)


def _refcount_bytes(clusters: int, cluster: int) -> int:
    """Return the bytes of the refcount table and the refcount blocks. The refcounts also cover the clusters of these two."""
    blocks = table = total = 0
    while True:
        blocks = ceil((clusters + table + blocks) / (cluster // _REFCOUNT_BYTES))
        table = ceil(blocks / (cluster // _ENTRY_BYTES))
        if total == (total := clusters + blocks + table):
            return (blocks + table) * cluster


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
