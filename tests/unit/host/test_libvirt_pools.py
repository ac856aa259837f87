import asyncio
from collections.abc import Sequence

import pytest

from agent.host.pools import libvirt
from agent.host.pools.base import (
    ImageLocation,
    Pool,
    PoolKind,
    PoolReadError,
    PoolReading,
    PoolUnresponsiveError,
)
from agent.host.pools.libvirt import LibvirtPoolSource, LibvirtStoragePool, StoragePoolListError

GIB = 1 << 30
IMAGES = LibvirtStoragePool("images", "dir", "/srv/images", "", 100 * GIB, 40 * GIB)
NESTED = LibvirtStoragePool("nested", "fs", "/srv/images/fast", "", 10 * GIB, 4 * GIB)
CEPH = LibvirtStoragePool("ceph", "rbd", "", "vms", 1000 * GIB, 600 * GIB)
GLUSTER = LibvirtStoragePool("bricks", "gluster", "", "vol0", 500 * GIB, 300 * GIB)


class Daemon:
    """A libvirtd with storage pools, and a clock."""

    def __init__(self, *pools: LibvirtStoragePool) -> None:
        self.pools: Sequence[LibvirtStoragePool] = pools
        self.error: StoragePoolListError | None = None
        self.answers = asyncio.Event()
        self.answers.set()
        self.calls = 0
        self.now = 1000.0
        self.source = LibvirtPoolSource(self.list_pools, lambda: self.now)

    async def list_pools(self) -> Sequence[LibvirtStoragePool]:
        self.calls += 1
        await self.answers.wait()
        if self.error is not None:
            raise self.error
        return self.pools

    async def read(self, name: str) -> PoolReading | PoolReadError:
        self.now += 30
        pool = Pool(f"libvirt:{name}", PoolKind.LIBVIRT, name)
        return (await self.source.read([pool]))[pool.key]


def image(path: str, driver: str = "file") -> ImageLocation:
    return ImageLocation(driver, path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/srv/images/vm.qcow2", "images"),
        ("/srv/images/fast/vm.qcow2", "nested"),
        ("/srv/images-old/vm.qcow2", None),
        ("rbd:vms/disk0:id=admin", "ceph"),
        ('json:{"driver":"raw","file":{"driver":"rbd","pool":"vms","image":"disk0"}}', "ceph"),
        ('json:{"driver":"rbd","pool":"other","image":"disk0"}', None),
        ("gluster+tcp://host/vol0/vm.qcow2", "bricks"),
        ('json:{"driver":"gluster","volume":"vol0","path":"vm.qcow2"}', "bricks"),
        ("nbd://host/vms", None),
        ("json:{", None),
        ("json:[1]", None),
        ('json:{"driver":"rbd","pool":7}', None),
        ("", None),
    ],
)
async def test_an_image_is_found_by_its_path_or_its_network_storage(path: str, name: str | None) -> None:
    daemon = Daemon(IMAGES, NESTED, CEPH, GLUSTER)
    await daemon.source.refresh_pool_lookup()
    pool = daemon.source.find_pool(image(path))
    assert (pool.name if pool is not None else None) == name


async def test_a_reading_has_the_time_when_its_figures_last_changed() -> None:
    daemon = Daemon(IMAGES)
    await daemon.source.refresh_pool_lookup()
    assert await daemon.read("images") == PoolReading(100 * GIB, 40 * GIB, read_at=1000.0)
    daemon.pools = [LibvirtStoragePool("images", "dir", "/srv/images", "", 100 * GIB, 30 * GIB)]
    assert await daemon.read("images") == PoolReading(100 * GIB, 30 * GIB, read_at=1060.0)


async def test_only_a_change_of_the_list_is_a_change_for_images() -> None:
    daemon = Daemon(IMAGES)
    assert await daemon.source.refresh_pool_lookup()
    daemon.pools = [LibvirtStoragePool("images", "dir", "/srv/images", "", 100 * GIB, 30 * GIB)]
    assert not await daemon.source.refresh_pool_lookup()
    daemon.pools = []
    assert await daemon.source.refresh_pool_lookup()


async def test_an_inactive_pool_and_a_lost_libvirtd_are_errors() -> None:
    daemon = Daemon(IMAGES)
    await daemon.source.refresh_pool_lookup()
    daemon.error = StoragePoolListError("libvirtd is lost")
    assert str(await daemon.read("images")) == "libvirtd is lost"
    assert daemon.source.find_pool(image("/srv/images/vm.qcow2")) is not None  # it is known from the last list
    daemon.error, daemon.pools = None, []
    assert "no active storage pool images" in str(await daemon.read("images"))


async def test_a_list_that_hangs_is_requested_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt, "LIST_TIMEOUT_SECONDS", 0.01)
    daemon = Daemon(IMAGES)
    daemon.answers.clear()
    for _ in range(3):
        assert isinstance(await daemon.read("images"), PoolUnresponsiveError)
    assert daemon.calls == 1
    daemon.answers.set()
    assert isinstance(await daemon.read("images"), PoolReading)
