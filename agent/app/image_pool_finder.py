"""Finds the storage pool of each VM's disk images.

A source finds and reads the pools of one kind of storage, such as ZFS.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from agent.alerts.pool_usage import Image, ImagePlacement, images_from_layer_samples
from agent.host.pools.base import ImageLocation, Pool, PoolSource, UnknownPool
from agent.host.pools.image_location import ImageLocator, QemuAndAgentMounts
from agent.host.pools.storage_report import volume_name_of_dev_path
from agent.model.family import Family, Sample
from agent.model.metrics.block_layers import BLOCK_LAYER
from agent.model.metrics.identity import IDENTITY
from agent.model.record import Vm

_log = logging.getLogger("agent")

ImagePlacementCallback = Callable[[Vm, Sequence[ImagePlacement], bool], None]
"""Called with a VM, its images with their pools, and a flag. The flag is True if all locations of images were cached."""

STORAGE_FAMILIES = frozenset({IDENTITY, BLOCK_LAYER})
"""Families that `ImagePoolFinder.on_samples` uses."""


class ImagePoolFinder:
    """Finds the storage pool of each VM image, and stores which source, such as ZFS, found the pool."""

    def __init__(
        self,
        locator: ImageLocator,
        sources: Sequence[PoolSource],
        on_placed: ImagePlacementCallback,
        fallback: PoolSource | None = None,
    ) -> None:
        """Create a finder. Call `run` to start it.

        Args:
            locator: finds the locations of images.
            sources: the sources of pools in search order. The first source that finds a pool wins.
            on_placed: called with the pools of a VM's images.
            fallback: the source of pools for images without a known location; None if there is no such source.
        """
        self._locator = locator
        self._sources = sources
        self._on_placed = on_placed
        self._fallback = fallback
        self._source_of: dict[str, PoolSource] = {}
        self._pids: dict[Vm, int] = {}
        self._images: dict[Vm, Sequence[Image]] = {}
        self._mounts: dict[Vm, dict[str, str]] = {}
        self._vms_to_search: dict[Vm, None] = {}
        self._woken = asyncio.Event()

    def source_that_found_pool(self, pool: Pool) -> PoolSource:
        """Return the source, such as ZFS, that found a pool."""
        return self._source_of[pool.key]

    def forget_source_of_pool(self, pool: Pool) -> None:
        """Forget which source found a pool."""
        self._source_of.pop(pool.key, None)

    def image_mounts_of_vm(self, vm: Vm) -> Mapping[str, str] | None:
        """Return the mounts that contain images of a VM.

        Returns:
            A directory on each mount, by `major:minor` of the mount's file system. None if the VM's images are unknown.
        """
        return self._mounts.get(vm)

    def on_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample]) -> None:
        """Handle the samples of one poll of a VM. Find the pools immediately if the locations of all images are cached."""
        if IDENTITY in families:
            pid = next((sample.values.get("pid") for sample in samples if sample.family is IDENTITY), None)
            if isinstance(pid, str) and pid.isdecimal():
                self._pids[vm] = int(pid)
            else:
                self._pids.pop(vm, None)
        if BLOCK_LAYER in families:
            self._images[vm] = images_from_layer_samples(sample for sample in samples if sample.family is BLOCK_LAYER)
            self._vms_to_search[vm] = None
            if self._place_from_cache(vm):
                del self._vms_to_search[vm]
            self._woken.set()

    def on_detached(self, vm: Vm) -> None:
        """Drop the state of a VM that the agent has detached from."""
        for known in (self._pids, self._images, self._mounts, self._vms_to_search):
            known.pop(vm, None)

    def schedule_new_search(self) -> None:
        """Schedule a new search for the pools of all images, because a source's list of pools has changed."""
        self._vms_to_search |= dict.fromkeys(self._images)
        self._woken.set()

    async def run(self) -> None:
        """Find the pools of VMs whose images or pools may have changed, until cancelled."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._vms_to_search:
                vm = next(iter(self._vms_to_search))
                del self._vms_to_search[vm]
                try:
                    await self._place_images(vm)
                except Exception:  # noqa: BLE001 - a bug that one VM triggers must not end the search for others
                    _log.exception("%s: internal error while searching for the pools of the VM's images", vm.name)

    def _place_from_cache(self, vm: Vm) -> bool:
        """Find the pools of a VM's images without I/O. Return False if the location of an image is not cached."""
        tables = self._mount_tables_of(vm)
        locations = []
        for image in self._images[vm]:
            location = self._locator.location_without_io(tables, image.driver, image.path)
            if location is None:
                return False
            locations.append(location)
        self._on_located(vm, self._images[vm], locations, at_once=True)
        return True

    async def _place_images(self, vm: Vm) -> None:
        images, tables = self._images[vm], self._mount_tables_of(vm)
        locations = [await self._locator.locate(tables, image.driver, image.path) for image in images]
        if self._images.get(vm) is images:  # a poll may have replaced the images during the search
            self._on_located(vm, images, locations)

    def _mount_tables_of(self, vm: Vm) -> QemuAndAgentMounts | None:
        pid = self._pids.get(vm)
        return QemuAndAgentMounts.read_for_process(pid) if pid is not None else None

    def _on_located(
        self,
        vm: Vm,
        images: Sequence[Image],
        locations: Sequence[ImageLocation | UnknownPool],
        *,
        at_once: bool = False,
    ) -> None:
        is_remote = vm.has_tcp_monitor
        remote = UnknownPool("the VM may run on another host: run an agent on that host")
        self._mounts[vm] = {
            location.mount.device: location.directory
            for location in locations
            if isinstance(location, ImageLocation) and location.mount is not None
        }
        places = [(_with_volume(image, location), location) for image, location in zip(images, locations, strict=True)]
        placements = [(image, remote if is_remote else self._find_pool(image, location)) for image, location in places]
        self._on_placed(vm, placements, at_once)

    def _find_pool(self, image: Image, location: ImageLocation | UnknownPool) -> Pool | UnknownPool:
        if isinstance(location, UnknownPool):
            return self._find_fallback_pool(image) or location
        for source in self._sources:
            pool = source.find_pool(location)
            if isinstance(pool, Pool):
                self._source_of[pool.key] = source
            if pool is not None:
                return pool
        return UnknownPool("the kind of storage is unknown")

    def _find_fallback_pool(self, image: Image) -> Pool | None:
        """Return the pool of an image without a known location; None if the fallback source does not find the pool."""
        if self._fallback is None:
            return None
        pool = self._fallback.find_pool(ImageLocation(image.driver, image.path))
        if not isinstance(pool, Pool):
            return None
        self._source_of[pool.key] = self._fallback
        return pool

    async def locate_command_line_files(self, pid: int, paths: Sequence[str]) -> list[ImageLocation]:
        """Return the locations of files on a process's command line. Skip a file whose mount is not found."""
        tables = QemuAndAgentMounts.read_for_process(pid)
        locations = [await self._locator.locate(tables, "file", path) for path in paths]
        return [
            location for location in locations if isinstance(location, ImageLocation) and location.mount is not None
        ]

    def set_image_locations_until_polled(self, vm: Vm, locations: Sequence[ImageLocation]) -> None:
        """Use `locations` as the locations of a VM's images until the VM's first poll reports the images."""
        if vm not in self._images:
            images = [
                Image(location.path, "storage", location.driver, location.path, 0, 0, 0) for location in locations
            ]
            self._on_located(vm, images, locations)
            del self._mounts[vm]


def _with_volume(image: Image, location: ImageLocation | UnknownPool) -> Image:
    """Return an image with its `volume` set: the block device, or the volume's name if the agent cannot see the device.

    Return the image unchanged if its location is unknown or is on a mount.
    """
    if isinstance(location, UnknownPool) or location.mount is not None:
        return image
    return replace(image, volume=location.device or volume_name_of_dev_path(location.path))
