"""Storage pools of libvirt, for images whose storage the agent cannot read itself, such as RBD.

libvirt computes a pool's free space only when libvirt refreshes the pool, or creates or deletes a volume. Writes of guests do not update
the free space. So the agent itself reads file systems and thin pools, and uses libvirt's values only for other storage. The time of a
reading is the time of the last change of libvirt's values.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

from agent.host.pools.base import (
    ImageLocation,
    Pool,
    PoolKind,
    PoolReadError,
    PoolReading,
    PoolReadings,
    PoolUnresponsiveError,
)

LIST_TIMEOUT_SECONDS = 5.0
"""Timeout of one request for the list of all storage pools."""
FRESH_SECONDS = 10.0
"""Maximum age of a list of storage pools that is used for a read. If the list is older, the agent requests a new list."""


@dataclass(frozen=True, slots=True)
class LibvirtStoragePool:
    """An active storage pool of libvirt.

    Attributes:
        name: name of the pool.
        type: type of the pool, such as `dir`, `logical` or `rbd`.
        target: directory on this host with the pool's volumes; empty if the pool has no directory.
        source: name of the pool's source, such as the pool of a Ceph cluster or the volume group; may be empty.
        capacity: size in bytes.
        available: free bytes at libvirt's last refresh.
    """

    name: str
    type: str
    target: str
    source: str
    capacity: int
    available: int


MAX_OPTION_DEPTH = 8
"""Maximum depth of nested options in a `json:` file name."""

_NAME_OPTIONS = {"rbd": "pool", "gluster": "volume"}
"""The option of a `json:` file name that contains the name of the network storage, by QEMU's block driver."""


class StoragePoolListError(Exception):
    """libvirt's storage pools cannot be listed. The message states the cause."""


ListStoragePools = Callable[[], Coroutine[Any, Any, Sequence[LibvirtStoragePool]]]
"""Returns the active storage pools of all configured libvirtds; raises StoragePoolListError."""


class LibvirtPoolSource:
    """Finds the storage pool of an image by its path or by the name of its network storage."""

    def __init__(self, list_pools: ListStoragePools, clock: Callable[[], float] = time.time) -> None:
        """Create a source.

        Args:
            list_pools: lists the storage pools.
            clock: returns the time in seconds since the epoch.
        """
        self._list_pools = list_pools
        self._clock = clock
        self._error: PoolReadError | None = None
        self._listing: asyncio.Future[Sequence[LibvirtStoragePool]] | None = None
        self._listed_at = float("-inf")
        self._pools: dict[str, LibvirtStoragePool] = {}
        self._changed_at: dict[str, float] = {}

    async def refresh_pool_lookup(self) -> bool:
        """List the storage pools. If the request fails, keep the pools of the last list.

        While a request hangs, no further request is sent.

        Returns:
            True if the names, directories or sources of the pools have changed.
        """
        if self._listing is None:
            self._listing = asyncio.ensure_future(self._list_pools())
        if not (await asyncio.wait({self._listing}, timeout=LIST_TIMEOUT_SECONDS))[0]:
            self._error = PoolUnresponsiveError(
                f"libvirtd did not list its storage pools within {LIST_TIMEOUT_SECONDS:g} s"
            )
            return False
        listing, self._listing = self._listing, None
        try:
            pools = listing.result()
        except StoragePoolListError as error:
            self._error = PoolReadError(str(error))
            return False
        now, before = self._clock(), self._pools
        self._error, self._listed_at = None, now
        self._pools = {pool.name: pool for pool in pools}
        self._changed_at = {
            name: self._changed_at.get(name, now) if pool == before.get(name) else now
            for name, pool in self._pools.items()
        }
        return {(pool.name, pool.target, pool.source) for pool in before.values()} != {
            (pool.name, pool.target, pool.source) for pool in pools
        }

    def find_pool(self, image: ImageLocation) -> Pool | None:
        """Return the storage pool that contains an image; None if no pool contains the image."""
        inside = [pool for pool in self._pools.values() if _contains_image(pool, image)]
        if not inside:
            return None
        pool = max(inside, key=lambda pool: (len(pool.target), pool.name))
        return Pool(f"{PoolKind.LIBVIRT.value}:{pool.name}", PoolKind.LIBVIRT, pool.name, pool.type, pool.name)

    async def read(self, pools: Sequence[Pool]) -> PoolReadings:
        """Return the size and the free space of these pools, as libvirt reports them."""
        if self._clock() - self._listed_at > FRESH_SECONDS:
            await self.refresh_pool_lookup()
        return {pool.key: self._reading_of_pool(pool.name) for pool in pools}

    def _reading_of_pool(self, name: str) -> PoolReading | PoolReadError:
        if self._error is not None:
            return self._error
        pool = self._pools.get(name)
        if pool is None:
            return PoolReadError(f"libvirt has no active storage pool {name}")
        return PoolReading(pool.capacity, pool.available, read_at=self._changed_at[name])


def _contains_image(pool: LibvirtStoragePool, image: ImageLocation) -> bool:
    if image.path.startswith("/"):
        return bool(pool.target) and image.path.startswith(f"{pool.target.rstrip('/')}/")
    return bool(pool.source) and (pool.type, pool.source) == _network_source(image.path)


def _network_source(path: str) -> tuple[str, str]:
    """Return the driver and the name of an image's network storage, which is an RBD pool or a Gluster volume.

    Both are empty for other storage.

    Args:
        path: the file name that QEMU reports, such as `rbd:POOL/IMAGE` or `json:{...}`.
    """
    if path.startswith("json:"):
        try:
            options = orjson.loads(path[5:])
        except orjson.JSONDecodeError:
            return "", ""
        for _ in range(MAX_OPTION_DEPTH):
            if not isinstance(options, dict) or options.get("driver") in _NAME_OPTIONS:
                break
            options = options.get("file")
        if not isinstance(options, dict):
            return "", ""
        driver = options.get("driver", "")
        name = options.get(_NAME_OPTIONS.get(driver, ""))
        return (driver, name) if isinstance(name, str) else ("", "")
    scheme, _, rest = path.partition(":")
    if scheme == "rbd":
        return "rbd", rest.partition("/")[0]
    if scheme.partition("+")[0] == "gluster":
        return "gluster", urlsplit(path).path.lstrip("/").partition("/")[0]
    return "", ""
