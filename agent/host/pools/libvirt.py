"""Storage pools of libvirt, for images whose storage the agent cannot read itself, such as RBD.

libvirt computes a pool's free space when it refreshes the pool, and when it creates or deletes a volume. Writes of guests do not change
it. So the agent reads file systems and thin pools itself, and uses libvirt's figures for other storage only. A reading has the time at
which the figures last changed.
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

LIST_SECONDS = 5.0
"""Timeout of one read of all pools."""
FRESH_SECONDS = 10.0
"""Age up to which a list is used again."""


@dataclass(frozen=True, slots=True)
class StoragePool:
    """An active storage pool.

    Attributes:
        name: its name.
        type: its type, such as `dir`, `logical` or `rbd`.
        target: the directory of its volumes on this host; empty if there is none.
        source: name of its source, such as the pool of a Ceph cluster or the volume group; may be empty.
        capacity: size in bytes.
        available: free bytes, as of libvirt's last refresh.
    """

    name: str
    type: str
    target: str
    source: str
    capacity: int
    available: int


MAX_DEPTH = 8
"""Maximum depth of nested options in a file name."""

_NAME_OPTIONS = {"rbd": "pool", "gluster": "volume"}
"""Option of QEMU's driver that names the storage."""


class StoragePoolsError(Exception):
    """libvirt's storage pools cannot be listed. The message is the cause."""


ListStoragePools = Callable[[], Coroutine[Any, Any, Sequence[StoragePool]]]
"""Returns the active storage pools of all configured libvirtds; raises StoragePoolsError."""


class LibvirtSource:
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
        self._listing: asyncio.Future[Sequence[StoragePool]] | None = None
        self._listed_at = float("-inf")
        self._pools: dict[str, StoragePool] = {}
        self._changed_at: dict[str, float] = {}

    async def refresh(self) -> bool:
        """List the storage pools; return whether there are other pools now. If it fails, keep those of the last list.

        A list that hangs is not requested again while it hangs.
        """
        if self._listing is None:
            self._listing = asyncio.ensure_future(self._list_pools())
        if not (await asyncio.wait({self._listing}, timeout=LIST_SECONDS))[0]:
            self._error = PoolUnresponsiveError(f"libvirtd did not list its storage pools within {LIST_SECONDS:g} s")
            return False
        listing, self._listing = self._listing, None
        try:
            pools = listing.result()
        except StoragePoolsError as error:
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

    def find(self, image: ImageLocation) -> Pool | None:
        """Return the storage pool of an image; None if it is in none."""
        inside = [pool for pool in self._pools.values() if _contains(pool, image)]
        if not inside:
            return None
        pool = max(inside, key=lambda pool: (len(pool.target), pool.name))
        return Pool(f"{PoolKind.LIBVIRT.value}:{pool.name}", PoolKind.LIBVIRT, pool.name, pool.type, pool.name)

    def names(self, image: ImageLocation) -> list[str]:
        """Return the names of the storage pools that an image is in, for the labels of a pool of another kind."""
        return sorted(pool.name for pool in self._pools.values() if _contains(pool, image))

    async def read(self, pools: Sequence[Pool]) -> PoolReadings:
        """Return libvirt's figures of these pools."""
        if self._clock() - self._listed_at > FRESH_SECONDS:
            await self.refresh()
        return {pool.key: self._reading(pool.name) for pool in pools}

    def _reading(self, name: str) -> PoolReading | PoolReadError:
        if self._error is not None:
            return self._error
        pool = self._pools.get(name)
        if pool is None:
            return PoolReadError(f"libvirt has no active storage pool {name}")
        return PoolReading(pool.capacity, pool.available, read_at=self._changed_at[name])


def _contains(pool: StoragePool, image: ImageLocation) -> bool:
    if image.path.startswith("/"):
        return bool(pool.target) and image.path.startswith(f"{pool.target.rstrip('/')}/")
    return bool(pool.source) and (pool.type, pool.source) == _network_source(image.path)


def _network_source(path: str) -> tuple[str, str]:
    """Return driver and name of the network storage of an image: the pool of RBD, the volume of Gluster. Empty if it is neither.

    Args:
        path: the file name that QEMU reports, such as `rbd:POOL/IMAGE` or `json:{...}`.
    """
    if path.startswith("json:"):
        try:
            options = orjson.loads(path[5:])
        except orjson.JSONDecodeError:
            return "", ""
        for _ in range(MAX_DEPTH):
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
