"""Finds the storage pool of each VM image, and reads each pool once for all VMs that use the pool."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from math import inf

from agent.alerts.pool_usage import ImagePlacement, PoolRegistry, PoolUsage
from agent.app.alert_publisher import AlertPublisher
from agent.app.causation import CausationIdLookup
from agent.app.image_pool_finder import ImagePoolFinder
from agent.app.pool_alert_publisher import PoolAlertPublisher
from agent.app.storage_query_gate import StorageQueryGate
from agent.exposition.snapshot import Snapshot
from agent.host.pools.base import (
    Pool,
    PoolKind,
    PoolReadError,
    PoolReading,
    PoolReadings,
    PoolSource,
    PoolUnresponsiveError,
)
from agent.host.pools.block_device import BlockDevicePoolSource
from agent.host.pools.filesystem import FileSystemPoolSource, mount_device_number
from agent.host.pools.filesystem_reader import FileSystemReader
from agent.host.pools.image_location import ImageLocator
from agent.model.family import Family, Sample
from agent.model.metrics.storage_pool import BLOCK_STORAGE, POOL
from agent.model.record import Record, Vm

_log = logging.getLogger("agent")

CHECK_SECONDS = 5.0
"""Maximum time between two reads of a file system that may stop answering, such as NFS. Local file systems are read less often."""

MIN_READ_SECONDS = 0.5
"""Minimum time between two reads of a pool that is close to an alert level."""

LEVEL_SHARE = 0.25
"""A pool is read again after this share of the forecast time until its next alert level."""

UNRESPONSIVE_CHECK_SECONDS = 1.0
"""Time between two checks of a pool that does not answer. There is never more than one request for the pool in flight."""

LOCAL_TYPES = frozenset({"btrfs", "ext2", "ext3", "ext4", "tmpfs", "xfs", "zfs"})
"""Types of file systems for which statvfs needs no I/O, because the kernel has the figures in memory."""

BURST_BYTES_PER_SECOND = 2 << 30
"""Highest expected growth of a pool between two regular reads."""

KEEP_UNUSED_SECONDS = 300.0
"""How long a pool that no VM uses stays registered."""

POOL_READ_SECONDS = 20.0
"""Timeout of one read of a source's pools."""

MIN_DELAY_SECONDS = 0.05
"""Minimum time between two checks for reads that are due."""

MAX_READS_AT_ONCE = 32
"""Maximum number of reads that start at the same time, because the event loop handles their answers one after the other."""


class PoolPoller:
    """Finds and reads the storage pools of all VMs, and publishes the records of the pools.

    Attributes:
        registry: the pools and their images.
        pool_alerts: publishes the alerts of the pools.
        gate: decides whether the agent may send commands that access storage to a VM.
        interval: seconds between two records of a pool.
    """

    def __init__(
        self,
        host: str,
        publish: Callable[[Record], str],
        snapshot: Snapshot,
        registry: PoolRegistry,
        alerts: AlertPublisher,
        sources: Sequence[PoolSource] = (),
        fallback: PoolSource | None = None,
        thin_pool_free: Callable[[str], int | None] = lambda _device: None,
        interval: float = 30.0,
    ) -> None:
        """Create a poller. Call `run` to start it.

        Args:
            host: name of this host.
            publish: publishes a record, and returns its id.
            snapshot: stores the samples of the pools for Prometheus.
            registry: the pools.
            alerts: the alerts of the pools.
            sources: the sources to search for an image's pool before the sources of file systems and devices.
            fallback: the source of pools for images without a known location; None if there is no such source.
            thin_pool_free: returns the free bytes of the thin pool under a device, given as `major:minor`; None if there is no thin pool.
            interval: seconds between two records of a pool.
        """
        self.registry = registry
        self._alerts = alerts
        self.pool_alerts = PoolAlertPublisher(alerts)
        self.interval = interval
        registry.on_read_request = self._read_pool_now
        self._vm = Vm(host, "", "")
        self._publish = publish
        self._snapshot = snapshot
        self._reader = FileSystemReader(on_change=self._on_storage_change)
        self._file_systems = FileSystemPoolSource(self._reader, thin_pool_free)
        self._fallback = fallback
        self._sources: tuple[PoolSource, ...] = (*sources, self._file_systems, BlockDevicePoolSource())
        self._pool_finder = ImagePoolFinder(ImageLocator(self._reader), self._sources, self._on_placed, fallback)
        self.gate = StorageQueryGate(self._reader, self._pool_finder)
        self._vms_to_poll: dict[Vm, None] = {}
        self._due: dict[str, float] = {}
        self._published_at: dict[str, float] = {}
        self._in_flight: set[str] = set()
        self._woken = asyncio.Event()

    # Input from sessions.

    def on_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample]) -> None:
        """Update the images of a VM after a poll."""
        self._pool_finder.on_samples(vm, families, samples)

    def on_detached(self, vm: Vm) -> None:
        """Remove a VM that the agent has detached from."""
        self._pool_finder.on_detached(vm)
        self.gate.on_detached(vm)
        self._vms_to_poll.pop(vm, None)
        self.registry.remove_vm(vm, time.time())

    def _on_placed(self, vm: Vm, placements: Sequence[ImagePlacement], at_once: bool) -> None:  # noqa: FBT001 - a callback
        has_moved = self.registry.set_images_of_vm(vm, placements, time.time())
        samples, time_ns = self.registry.block_storage_samples_of_vm(vm), time.time_ns()
        changed = [
            sample for sample in samples if self._snapshot.latest_values_of_sample_subject(vm, sample) != sample.values
        ]
        self._snapshot.replace_samples(vm, (BLOCK_STORAGE,), samples, time_ns)
        self._alerts.on_samples_for_alert_rules(vm, (BLOCK_STORAGE,), samples, time_ns)
        for sample in changed:
            self._publish(Record(BLOCK_STORAGE.type, vm, sample.data, time_ns, sample.subject))
        for usage in self.registry.pools_of_vm(vm):
            self._due.setdefault(usage.pool.key, time.monotonic())
            if usage.reading is None and usage.pool.kind is PoolKind.FILESYSTEM:
                recent = self._file_systems.recent_reading(usage.pool, CHECK_SECONDS)
                if recent is not None:
                    self._on_reading(usage, recent)
        if has_moved and not (at_once and self._are_pools_read(vm)):
            self._vms_to_poll[vm] = None
        self._poll_placed_vms()
        self._wake()

    def _are_pools_read(self, vm: Vm) -> bool:
        """Return whether each pool of the VM has a reading or a read error."""
        return all(usage.reading is not None or usage.error for usage in self.registry.pools_of_vm(vm))

    def _poll_placed_vms(self) -> None:
        """Poll the block nodes of VMs whose new pools have all been read, so that alerts compare the disks with the pools."""
        for vm in [vm for vm in self._vms_to_poll if self._are_pools_read(vm)]:
            del self._vms_to_poll[vm]
            self.gate.schedule_collectors(vm, ("nodes",))

    def _on_storage_change(self) -> None:
        """Read the unresponsive pools of mounts that answer again, and resume deferred queries. Called when a mount's state changes."""
        for usage in self.registry:
            if usage.unresponsive_since is not None and not self._reader.is_mount_suspect(
                mount_device_number(usage.pool)
            ):
                self._due[usage.pool.key] = time.monotonic()
        self.gate.schedule_deferred_collectors()
        self._wake()

    # The schedule.

    async def run(self) -> None:
        """Find the pools of images and read the pools, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._refresh_sources(), name="refresh pools")
                tasks.create_task(self._pool_finder.run(), name="find pools")
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
                self._pool_finder.schedule_new_search()
            await asyncio.sleep(self.interval)

    def _start_reads(self, tasks: asyncio.TaskGroup) -> None:
        """Start the reads that are due. Each file system and each device is read in its own task, because the read may hang."""
        now = time.monotonic()
        due: dict[PoolSource, list[Pool]] = {}
        for key in [key for key, at in self._due.items() if at <= now][:MAX_READS_AT_ONCE]:
            usage = self.registry.pools.get(key)
            if usage is None:
                del self._due[key]
            elif key in self._in_flight:
                self._due[key] = now + CHECK_SECONDS
            else:
                self._due[key] = self._next_read_time(usage)
                self._in_flight.add(key)
                due.setdefault(self._pool_finder.source_that_found_pool(usage.pool), []).append(usage.pool)
        for source, pools in due.items():
            may_hang = isinstance(source, FileSystemPoolSource | BlockDevicePoolSource)
            for group in [[pool] for pool in pools] if may_hang else [pools]:
                tasks.create_task(self._read_pools(source, group), name=f"read pool {group[0].name}")

    async def _read_pools(self, source: PoolSource, pools: Sequence[Pool]) -> None:
        readings: PoolReadings
        try:
            async with asyncio.timeout(POOL_READ_SECONDS):
                readings = await source.read(pools)
        except TimeoutError:
            readings = {pool.key: PoolUnresponsiveError(f"no answer within {POOL_READ_SECONDS:g} s") for pool in pools}
        except Exception as error:  # noqa: BLE001 - a bug in one source must not end the reading of others
            _log.exception("%s: internal error while reading storage pools", type(source).__name__)
            readings = {pool.key: PoolReadError(f"{type(error).__name__}: {error}") for pool in pools}
        finally:
            self._in_flight.difference_update(pool.key for pool in pools)
        for key, reading in readings.items():
            if (usage := self.registry.pools.get(key)) is not None:
                self._on_reading(usage, reading)
        self._poll_placed_vms()

    def _on_reading(self, usage: PoolUsage, reading: PoolReading | PoolReadError) -> None:
        now, key = time.time(), usage.pool.key
        if isinstance(reading, PoolReading):
            if (
                usage.is_reading_unchanged(reading)
                and not self._is_record_due(usage)
                and self._seconds_until_read(usage) >= CHECK_SECONDS
            ):
                return  # this read only shows that the pool answers
            usage.on_reading(reading, now)
            with self._alerts.setting_causation_id_of_alerts(self._cause_of_alerts(usage, now)):
                self.pool_alerts.on_reading(usage)
        elif isinstance(reading, PoolUnresponsiveError):
            usage.unresponsive_since = usage.unresponsive_since or now
            usage.error = str(reading) if usage.pool.kind is PoolKind.DEVICE else usage.error
            if usage.pool.kind is not PoolKind.FILESYSTEM or self._reader.is_mount_unresponsive(
                mount_device_number(usage.pool)
            ):
                with self._alerts.setting_causation_id_of_alerts(self._cause_of_alerts(usage, now)):
                    self.pool_alerts.on_unresponsive(usage)
        else:
            usage.error, usage.unresponsive_since = str(reading), None
            with self._alerts.setting_causation_id_of_alerts(self._cause_of_alerts(usage, now)):
                self.pool_alerts.on_responded_with_error(usage)
        self._due[key] = min(self._due.get(key, inf), self._next_read_time(usage))
        self._publish_usage(usage, now)

    def _publish_usage(self, usage: PoolUsage, now: float) -> None:
        """Update the Prometheus series of a pool. Publish the record of the pool once per interval."""
        if self._is_record_due(usage):
            _, sample = self._publish_record(usage, now)
        else:
            sample = usage.to_sample(now)
        self._snapshot.replace_host_sample(sample, time.time())

    def _publish_record(self, usage: PoolUsage, now: float) -> tuple[str, Sample]:
        """Publish the record of a pool; return the record's id and its sample."""
        usage.fastest_growing_disks = self._alerts.engine.disk_lookup.fastest_growing_disks(usage)
        sample = usage.to_sample(now)
        self._published_at[usage.pool.key] = time.monotonic()
        return self._publish(Record(POOL.type, self._vm, sample.data, time.time_ns(), sample.subject)), sample

    def _cause_of_alerts(self, usage: PoolUsage, now: float) -> CausationIdLookup:
        """Return a function that returns the `causationid` of the pool's alerts: the id of the pool's record.

        The first call of the function publishes the pool's record.
        """
        record_id = ""

        def cause_of(_alert: Record) -> str:
            nonlocal record_id
            record_id = record_id or self._publish_record(usage, now)[0]
            return record_id

        return cause_of

    def _is_record_due(self, usage: PoolUsage) -> bool:
        published_at = self._published_at.get(usage.pool.key, -inf)
        return time.monotonic() // self.interval != published_at // self.interval

    def _next_read_time(self, usage: PoolUsage) -> float:
        """Return when to read a pool next, on the monotonic clock. Pools share read times, because a wake-up costs more than a read."""
        seconds, now = self._seconds_until_read(usage), time.monotonic()
        return now + seconds if seconds < CHECK_SECONDS else (now // seconds + 1) * seconds

    def _seconds_until_read(self, usage: PoolUsage) -> float:
        """Return the seconds until the next read of a pool. A pool that grows towards a level is read more often."""
        if usage.unresponsive_since is not None and usage.pool.kind in (PoolKind.FILESYSTEM, PoolKind.DEVICE):
            return UNRESPONSIVE_CHECK_SECONDS
        if usage.pool.kind is not PoolKind.FILESYSTEM:
            return self.interval
        until_level = self._alerts.pools.seconds_until_level(usage)
        longest = self._max_seconds_until_read(usage)
        near = until_level * LEVEL_SHARE if until_level is not None else longest
        return min(longest, self.interval, max(near, MIN_READ_SECONDS))

    def _max_seconds_until_read(self, usage: PoolUsage) -> float:
        """Return the maximum number of seconds until the next read of a file system.

        Frequent reads are useful only if a burst of writes could exceed a level before the next regular read. Reads cannot detect that a
        local device hangs, because a local file system answers from memory.
        """
        if usage.pool.type not in LOCAL_TYPES or usage.reading is None:
            return CHECK_SECONDS
        gap = usage.bytes_until_level
        return max(CHECK_SECONDS, gap / BURST_BYTES_PER_SECOND) if gap is not None else self.interval

    def _remove_unused_pools(self) -> None:
        now = time.time()
        for usage in self.registry:
            if usage.unused_since is not None and now - usage.unused_since > KEEP_UNUSED_SECONDS:
                self.pool_alerts.on_removed(usage)
                self.registry.remove_pool(usage)
                self._pool_finder.forget_source_of_pool(usage.pool)
                self._published_at.pop(usage.pool.key, None)
                self._snapshot.remove_host_sample(POOL, (usage.name, usage.pool.kind.value))


async def _refresh_source(source: PoolSource) -> bool:
    """Refresh the list of pools of a source, and return whether the list has changed.

    Return False after an exception, because a bug in one source must not affect other sources.
    """
    try:
        return await source.refresh_pool_lookup()
    except Exception:  # noqa: BLE001 - it is logged
        _log.exception("%s: internal error while listing storage pools", type(source).__name__)
        return False
