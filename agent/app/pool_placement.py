"""Finds the pools of the images of all VMs."""

import asyncio
from collections.abc import Callable, Sequence

from agent.alerts.pool_usage import Image, Placement, images_of
from agent.host.image_location import ImageLocator
from agent.host.pools.base import ImageLocation, Pool, PoolSource, UnknownPool
from agent.model.family import Family, Sample
from agent.model.metrics.about import ABOUT
from agent.model.metrics.block_layers import BLOCK_LAYER
from agent.model.record import Vm

PlacementCallback = Callable[[Vm, Sequence[Placement]], None]


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
        self.pids: dict[Vm, int] = {}
        """Process id of each VM, as far as it is known."""
        self._locator = locator
        self._sources = sources
        self._on_placed = on_placed
        self._fallback = fallback
        self._source_of: dict[str, PoolSource] = {}
        self._images: dict[Vm, Sequence[Image]] = {}
        self._waiting: dict[Vm, None] = {}
        self._woken = asyncio.Event()

    def source_of(self, pool: Pool) -> PoolSource:
        """Return the source that found a pool."""
        return self._source_of[pool.key]

    def forget(self, pool: Pool) -> None:
        """Forget a pool's source."""
        self._source_of.pop(pool.key, None)

    def on_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample]) -> None:
        """Handle the samples of one poll of a VM."""
        if ABOUT in families:
            pid = next((sample.values.get("pid") for sample in samples if sample.family is ABOUT), None)
            if isinstance(pid, str) and pid.isdecimal():
                self.pids[vm] = int(pid)
            else:
                self.pids.pop(vm, None)
        if BLOCK_LAYER in families:
            self._images[vm] = images_of(sample for sample in samples if sample.family is BLOCK_LAYER)
            self._waiting[vm] = None
            self._woken.set()

    def on_detached(self, vm: Vm) -> None:
        """Handle a VM that is no longer attached."""
        for known in (self.pids, self._images, self._waiting):
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
                images = self._images[vm]
                placements = [(image, await self._find(vm, image)) for image in images]
                if self._images.get(vm) is images:  # it may have changed meanwhile
                    self._on_placed(vm, placements)

    async def _find(self, vm: Vm, image: Image) -> Pool | UnknownPool:
        if vm.monitor.startswith("tcp:"):
            return UnknownPool("the VM may run on another host: run an agent there")
        location = await self._locator.locate(self.pids.get(vm), image.driver, image.path)
        if isinstance(location, UnknownPool):
            return self._find_fallback(image) or location
        for source in self._sources:
            pool = source.find(location)
            if isinstance(pool, Pool):
                self._source_of[pool.key] = source
            if pool is not None:
                return pool
        return UnknownPool("its kind of storage is unknown")

    def _find_fallback(self, image: Image) -> Pool | None:
        """Return the pool of an image that the agent cannot locate; None if no source knows it."""
        if self._fallback is None:
            return None
        pool = self._fallback.find(ImageLocation(image.driver, image.path))
        if not isinstance(pool, Pool):
            return None
        self._source_of[pool.key] = self._fallback
        return pool
