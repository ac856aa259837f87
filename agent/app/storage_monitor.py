"""Watches the pools under the images of all VMs: finds the pool of each image, and reads each pool once for all VMs on it."""

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
"""A file system is checked at least this often, because it may stop to answer."""

FASTEST_SECONDS = 0.5
"""Shortest time between two reads of a pool that is close to an alert level."""

LEVEL_SHARE = 0.25
"""A pool is read again after this share of the time until it exceeds its next level."""

SILENT_SECONDS = 1.0
"""Time between two checks of a pool that does not answer. Only one request waits for it."""

LOCAL_TYPES = frozenset({"btrfs", "ext2", "ext3", "ext4", "tmpfs", "xfs", "zfs"})
"""Types of file systems whose size the kernel knows without asking a device or a server."""

BURST_BYTES_PER_SECOND = 2 << 30
"""The fastest growth of a pool to expect between two regular reads."""

KEEP_UNUSED_SECONDS = 300.0
"""How long a pool without a running VM is kept."""

READ_SECONDS = 20.0
"""Maximum time of one read."""

MIN_DELAY_SECONDS = 0.05
SLACK_SECONDS = 0.1


class StorageMonitor:
    """The pools of one agent.

    Attributes:
        registry: the pools and their images.
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
        """Create a monitor; `run` it.

        Args:
            host: name of this host.
            publish: publishes a record.
            snapshot: receives the samples of the pools.
            registry: the pools.
            alerts: the alerts of the pools.
            sources: further kinds of pools; they come before file systems and devices.
            fallback: source for images whose location the agent cannot find, or None.
            thin_pool_free: returns the free bytes of the thin pool below a device; None if there is none.
            interval: seconds between two records of a pool.
        """
        self.registry = registry
        self._alerts = alerts
        self.interval = interval
        registry.on_read_request = self._read_now
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
        """Handle a VM that is no longer attached."""
        self._placement.on_detached(vm)
        self.gate.on_detached(vm)
        self._late_vms.pop(vm, None)
        self.registry.remove(vm, time.time())

    def _on_placed(self, vm: Vm, placements: Sequence[Placement], at_once: bool) -> None:  # noqa: FBT001 - a callback
        has_moved = self.registry.place(vm, placements, time.time())
        samples, time_ns = self.registry.storage_samples(vm), time.time_ns()
        changed = [sample for sample in samples if self._snapshot.stored_values(vm, sample) != sample.values]
        self._snapshot.replace_samples(vm, (BLOCK_STORAGE,), samples, time_ns)
        for sample in changed:
            self._publish(Record(BLOCK_STORAGE.type, vm, sample.data, time_ns, sample.subject))
        for usage in self.registry.of_vm(vm):
            self._due.setdefault(usage.pool.key, time.monotonic())
            if usage.reading is None and usage.pool.kind is PoolKind.FILESYSTEM:
                recent = self._file_systems.recent_reading(usage.pool, CHECK_SECONDS)
                if recent is not None:
                    self._on_reading(usage, recent)
        if has_moved and not (at_once and self._is_settled(vm)):
            self._late_vms[vm] = None
        self._settle()
        self._wake()

    def _is_settled(self, vm: Vm) -> bool:
        """Return whether all pools of a VM were read, as far as they can be."""
        return all(usage.reading is not None or usage.error for usage in self.registry.of_vm(vm))

    def _settle(self) -> None:
        """Have the alerts compare the levels of disks whose pools were not known at the last poll of their layers."""
        for vm in [vm for vm in self._late_vms if self._is_settled(vm)]:
            del self._late_vms[vm]
            self.gate.demand(vm, ("nodes",))

    def _on_storage_change(self) -> None:
        """Handle a file system that does not answer in time, or that answers again: read its pools now."""
        for usage in self.registry:
            if usage.silent_since is not None and not self._reader.is_suspect(mount_device(usage.pool)):
                self._due[usage.pool.key] = time.monotonic()
        self.gate.on_change()
        self._wake()

    # The schedule.

    async def run(self) -> None:
        """Find and read pools, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._refresh_sources(), name="refresh pools")
                tasks.create_task(self._placement.run(), name="find pools")
                while True:
                    self._woken.clear()
                    self._start_reads(tasks)
                    self._forget_unused()
                    delay = min(self._due.values(), default=time.monotonic() + CHECK_SECONDS) - time.monotonic()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(max(delay, MIN_DELAY_SECONDS)):
                            await self._woken.wait()
        finally:
            await self._reader.close()

    def _read_now(self, usage: PoolUsage) -> None:
        self._due[usage.pool.key] = time.monotonic()
        self._wake()

    def _wake(self) -> None:
        self._woken.set()

    async def _refresh_sources(self) -> None:
        while True:
            changed = [await _refresh(source) for source in (*self._sources, *filter(None, (self._fallback,)))]
            if any(changed):
                self._placement.find_again()
            await asyncio.sleep(self.interval)

    def _start_reads(self, tasks: asyncio.TaskGroup) -> None:
        """Read the pools that are due: each file system by itself, because it may hang, and the pools of another source together."""
        now = time.monotonic()
        due: dict[PoolSource, list[Pool]] = {}
        for key in [key for key, at in self._due.items() if at <= now]:
            usage = self.registry.pools.get(key)
            if usage is None:
                del self._due[key]
            elif key in self._in_flight:
                self._due[key] = now + CHECK_SECONDS
            else:
                self._due[key] = now + self._delay(usage)
                self._in_flight.add(key)
                due.setdefault(self._placement.source_of(usage.pool), []).append(usage.pool)
        for source, pools in due.items():
            for group in [[pool] for pool in pools] if isinstance(source, FileSystemSource) else [pools]:
                tasks.create_task(self._read(source, group), name=f"read pool {group[0].name}")

    async def _read(self, source: PoolSource, pools: Sequence[Pool]) -> None:
        """Read pools of one source."""
        readings: PoolReadings
        try:
            async with asyncio.timeout(READ_SECONDS):
                readings = await source.read(pools)
        except TimeoutError:
            readings = {pool.key: PoolUnresponsiveError(f"no answer within {READ_SECONDS:g} s") for pool in pools}
        except Exception as error:  # noqa: BLE001 - a bug in one source must not end the reading of others
            _log.exception("pools of %s: internal error", type(source).__name__)
            readings = {pool.key: PoolReadError(f"{type(error).__name__}: {error}") for pool in pools}
        finally:
            self._in_flight.difference_update(pool.key for pool in pools)
        for key, reading in readings.items():
            if (usage := self.registry.pools.get(key)) is not None:
                self._on_reading(usage, reading)
        self._settle()

    def _on_reading(self, usage: PoolUsage, reading: PoolReading | PoolReadError) -> None:
        now, key = time.time(), usage.pool.key
        if isinstance(reading, PoolReading):
            if usage.is_unchanged(reading) and not self._is_record_due(usage) and self._delay(usage) >= CHECK_SECONDS:
                return  # the pool answers: between two records, that is all that a check is for
            usage.on_reading(reading, now)
            self._alerts.on_pool_reading(usage)
        elif isinstance(reading, PoolUnresponsiveError):
            usage.silent_since = usage.silent_since or now
            if usage.pool.kind is not PoolKind.FILESYSTEM or self._reader.is_unresponsive(mount_device(usage.pool)):
                self._alerts.on_pool_silence(usage)
        else:
            usage.error, usage.silent_since = str(reading), None
            self._alerts.on_pool_error(usage)
        self._due[key] = min(self._due.get(key, inf), time.monotonic() + self._delay(usage))
        self._report(usage, now)

    def _report(self, usage: PoolUsage, now: float) -> None:
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

    def _delay(self, usage: PoolUsage) -> float:
        """Return the seconds until the next read of a pool: a part of the time until its next level, if it grows."""
        if usage.pool.kind is not PoolKind.FILESYSTEM:
            return self.interval
        if usage.silent_since is not None:
            return SILENT_SECONDS
        until_level = self._alerts.pools.seconds_until_level(usage)
        longest = self._longest_delay(usage)
        near = until_level * LEVEL_SHARE if until_level is not None else longest
        return min(longest, self.interval, max(near, FASTEST_SECONDS))

    def _longest_delay(self, usage: PoolUsage) -> float:
        """Return the maximum seconds until the next read of a file system.

        A file system on a local device answers from memory, so a check does not show that its device hangs. It is read often only while
        a burst of writes could reach a level before the next regular read.
        """
        if usage.pool.type not in LOCAL_TYPES or usage.reading is None:
            return CHECK_SECONDS
        gap = usage.bytes_until_level
        return max(CHECK_SECONDS, gap / BURST_BYTES_PER_SECOND) if gap is not None else self.interval

    def _forget_unused(self) -> None:
        now = time.time()
        for usage in self.registry:
            if usage.unused_since is not None and now - usage.unused_since > KEEP_UNUSED_SECONDS:
                self._alerts.on_pool_removed(usage)
                self.registry.forget(usage)
                self._placement.forget(usage.pool)
                self._published_at.pop(usage.pool.key, None)
                self._snapshot.remove_host_sample(POOL, (usage.name, usage.pool.kind.value))


async def _refresh(source: PoolSource) -> bool:
    """Refresh a source; return whether it knows other pools now. A bug in one source must not end the reading of pools."""
    try:
        return await source.refresh()
    except Exception:  # noqa: BLE001 - it is logged
        _log.exception("pools of %s: internal error", type(source).__name__)
        return False
