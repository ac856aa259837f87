"""Usage of storage pools: the VM images on a pool, their maximum sizes, and the growth of the pool. Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

from agent.alerts.fully_allocated_image_size import fully_allocated_image_bytes
from agent.alerts.pool_growth import DAY_SECONDS, PoolGrowth
from agent.host.pools.base import READ_ONLY_PROBLEM, Pool, PoolReading, UnknownPool
from agent.model.family import Sample
from agent.model.metrics.storage_pool import BLOCK_STORAGE, POOL
from agent.model.record import Vm, sanitize

MAX_VM_NAMES = 32
"""Maximum number of VM names in a pool's record. The field `vms` has the full count."""

MAX_GROWERS = 5
"""Maximum number of disks in the field `growers` of a pool's record."""

MAX_POOLS = 4096
"""Maximum number of pools. For an image on a further pool, the agent reports an unknown pool."""

MAX_ERROR_LENGTH = 500
"""Maximum number of characters of an error in a record. An error may contain a long path that QEMU reported."""

UNCHANGED_SHARE = 0.001
"""Maximum change of the free bytes or free inodes that counts as no change, as a share of the pool's total."""

DEVICE_DRIVERS = frozenset({"host_device", "host_cdrom"})
"""QEMU's block drivers for block devices of the host."""


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a VM.

    Attributes:
        device: name of the disk.
        layer: `storage` for the image that the guest writes to; `backing-1`, `backing-2` and so on for the backing chain.
        driver: driver of QEMU's block node.
        path: file name that QEMU reports.
        size_bytes: virtual size in bytes.
        allocated_bytes: number of bytes that the host has allocated for the image.
        max_bytes: maximum size of the image file in bytes.
        volume: `major:minor` of the image's block device, or the name of the volume; empty for a file.
        writable: whether the guest can write to the image.
    """

    device: str
    layer: str
    driver: str
    path: str
    size_bytes: int
    allocated_bytes: int
    max_bytes: int
    volume: str = ""
    writable: bool = True


def images_from_layer_samples(layers: Iterable[Sample]) -> list[Image]:
    """Return the images of a VM.

    Args:
        layers: all BLOCK_LAYER samples of the VM.
    """
    by_label = {sample.labels: sample.values for sample in layers}
    images = []
    for (device, layer), values in by_label.items():
        if layer == "format":
            continue
        image_format = by_label.get((device, "format"), values) if layer == "storage" else values
        size, cluster = _non_negative_int(image_format, "size_bytes"), _non_negative_int(image_format, "cluster_bytes")
        allocated = _non_negative_int(values, "allocated_bytes")
        writable = layer == "storage" and image_format.get("read_only") is not True
        max_bytes = allocated
        if values.get("driver") in DEVICE_DRIVERS:
            max_bytes = _non_negative_int(values, "size_bytes")
        elif writable:
            max_bytes = max(fully_allocated_image_bytes(str(image_format.get("driver", "")), size, cluster), allocated)
        driver, path = str(values.get("driver", "")), str(values.get("path", ""))
        images.append(Image(device, layer, driver, path, size, allocated, max_bytes, writable=writable))
    return images


def _non_negative_int(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name, 0)
    return value if type(value) is int and value >= 0 else 0


@dataclass(frozen=True, slots=True)
class GrowingDisk:
    """A disk on a pool and its growth.

    Attributes:
        vm: name of the VM.
        device: name of the disk.
        rate: growth in bytes per second.
    """

    vm: str
    device: str
    rate: float


@dataclass(slots=True, eq=False)
class PoolUsage:
    """A pool with its last reading, its images and the state of its alerts.

    Attributes:
        pool: the pool.
        name: unique name of the pool in records and series.
        images: the images on the pool, by VM, device and layer.
        reading: the last successful reading of the sizes; None before the first reading.
        read_at: when the sizes of the last reading were measured, in seconds since the epoch.
        error: why the last read failed; empty after a success.
        unresponsive_since: when the pool stopped answering, in seconds since the epoch; None if the pool answers.
        has_stalled_disk: whether a disk on the pool met the condition of the alert `io_stalled` after the pool stopped answering.
        growth: history of the used bytes.
        exceeded: the exceeded levels, as written in the config.
        fastest_growing_disks: the disks on the pool that grow fastest.
        unused_since: when the last VM stopped using the pool, in seconds since the epoch; None while a VM uses the pool.
        time_to_full: forecast number of seconds until the pool is full; None without a forecast.
        provisioned: maximum size of all images on the pool together, in bytes. An image that several VMs use counts once.
        vm_names: names of the VMs with images on the pool, sorted.
        has_levels: whether the config has alert levels of space for the pool.
        bytes_until_level: number of bytes that can be written before the next level of space is exceeded; None without a next level.
        on_read_request: called when the pool has to be read now.
        last_growth_rate: growth between the last two readings in bytes per second.
        owner: negative number that identifies the pool in the alert store. The number of a QEMU process is positive.
    """

    pool: Pool
    name: str
    owner: int
    images: dict[tuple[Vm, str, str], Image] = field(default_factory=dict)
    reading: PoolReading | None = None
    read_at: float = 0.0
    error: str = ""
    unresponsive_since: float | None = None
    has_stalled_disk: bool = False
    growth: PoolGrowth = field(default_factory=PoolGrowth)
    exceeded: frozenset[str] = frozenset()
    fastest_growing_disks: Sequence[GrowingDisk] = ()
    unused_since: float | None = None
    time_to_full: float | None = None
    provisioned: int = 0
    vm_names: Sequence[str] = ()
    has_levels: bool = False
    bytes_until_level: int | None = None
    on_read_request: Callable[["PoolUsage"], None] = lambda _usage: None
    last_growth_rate: float = 0.0

    @property
    def free(self) -> int | None:
        """Free bytes; None if unknown."""
        return self.reading.free_bytes if self.reading is not None else None

    @property
    def used(self) -> int | None:
        """Bytes in use; None if unknown."""
        reading = self.reading
        if reading is None or reading.free_bytes is None:
            return None
        return reading.used_bytes if reading.used_bytes is not None else reading.size_bytes - reading.free_bytes

    @property
    def problem_in_last_reading(self) -> str:
        """The problem in the last reading; empty if none. `READ_ONLY_PROBLEM` is left out if no VM writes to the pool."""
        problem = self.reading.problem if self.reading is not None else ""
        is_harmless = problem == READ_ONLY_PROBLEM and not any(image.writable for image in self.images.values())
        return "" if is_harmless else problem

    def volume_allocated_bytes_of_disk(self, vm: Vm, device: str) -> int | None:
        """Return the bytes that the volume under a disk occupies in the pool; None if the pool does not report volumes."""
        image = self.images.get((vm, device, "storage"))
        return (
            self.reading.allocated_bytes_by_volume.get(image.volume)
            if image is not None and self.reading is not None
            else None
        )

    def on_images_changed(self) -> None:
        """Update the provisioned bytes and the names of the VMs after a change of `images`."""
        by_path: dict[str, int] = {}
        for image in self.images.values():
            by_path[image.path] = max(by_path.get(image.path, 0), image.max_bytes)
        self.provisioned = sum(by_path.values())
        self.vm_names = sorted({sanitize(vm.name) for vm, _, _ in self.images})

    def is_reading_unchanged(self, reading: PoolReading) -> bool:
        """Return whether a reading equals the last reading, apart from changes up to `UNCHANGED_SHARE`.

        The first reading after an error or after a time without an answer always counts as a change.
        """
        known = self.reading
        if known is None or self.error or self.unresponsive_since is not None or known.problem != reading.problem:
            return False
        return (
            known.size_bytes == reading.size_bytes
            and _is_nearly_equal(known.free_bytes, reading.free_bytes, reading.size_bytes)
            and _is_nearly_equal(known.free_inodes, reading.free_inodes, reading.inodes)
        )

    def on_reading(self, reading: PoolReading, now: float) -> None:
        """Store a new reading, and update the growth and the forecast."""
        used_before, read_before = self.used, self.read_at
        self.reading, self.error, self.unresponsive_since = reading, "", None
        self.read_at = now if reading.read_at is None else min(reading.read_at, now)
        if self.used is not None and used_before is not None and self.read_at > read_before:
            self.last_growth_rate = (self.used - used_before) / (self.read_at - read_before)
        if self.used is not None:
            self.growth.add(self.read_at, self.used)
        self.time_to_full = self.growth.time_to_full(self.free) if self.free is not None else None

    def record_values(self, now: float) -> dict[str, Any]:
        """Return the pool's sizes, growth and forecast, by the names of the record's fields. Unknown values are absent."""
        reading = self.reading
        values: dict[str, Any] = {}
        if reading is not None:
            is_old = self.unresponsive_since is not None or self.error or reading.read_at is not None
            values = {
                "age_seconds": round(max(0.0, now - self.read_at), 1) if is_old else None,
                "size_bytes": reading.size_bytes,
                "used_bytes": self.used,
                "free_bytes": reading.free_bytes,
                "inodes": reading.inodes,
                "free_inodes": reading.free_inodes,
                "metadata_size_bytes": reading.metadata_size_bytes,
                "metadata_free_bytes": reading.metadata_free_bytes,
                "growth_bytes_per_second": _round_if_known(self.growth.recent_rate()),
                "growth_over_day_bytes_per_second": _round_if_known(self.growth.rate(DAY_SECONDS)),
                "time_to_full_seconds": _round_if_known(self.time_to_full),
                "time_to_full_at_day_growth_seconds": _round_if_known(self._time_to_full_at_day_growth()),
                "problem": self.problem_in_last_reading or None,
            }
        return {name: value for name, value in values.items() if value is not None}

    def _time_to_full_at_day_growth(self) -> float | None:
        rate = self.growth.rate(DAY_SECONDS)
        return self.free / rate if self.free is not None and rate is not None and rate > 0 else None

    def to_sample(self, now: float) -> Sample:
        """Return the `pool` sample of this pool."""
        values: dict[str, Any] = {"key": self.pool.key, "responsive": self.unresponsive_since is None}
        values |= {"type": self.pool.type} if self.pool.type else {}
        values |= self.record_values(now) | {"provisioned_bytes": self.provisioned}
        if self.reading is not None and self.reading.size_bytes:
            values["commitment_ratio"] = round(self.provisioned / self.reading.size_bytes, 4)
        values |= {"exceeded_levels": len(self.exceeded), "images": len(self.images), "vms": len(self.vm_names)}
        values |= {"vm_names": list(self.vm_names[:MAX_VM_NAMES])} | (
            {"growers": growing_disks_to_json(self.fastest_growing_disks)} if self.fastest_growing_disks else {}
        )
        values |= {"error": sanitize(self.error, MAX_ERROR_LENGTH)} if self.error else {}
        return Sample(POOL, (self.name, self.pool.kind.value), values)


def _is_nearly_equal(before: int | None, after: int | None, size: int | None) -> bool:
    """Return whether two numbers differ by at most `UNCHANGED_SHARE` of the size."""
    if before is None or after is None or size is None:
        return before == after
    return abs(before - after) <= size * UNCHANGED_SHARE


def growing_disks_to_json(growers: Sequence[GrowingDisk]) -> list[dict[str, Any]]:
    """Return the value of the field `growers`: the first `MAX_GROWERS` disks as JSON values."""
    return [
        {"vm": sanitize(grower.vm), "device": grower.device, "growth_bytes_per_second": round(grower.rate, 1)}
        for grower in growers[:MAX_GROWERS]
    ]


def _round_if_known(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _update_usages(usages: Iterable[PoolUsage], now: float) -> None:
    for usage in usages:
        usage.on_images_changed()
        if not usage.images and usage.unused_since is None:
            usage.unused_since = now


ImagePlacement = tuple[Image, Pool | UnknownPool]
"""An image and its pool."""


def _key_of_placement(placement: ImagePlacement) -> tuple[str, str, str, str]:
    image, pool = placement
    return image.device, image.layer, image.path, pool.key if isinstance(pool, Pool) else pool.reason


class PoolRegistry:
    """All pools with images of running VMs, and the pools of each VM's images."""

    def __init__(self) -> None:
        self.pools: dict[str, PoolUsage] = {}
        self.on_new_pool: Callable[[PoolUsage], None] = lambda _usage: None
        """Called with each new pool."""
        self.on_read_request: Callable[[PoolUsage], None] = lambda _usage: None
        """Called with a pool that has to be read now."""
        self._owners = count(1)
        self._placements: dict[Vm, list[ImagePlacement]] = {}
        self._by_disk: dict[tuple[Vm, str], tuple[str, PoolUsage | UnknownPool]] = {}

    def __iter__(self) -> Iterator[PoolUsage]:
        return iter(list(self.pools.values()))

    def set_images_of_vm(self, vm: Vm, placements: Sequence[ImagePlacement], now: float) -> bool:
        """Replace the images of a VM and their pools.

        Returns:
            True if an image is new, or if its pool has changed.
        """
        places_before = set(map(_key_of_placement, self._placements.get(vm, ())))
        before = self._remove_images(vm)
        self._placements[vm] = added = [(image, self._add_new_pool(pool)) for image, pool in placements]
        for image, pool in added:
            place: PoolUsage | UnknownPool
            if isinstance(pool, Pool):
                place = self.pools[pool.key]
                place.pool, place.unused_since = pool, None
                place.images[vm, image.device, image.layer] = image
            else:
                place = pool
            if image.layer == "storage":
                self._by_disk[vm, image.device] = image.path, place
        _update_usages({*before, *self.pools_of_vm(vm)}, now)
        return not places_before.issuperset(map(_key_of_placement, added))

    def remove_vm(self, vm: Vm, now: float) -> None:
        """Remove all images of a VM."""
        _update_usages(self._remove_images(vm), now)

    def remove_pool(self, usage: PoolUsage) -> None:
        """Remove a pool that has no images."""
        self.pools.pop(usage.pool.key, None)

    def _remove_images(self, vm: Vm) -> list[PoolUsage]:
        usages = self.pools_of_vm(vm)
        for image, _ in self._placements.pop(vm, ()):
            self._by_disk.pop((vm, image.device), None)
            for usage in usages:
                usage.images.pop((vm, image.device, image.layer), None)
        return usages

    def _add_new_pool(self, pool: Pool | UnknownPool) -> Pool | UnknownPool:
        """Add a new pool, and return the pool. If the host has `MAX_POOLS` pools, return an unknown pool instead of a new pool."""
        if isinstance(pool, Pool) and pool.key not in self.pools:
            if len(self.pools) >= MAX_POOLS:
                return UnknownPool(f"the host has more than {MAX_POOLS} pools")
            self.on_new_pool(self.add(pool, pool.name))
        return pool

    def add(self, pool: Pool, name: str) -> PoolUsage:
        """Add a pool and return its usage. If another pool has the same name, append the pool's key to the name."""
        name, taken = sanitize(name), {other.name for other in self.pools.values()}
        name = name if name not in taken else f"{name} ({pool.key.partition(':')[2]})"
        usage = self.pools[pool.key] = PoolUsage(pool, name, -next(self._owners))
        usage.on_read_request = self._request_read
        return usage

    def _request_read(self, usage: PoolUsage) -> None:
        self.on_read_request(usage)

    def pools_of_vm(self, vm: Vm) -> list[PoolUsage]:
        """Return the pools with images of a VM."""
        keys = dict.fromkeys(pool.key for _, pool in self._placements.get(vm, ()) if isinstance(pool, Pool))
        return [self.pools[key] for key in keys if key in self.pools]

    def pools_of_disk(self, vm: Vm, device: str) -> list[PoolUsage]:
        """Return the pools with images of a disk."""
        return [usage for usage in self.pools_of_vm(vm) if any(key[:2] == (vm, device) for key in usage.images)]

    def pool_of_image(self, vm: Vm, device: str, path: str) -> PoolUsage | UnknownPool | None:
        """Return the pool of the image that a disk writes to; None while the agent searches for the pool."""
        known_path, pool = self._by_disk.get((vm, device), ("", None))
        return pool if known_path == path else None

    def block_storage_samples_of_vm(self, vm: Vm) -> list[Sample]:
        """Return the `block_storage` samples of a VM, one for each image."""
        samples = []
        for image, pool in islice(self._placements.get(vm, ()), 4096):
            values: dict[str, Any] = {"path": sanitize(image.path, 4096)}
            if isinstance(pool, Pool):
                values |= {"pool": self.pools[pool.key].name, "kind": pool.kind.value}
            else:
                values["unknown"] = sanitize(pool.reason, MAX_ERROR_LENGTH)
            samples.append(Sample(BLOCK_STORAGE, (image.device, image.layer), values))
        return samples
