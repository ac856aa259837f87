"""Finds the pools of the images of all VMs."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from agent.alerts.pool_usage import Image, Placement, images_of
from agent.host.image_location import ImageLocator, MountTables
from agent.host.pools.base import ImageLocation, Pool, PoolSource, UnknownPool
from agent.model.family import Family, Sample
from agent.model.metrics.about import ABOUT
from agent.model.metrics.block_layers import BLOCK_LAYER
from agent.model.record import Vm

_log = logging.getLogger("agent")

PlacementCallback = Callable[[Vm, Sequence[Placement], bool], None]
"""Called with a VM, the pools of its images, and whether they were found before the alerts saw the images."""


class PoolPlacement:
    """The images of each VM, and the source of each pool."""

    def __init__(
        self,
        locator: ImageLocator,
        sources: Sequence[PoolSource],
        on_placed: PlacementCallback,
        fallback: PoolSource | None = None,
    ) -> None:
        """Create a placement; `run` it.

        Args:
            locator: finds where images are.
            sources: the kinds of pools; the first one that knows an image's storage decides.
            on_placed: called with the pools of a VM's images.
            fallback: the source for images whose location the agent cannot find, or None.
        """
        self._locator = locator
        self._sources = sources
        self._on_placed = on_placed
        self._fallback = fallback
        self._source_of: dict[str, PoolSource] = {}
        self._pids: dict[Vm, int] = {}
        self._images: dict[Vm, Sequence[Image]] = {}
        self._mounts: dict[Vm, dict[str, str]] = {}
        self._waiting: dict[Vm, None] = {}
        self._woken = asyncio.Event()

    def source_of(self, pool: Pool) -> PoolSource:
        """Return the source that found a pool."""
        return self._source_of[pool.key]

    def forget(self, pool: Pool) -> None:
        """Forget a pool's source."""
        self._source_of.pop(pool.key, None)

    def mounts_of(self, vm: Vm) -> Mapping[str, str] | None:
        """Return the mounts with images of a VM: a directory on each, by the mount's device; None if the images are unknown."""
        return self._mounts.get(vm)

    def on_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample]) -> None:
        """Handle the samples of one poll of a VM. If all directories are known already, the pools are found at once."""
        if ABOUT in families:
            pid = next((sample.values.get("pid") for sample in samples if sample.family is ABOUT), None)
            if isinstance(pid, str) and pid.isdecimal():
                self._pids[vm] = int(pid)
            else:
                self._pids.pop(vm, None)
        if BLOCK_LAYER in families:
            self._images[vm] = images_of(sample for sample in samples if sample.family is BLOCK_LAYER)
            self._waiting[vm] = None
            if self._place_known(vm):
                del self._waiting[vm]
            self._woken.set()

    def on_detached(self, vm: Vm) -> None:
        """Handle a VM that is no longer attached."""
        for known in (self._pids, self._images, self._mounts, self._waiting):
            known.pop(vm, None)

    def find_again(self) -> None:
        """Find the pools of all images again, because a source knows other pools now."""
        self._waiting |= dict.fromkeys(self._images)
        self._woken.set()

    async def run(self) -> None:
        """Find the pools of images that may have changed, until cancelled."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._waiting:
                vm = next(iter(self._waiting))
                del self._waiting[vm]
                try:
                    await self._place(vm)
                except Exception:  # noqa: BLE001 - a bug that one VM triggers must not end the search for others
                    _log.exception("%s: pools: internal error", vm.name)

    def _place_known(self, vm: Vm) -> bool:
        """Find the pools of a VM's images if all of their directories are known; return whether they are."""
        tables = self._tables(vm)
        locations = []
        for image in self._images[vm]:
            location = self._locator.known_location(tables, image.driver, image.path)
            if location is None:
                return False
            locations.append(location)
        self._on_located(vm, self._images[vm], locations, at_once=True)
        return True

    async def _place(self, vm: Vm) -> None:
        images, tables = self._images[vm], self._tables(vm)
        locations = [await self._locator.locate(tables, image.driver, image.path) for image in images]
        if self._images.get(vm) is images:  # it may have changed meanwhile
            self._on_located(vm, images, locations)

    def _tables(self, vm: Vm) -> MountTables | None:
        pid = self._pids.get(vm)
        return MountTables.of_process(pid) if pid is not None else None

    def _on_located(
        self,
        vm: Vm,
        images: Sequence[Image],
        locations: Sequence[ImageLocation | UnknownPool],
        *,
        at_once: bool = False,
    ) -> None:
        is_remote = vm.monitor.startswith("tcp:")
        remote = UnknownPool("the VM may run on another host: run an agent there")
        self._mounts[vm] = {
            location.mount.device: location.directory
            for location in locations
            if isinstance(location, ImageLocation) and location.mount is not None
        }
        places = zip(images, locations, strict=True)
        pools = [remote if is_remote else self._find(image, location) for image, location in places]
        self._on_placed(vm, list(zip(images, pools, strict=True)), at_once)

    def _find(self, image: Image, location: ImageLocation | UnknownPool) -> Pool | UnknownPool:
        if isinstance(location, UnknownPool):
            return self._find_fallback(image) or location
        for source in self._sources:
            pool = source.find_pool(location)
            if isinstance(pool, Pool):
                self._source_of[pool.key] = source
            if pool is not None:
                return pool
        return UnknownPool("its kind of storage is unknown")

    def _find_fallback(self, image: Image) -> Pool | None:
        """Return the pool of an image that the agent cannot locate; None if no source knows it."""
        if self._fallback is None:
            return None
        pool = self._fallback.find_pool(ImageLocation(image.driver, image.path))
        if not isinstance(pool, Pool):
            return None
        self._source_of[pool.key] = self._fallback
        return pool

    async def locate_paths(self, pid: int, paths: Sequence[str]) -> list[ImageLocation]:
        """Return the locations of files that a process has on its command line; unknown ones are left out."""
        tables = MountTables.of_process(pid)
        locations = [await self._locator.locate(tables, "file", path) for path in paths]
        return [
            location for location in locations if isinstance(location, ImageLocation) and location.mount is not None
        ]

    def place_paths(self, vm: Vm, locations: Sequence[ImageLocation]) -> None:
        """Count a VM whose images are unknown to the pools of these files."""
        if vm not in self._images:
            images = [
                Image(location.path, "storage", location.driver, location.path, 0, 0, 0) for location in locations
            ]
            self._on_located(vm, images, locations)
            del self._mounts[vm]
