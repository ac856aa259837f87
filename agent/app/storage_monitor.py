"""Monitors the storage pools of all VMs. It finds the pool of each image, and reads a pool once for all VMs that use the pool."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from math import inf

from agent.alerts.pool_usage import Placement, PoolRegistry, PoolUsage
from agent.app.alert_bridge import AlertBridge
from agent.app.pool_placement import PoolPlacement
from agent.app.storage_gate import StorageGate
from agent.exposition.snapshot import Snapshot
from agent.host.filesystem_reader import FileSystemReader
from agent.host.image_location import ImageLocator
from agent.host.pools.base import (
    Pool,
    PoolKind,
    PoolReadError,
    PoolReading,
    PoolReadings,
    PoolSource,
    PoolUnresponsiveError,
)
from agent.host.pools.device import DeviceSource
from agent.host.pools.filesystem import FileSystemSource, mount_device
from agent.model.family import Family, Sample
from agent.model.metrics.pool import BLOCK_STORAGE, POOL
from agent.model.record import Record, Vm

_log = logging.getLogger("agent")

CHECK_SECONDS = 5.0
"""Maximum time between two checks whether a file system still answers. Local file systems are checked less often."""

FASTEST_SECONDS = 0.5
"""Minimum time between two reads of a pool that is close to an alert level."""

LEVEL_SHARE = 0.25
"""Time until the next read of a pool, as a share of the forecast time until the pool exceeds its next level."""

SILENT_SECONDS = 1.0
"""Time between two checks of a pool that does not answer. At most one request for the pool is in flight."""

LOCAL_TYPES = frozenset({"btrfs", "ext2", "ext3", "ext4", "tmpfs", "xfs", "zfs"})
"""Types of file systems for which statvfs needs no I/O, because the kernel has the figures in memory."""

BURST_BYTES_PER_SECOND = 2 << 30
"""Highest expected growth of a pool between two regular reads."""

KEEP_UNUSED_SECONDS = 300.0
"""How long a pool stays registered without a VM on it."""

READ_SECONDS = 20.0
"""Timeout of one read of a source's pools."""

MIN_DELAY_SECONDS = 0.05
SLACK_SECONDS = 0.1


class StorageMonitor:
    """Finds and reads the pools of all VMs, and publishes their records.

    Attributes:
        registry: the pools and their images.
        gate: decides whether the agent may send a VM commands that access storage.
        interval: seconds between two records of a pool.
    """

    def __init__(
        self,
        host: str,
        publish: Callable[[Record], object],
        snapshot: Snapshot,
        registry: PoolRegistry,
        alerts: AlertBridge,
        sources: Sequence[PoolSource] = (),
        fallback: PoolSource | None = None,
        thin_pool_free: Callable[[str], int | None] = lambda _device: None,
        interval: float = 30.0,
    ) -> None:
        """Create a monitor. Call `run` to start it.

        Args:
            host: name of this host.
            publish: publishes a record.
            snapshot: stores the samples of the pools for Prometheus.
            registry: the pools.
            alerts: the alerts of the pools.
            sources: the sources that are asked for the pool of an image before the sources of file systems and devices.
            fallback: the source of pools for images without a known location; None if there is no such source.
            thin_pool_free: returns the free bytes of the thin pool under a device, given as `major:minor`; None if there is no thin pool.
            interval: seconds between two records of a pool.
        """
        self.registry = registry
        self._alerts = alerts
        self.interval = interval
        registry.on_read_request = self._read_pool_now
        self._vm = Vm(host, "", "")
        self._publish = publish
        self._snapshot = snapshot
        self._reader = FileSystemReader(on_change=self._on_storage_change)
        self._file_systems = FileSystemSource(self._reader, thin_pool_free)
        self._fallback = fallback
        self._sources: tuple[PoolSource, ...] = (*sources, self._file_systems, DeviceSource())
        self._placement = PoolPlacement(ImageLocator(self._reader), self._sources, self._on_placed, fallback)
        self.gate = StorageGate(self._reader, self._placement)
        self._late_vms: dict[Vm, None] = {}
        self._due: dict[str, float] = {}
        self._published_at: dict[str, float] = {}
        self._in_flight: set[str] = set()
        self._woken = asyncio.Event()

    # Input from sessions.

    def on_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample]) -> None:
        """Handle the samples of one poll of a VM."""
        self._placement.on_samples(vm, families, samples)

    def on_detached(self, vm: Vm) -> None:
        """Remove a VM that is no longer attached."""
        self._placement.on_detached(vm)
        self.gate.on_detached(vm)
        self._late_vms.pop(vm, None)
        self.registry.remove_vm(vm, time.time())

    def _on_placed(self, vm: Vm, placements: Sequence[Placement], at_once: bool) -> None:  # noqa: FBT001 - a callback
        has_moved = self.registry.place(vm, placements, time.time())
        samples, time_ns = self.registry.storage_samples(vm), time.time_ns()
        changed = [sample for sample in samples if self._snapshot.stored_values(vm, sample) != sample.values]
        self._snapshot.replace_samples(vm, (BLOCK_STORAGE,), samples, time_ns)
        for sample in changed:
            self._publish(Record(BLOCK_STORAGE.type, vm, sample.data, time_ns, sample.subject))
        for usage in self.registry.pools_of_vm(vm):
            self._due.setdefault(usage.pool.key, time.monotonic())
            if usage.reading is None and usage.pool.kind is PoolKind.FILESYSTEM:
                recent = self._file_systems.recent_reading(usage.pool, CHECK_SECONDS)
                if recent is not None:
                    self._on_reading(usage, recent)
        if has_moved and not (at_once and self._are_pools_read(vm)):
            self._late_vms[vm] = None
        self._poll_late_vms()
        self._wake()

    def _are_pools_read(self, vm: Vm) -> bool:
        """Return whether each pool of the VM has figures or a read error."""
        return all(usage.reading is not None or usage.error for usage in self.registry.pools_of_vm(vm))

    def _poll_late_vms(self) -> None:
        """Poll the block nodes of each late VM whose pools have been read. Then the alerts compare its disks with the pools."""
        for vm in [vm for vm in self._late_vms if self._are_pools_read(vm)]:
            del self._late_vms[vm]
            self.gate.demand(vm, ("nodes",))

    def _on_storage_change(self) -> None:
        """Handle a change of a mount's state. Read the unresponsive pools of mounts that answer again."""
        for usage in self.registry:
            if usage.silent_since is not None and not self._reader.is_suspect(mount_device(usage.pool)):
                self._due[usage.pool.key] = time.monotonic()
        self.gate.on_change()
        self._wake()

    # The schedule.

    async def run(self) -> None:
        """Find and read pools until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._refresh_sources(), name="refresh pools")
                tasks.create_task(self._placement.run(), name="find pools")
                while True:
                    self._woken.clear()
                    self._start_reads(tasks)
                    self._remove_unused_pools()
                    delay = min(self._due.values(), default=time.monotonic() + CHECK_SECONDS) - time.monotonic()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(max(delay, MIN_DELAY_SECONDS)):
                            await self._woken.wait()
        finally:
            await self._reader.close()

    def _read_pool_now(self, usage: PoolUsage) -> None:
        self._due[usage.pool.key] = time.monotonic()
        self._wake()

    def _wake(self) -> None:
        self._woken.set()

    async def _refresh_sources(self) -> None:
        while True:
            changed = [await _refresh_source(source) for source in (*self._sources, *filter(None, (self._fallback,)))]
            if any(changed):
                self._placement.find_again()
            await asyncio.sleep(self.interval)

    def _start_reads(self, tasks: asyncio.TaskGroup) -> None:
        """Start a task for each read that is due. A file system has a task of its own, because it may hang. Other sources have one each."""
        now = time.monotonic()
        due: dict[PoolSource, list[Pool]] = {}
        for key in [key for key, at in self._due.items() if at <= now]:
            usage = self.registry.pools.get(key)
            if usage is None:
                del self._due[key]
            elif key in self._in_flight:
                self._due[key] = now + CHECK_SECONDS
            else:
                self._due[key] = now + self._seconds_until_read(usage)
                self._in_flight.add(key)
                due.setdefault(self._placement.source_of(usage.pool), []).append(usage.pool)
        for source, pools in due.items():
            for group in [[pool] for pool in pools] if isinstance(source, FileSystemSource) else [pools]:
                tasks.create_task(self._read_pools(source, group), name=f"read pool {group[0].name}")

    async def _read_pools(self, source: PoolSource, pools: Sequence[Pool]) -> None:
        readings: PoolReadings
        try:
            async with asyncio.timeout(READ_SECONDS):
                readings = await source.read(pools)
        except TimeoutError:
            readings = {pool.key: PoolUnresponsiveError(f"no answer within {READ_SECONDS:g} s") for pool in pools}
        except Exception as error:  # noqa: BLE001 - a bug in one source must not end the reading of others
            _log.exception("%s: pools not read: internal error", type(source).__name__)
            readings = {pool.key: PoolReadError(f"{type(error).__name__}: {error}") for pool in pools}
        finally:
            self._in_flight.difference_update(pool.key for pool in pools)
        for key, reading in readings.items():
            if (usage := self.registry.pools.get(key)) is not None:
                self._on_reading(usage, reading)
        self._poll_late_vms()

    def _on_reading(self, usage: PoolUsage, reading: PoolReading | PoolReadError) -> None:
        now, key = time.time(), usage.pool.key
        if isinstance(reading, PoolReading):
            if (
                usage.is_unchanged(reading)
                and not self._is_record_due(usage)
                and self._seconds_until_read(usage) >= CHECK_SECONDS
            ):
                return  # a check between two records only has to show that the pool answers
            usage.on_reading(reading, now)
            self._alerts.on_pool_reading(usage)
        elif isinstance(reading, PoolUnresponsiveError):
            usage.silent_since = usage.silent_since or now
            if usage.pool.kind is not PoolKind.FILESYSTEM or self._reader.is_unresponsive(mount_device(usage.pool)):
                self._alerts.on_pool_silence(usage)
        else:
            usage.error, usage.silent_since = str(reading), None
            self._alerts.on_pool_error(usage)
        self._due[key] = min(self._due.get(key, inf), time.monotonic() + self._seconds_until_read(usage))
        self._publish_usage(usage, now)

    def _publish_usage(self, usage: PoolUsage, now: float) -> None:
        """Update the series of a pool, and publish its record at the interval."""
        is_due = self._is_record_due(usage)
        if is_due:
            usage.growers = self._alerts.manager.growers(usage)
        sample = usage.sample(now)
        self._snapshot.replace_host_sample(sample)
        if is_due:
            self._published_at[usage.pool.key] = time.monotonic()
            self._publish(Record(POOL.type, self._vm, sample.data, time.time_ns(), sample.subject))

    def _is_record_due(self, usage: PoolUsage) -> bool:
        published_at = self._published_at.get(usage.pool.key, -inf)
        return time.monotonic() - published_at >= self.interval - SLACK_SECONDS

    def _seconds_until_read(self, usage: PoolUsage) -> float:
        """Return the seconds until the next read of a pool. A pool that grows towards a level is read more often."""
        if usage.pool.kind is not PoolKind.FILESYSTEM:
            return self.interval
        if usage.silent_since is not None:
            return SILENT_SECONDS
        until_level = self._alerts.pools.seconds_until_level(usage)
        longest = self._max_seconds_until_read(usage)
        near = until_level * LEVEL_SHARE if until_level is not None else longest
        return min(longest, self.interval, max(near, FASTEST_SECONDS))

    def _max_seconds_until_read(self, usage: PoolUsage) -> float:
        """Return the maximum number of seconds until the next read of a file system.

        A file system on a local device answers from memory, so a check cannot detect that its device hangs. Frequent reads are useful
        only if a burst of writes could exceed a level before the next regular read.
        """
        if usage.pool.type not in LOCAL_TYPES or usage.reading is None:
            return CHECK_SECONDS
        gap = usage.bytes_until_level
        return max(CHECK_SECONDS, gap / BURST_BYTES_PER_SECOND) if gap is not None else self.interval

    def _remove_unused_pools(self) -> None:
        now = time.time()
        for usage in self.registry:
            if usage.unused_since is not None and now - usage.unused_since > KEEP_UNUSED_SECONDS:
                self._alerts.on_pool_removed(usage)
                self.registry.remove_pool(usage)
                self._placement.remove_pool(usage.pool)
                self._published_at.pop(usage.pool.key, None)
                self._snapshot.remove_host_sample(POOL, (usage.name, usage.pool.kind.value))


async def _refresh_source(source: PoolSource) -> bool:
    """Refresh a source, and return its result; False after an exception, because a bug in one source must not affect the others."""
    try:
        return await source.refresh()
    except Exception:  # noqa: BLE001 - it is logged
        _log.exception("%s: list of pools not refreshed: internal error", type(source).__name__)
        return False
