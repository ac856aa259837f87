"""Usage of pools: which images are on a pool, what they may grow to, and how fast the pool fills. Pure: the caller passes the time."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

from agent.alerts.growth import DAY_SECONDS, Growth
from agent.alerts.image_size import max_file_bytes
from agent.host.pools.base import Pool, PoolReading, UnknownPool
from agent.model.family import Sample
from agent.model.metrics.pool import BLOCK_STORAGE, POOL
from agent.model.record import Vm, sanitize

MAX_NAMES = 32
"""Maximum number of VMs in a pool's record; `vms` has the full count."""

MAX_GROWERS = 5

MAX_POOLS = 4096
"""Maximum number of pools. Images on further ones count as unknown."""

MAX_REASON = 500
"""Maximum number of characters of a reason, which may contain a path that QEMU reported."""

UNCHANGED_SHARE = 0.001
"""Change of a pool's free space or inodes, as a share of its size, up to which a check between two regular readings shows nothing new."""

DEVICE_DRIVERS = frozenset({"host_device", "host_cdrom"})


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a VM.

    Attributes:
        device: the disk.
        layer: `storage` for the image that the guest writes to, `backing-1` and on for the backing chain.
        driver: driver of the node.
        path: file name that QEMU reports.
        size: virtual size in bytes.
        allocated: bytes that the host has allocated for it.
        max_bytes: bytes that its file can grow to.
    """

    device: str
    layer: str
    driver: str
    path: str
    size: int
    allocated: int
    max_bytes: int


def images_of(layers: Iterable[Sample]) -> list[Image]:
    """Return the images of a VM from all of its BLOCK_LAYER samples."""
    by_label = {sample.labels: sample.values for sample in layers}
    images = []
    for (device, layer), values in by_label.items():
        if layer == "format":
            continue
        shape = by_label.get((device, "format"), values) if layer == "storage" else values
        size, cluster = _number(shape, "size_bytes"), _number(shape, "cluster_bytes")
        allocated = _number(values, "allocated_bytes")
        writable = layer == "storage" and shape.get("read_only") is not True
        limit = allocated
        if values.get("driver") in DEVICE_DRIVERS:
            limit = _number(values, "size_bytes")
        elif writable:
            limit = max(max_file_bytes(str(shape.get("driver", "")), size, cluster), allocated)
        driver, path = str(values.get("driver", "")), str(values.get("path", ""))
        images.append(Image(device, layer, driver, path, size, allocated, limit))
    return images


def _number(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name, 0)
    return value if type(value) is int and value >= 0 else 0


@dataclass(frozen=True, slots=True)
class Grower:
    """A disk that grows.

    Attributes:
        vm: name of its VM.
        device: the disk.
        rate: growth in bytes per second.
    """

    vm: str
    device: str
    rate: float


@dataclass(slots=True, eq=False)
class PoolUsage:
    """One pool.

    Attributes:
        pool: the pool.
        name: its name, different from those of the other pools.
        images: the images on it, by VM, device and layer.
        reading: its last figures; None before the first.
        read_at: when they were taken, in seconds since the epoch.
        error: why it cannot be read; empty if it can.
        silent_since: since when it has not answered, in seconds since the epoch; None if it answers.
        growth: growth of its used bytes.
        exceeded: texts of the exceeded levels.
        growers: the disks on it that grow fastest.
        unused_since: since when no VM is on it, in seconds since the epoch; None while there is one.
        time_to_full: seconds until it is full; None while that is not in sight.
        provisioned: bytes that its images may grow to. An image that several VMs use counts once.
        vm_names: names of the VMs with images on it, sorted.
        has_levels: whether the config has alert levels of space for it.
        bytes_until_level: bytes that can be written until the next level of space is exceeded; None if there is none.
        on_read_request: called when the pool has to be read now.
        last_rate: growth between the last two readings in bytes per second.
        owner: number that identifies the pool in the alert store; those of VMs' processes are positive.
    """

    pool: Pool
    name: str
    owner: int
    images: dict[tuple[Vm, str, str], Image] = field(default_factory=dict)
    reading: PoolReading | None = None
    read_at: float = 0.0
    error: str = ""
    silent_since: float | None = None
    growth: Growth = field(default_factory=Growth)
    exceeded: frozenset[str] = frozenset()
    growers: Sequence[Grower] = ()
    unused_since: float | None = None
    time_to_full: float | None = None
    provisioned: int = 0
    vm_names: Sequence[str] = ()
    has_levels: bool = False
    bytes_until_level: int | None = None
    on_read_request: Callable[["PoolUsage"], None] = lambda _usage: None
    last_rate: float = 0.0

    @property
    def free(self) -> int | None:
        """Free bytes; None if they are unknown."""
        return self.reading.free_bytes if self.reading is not None else None

    @property
    def used(self) -> int | None:
        """Bytes in use; None if they are unknown."""
        reading = self.reading
        if reading is None or reading.free_bytes is None:
            return None
        return reading.used_bytes if reading.used_bytes is not None else reading.size_bytes - reading.free_bytes

    def on_images(self) -> None:
        """Handle a change of `images`."""
        by_path: dict[str, int] = {}
        for image in self.images.values():
            by_path[image.path] = max(by_path.get(image.path, 0), image.max_bytes)
        self.provisioned = sum(by_path.values())
        self.vm_names = sorted({sanitize(vm.name) for vm, _, _ in self.images})

    def is_unchanged(self, reading: PoolReading) -> bool:
        """Return whether a reading shows nothing new: the pool answered before, and its figures differ by a thousandth at most."""
        known = self.reading
        if known is None or self.error or self.silent_since is not None or known.problem != reading.problem:
            return False
        return (
            known.size_bytes == reading.size_bytes
            and _is_near(known.free_bytes, reading.free_bytes, reading.size_bytes)
            and _is_near(known.free_inodes, reading.free_inodes, reading.inodes)
        )

    def on_reading(self, reading: PoolReading, now: float) -> None:
        """Handle new figures."""
        used_before, read_before = self.used, self.read_at
        self.reading, self.error, self.silent_since = reading, "", None
        self.read_at = now if reading.read_at is None else min(reading.read_at, now)
        if self.used is not None and used_before is not None and self.read_at > read_before:
            self.last_rate = (self.used - used_before) / (self.read_at - read_before)
        if self.used is not None:
            self.growth.add(self.read_at, self.used)
        self.time_to_full = self.growth.time_to_full(self.free) if self.free is not None else None

    def figures(self, now: float) -> dict[str, Any]:
        """Return its figures by the names of the record's fields; unknown ones are absent."""
        reading = self.reading
        values: dict[str, Any] = {}
        if reading is not None:
            is_old = self.silent_since is not None or self.error or reading.read_at is not None
            values = {
                "age_seconds": round(max(0.0, now - self.read_at), 1) if is_old else None,
                "size_bytes": reading.size_bytes,
                "used_bytes": self.used,
                "free_bytes": reading.free_bytes,
                "inodes": reading.inodes,
                "free_inodes": reading.free_inodes,
                "metadata_size_bytes": reading.metadata_size_bytes,
                "metadata_free_bytes": reading.metadata_free_bytes,
                "growth_bytes_per_second": _rounded(self.growth.recent_rate()),
                "growth_day_bytes_per_second": _rounded(self.growth.rate(DAY_SECONDS)),
                "time_to_full_seconds": _rounded(self.time_to_full),
                "time_to_full_day_seconds": _rounded(self._time_to_full_day()),
                "problem": reading.problem or None,
            }
        return {name: value for name, value in values.items() if value is not None}

    def _time_to_full_day(self) -> float | None:
        rate = self.growth.rate(DAY_SECONDS)
        return self.free / rate if self.free is not None and rate is not None and rate > 0 else None

    def sample(self, now: float) -> Sample:
        """Return its sample."""
        values: dict[str, Any] = {"key": self.pool.key, "responsive": self.silent_since is None}
        values |= {"type": self.pool.type} if self.pool.type else {}
        values |= self.figures(now) | {"provisioned_bytes": self.provisioned}
        if self.reading is not None and self.reading.size_bytes:
            values["commitment_ratio"] = round(self.provisioned / self.reading.size_bytes, 4)
        values |= {"exceeded_levels": len(self.exceeded), "images": len(self.images), "vms": len(self.vm_names)}
        values |= {"vm_names": list(self.vm_names[:MAX_NAMES])} | (
            {"growers": growers_data(self.growers)} if self.growers else {}
        )
        values |= {"error": sanitize(self.error, MAX_REASON)} if self.error else {}
        return Sample(POOL, (self.name, self.pool.kind.value), values)


def _is_near(before: int | None, after: int | None, size: int | None) -> bool:
    """Return whether two figures differ by a thousandth of the size at most."""
    if before is None or after is None or size is None:
        return before == after
    return abs(before - after) <= size * UNCHANGED_SHARE


def growers_data(growers: Sequence[Grower]) -> list[dict[str, Any]]:
    """Return the fastest growers as JSON values."""
    return [
        {"vm": sanitize(grower.vm), "device": grower.device, "growth_bytes_per_second": round(grower.rate, 1)}
        for grower in growers[:MAX_GROWERS]
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _on_images(usages: Iterable[PoolUsage], now: float) -> None:
    for usage in usages:
        usage.on_images()
        if not usage.images and usage.unused_since is None:
            usage.unused_since = now


Placement = tuple[Image, Pool | UnknownPool]
"""An image and its pool."""


def _place(placement: Placement) -> tuple[str, str, str, str]:
    image, pool = placement
    return image.device, image.layer, image.path, pool.key if isinstance(pool, Pool) else pool.reason


class PoolRegistry:
    """All pools with images of running VMs, and the pools of each VM's images."""

    def __init__(self) -> None:
        self.pools: dict[str, PoolUsage] = {}
        self.on_pool: Callable[[PoolUsage], None] = lambda _usage: None
        """Called with each new pool."""
        self.on_read_request: Callable[[PoolUsage], None] = lambda _usage: None
        """Called with a pool that has to be read now."""
        self._owners = count(1)
        self._placements: dict[Vm, list[Placement]] = {}
        self._by_disk: dict[tuple[Vm, str], tuple[str, PoolUsage | UnknownPool]] = {}

    def __iter__(self) -> Iterator[PoolUsage]:
        return iter(list(self.pools.values()))

    def place(self, vm: Vm, placements: Sequence[Placement], now: float) -> bool:
        """Replace a VM's images and their pools; return whether an image is new, or is on another pool than before."""
        places_before = set(map(_place, self._placements.get(vm, ())))
        before = self._take_out(vm)
        self._placements[vm] = admitted = [(image, self._admit(pool)) for image, pool in placements]
        for image, pool in admitted:
            place: PoolUsage | UnknownPool
            if isinstance(pool, Pool):
                place = self.pools[pool.key]
                place.pool, place.unused_since = pool, None
                place.images[vm, image.device, image.layer] = image
            else:
                place = pool
            if image.layer == "storage":
                self._by_disk[vm, image.device] = image.path, place
        _on_images({*before, *self.of_vm(vm)}, now)
        return not places_before.issuperset(map(_place, admitted))

    def remove(self, vm: Vm, now: float) -> None:
        """Remove a VM's images."""
        _on_images(self._take_out(vm), now)

    def forget(self, usage: PoolUsage) -> None:
        """Remove a pool."""
        self.pools.pop(usage.pool.key, None)

    def _take_out(self, vm: Vm) -> list[PoolUsage]:
        usages = self.of_vm(vm)
        for image, _ in self._placements.pop(vm, ()):
            self._by_disk.pop((vm, image.device), None)
            for usage in usages:
                usage.images.pop((vm, image.device, image.layer), None)
        return usages

    def _admit(self, pool: Pool | UnknownPool) -> Pool | UnknownPool:
        """Add a pool unless it is known or there are too many; return it."""
        if isinstance(pool, Pool) and pool.key not in self.pools:
            if len(self.pools) >= MAX_POOLS:
                return UnknownPool(f"the host has more than {MAX_POOLS} pools")
            self.on_pool(self.add(pool, pool.name))
        return pool

    def add(self, pool: Pool, name: str) -> PoolUsage:
        """Add a pool, and return it. A name that another pool has gets the pool's key too."""
        name, taken = sanitize(name), {other.name for other in self.pools.values()}
        name = name if name not in taken else f"{name} ({pool.key.partition(':')[2]})"
        usage = self.pools[pool.key] = PoolUsage(pool, name, -next(self._owners))
        usage.on_read_request = self._request_read
        return usage

    def _request_read(self, usage: PoolUsage) -> None:
        self.on_read_request(usage)

    def of_vm(self, vm: Vm) -> list[PoolUsage]:
        """Return the pools of a VM's images."""
        keys = dict.fromkeys(pool.key for _, pool in self._placements.get(vm, ()) if isinstance(pool, Pool))
        return [self.pools[key] for key in keys if key in self.pools]

    def of_image(self, vm: Vm, device: str, path: str) -> PoolUsage | UnknownPool | None:
        """Return the pool of the image that a disk writes to; None while the agent looks for it."""
        known_path, pool = self._by_disk.get((vm, device), ("", None))
        return pool if known_path == path else None

    def storage_samples(self, vm: Vm) -> list[Sample]:
        """Return a VM's BLOCK_STORAGE samples."""
        samples = []
        for image, pool in islice(self._placements.get(vm, ()), 4096):
            values: dict[str, Any] = {"path": sanitize(image.path, 4096)}
            if isinstance(pool, Pool):
                values |= {"pool": self.pools[pool.key].name, "kind": pool.kind.value}
            else:
                values["unknown"] = sanitize(pool.reason, MAX_REASON)
            samples.append(Sample(BLOCK_STORAGE, (image.device, image.layer), values))
        return samples
