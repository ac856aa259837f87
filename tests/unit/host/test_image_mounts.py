"""Pools of images on real mounts: an overlay, and a single file that is mounted on another one."""

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.host.pools.base import ImageLocation, Pool, PoolReading
from agent.host.pools.filesystem import FileSystemPoolSource
from agent.host.pools.filesystem_reader import FileSystemReader
from agent.host.pools.image_location import ImageLocator, QemuAndAgentMounts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount file systems")


@pytest.fixture
async def reader() -> AsyncIterator[FileSystemReader]:
    reader = FileSystemReader(slow_seconds=20, deadline_seconds=20)
    yield reader
    await reader.close()


def mount(point: Path, *arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments), str(point)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system with an image; everything that a test mounts in it is unmounted after the test."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(disk, "-t", "tmpfs", "-o", "size=8M", "tmpfs")
    (disk / "a.raw").write_bytes(b"x" * 65536)
    yield disk
    for point in (tmp_path / "merged", tmp_path / "b.raw", disk):
        if os.path.ismount(point):  # Path.is_mount is false for a file
            subprocess.run(["umount", "--lazy", str(point)], check=True)


async def find_pool(reader: FileSystemReader, image: Path) -> Pool:
    location = await ImageLocator(reader).locate(QemuAndAgentMounts.read_for_process(os.getpid()), "file", str(image))
    assert isinstance(location, ImageLocation)
    pool = FileSystemPoolSource(reader).find_pool(location)
    assert isinstance(pool, Pool)
    return pool


async def test_a_file_that_is_mounted_on_another_file_is_in_the_pool_of_its_file_system(
    reader: FileSystemReader, disk: Path, tmp_path: Path
) -> None:
    (tmp_path / "b.raw").touch()
    mount(tmp_path / "b.raw", "--bind", disk / "a.raw")
    pool = await find_pool(reader, tmp_path / "b.raw")
    assert pool.key == (await find_pool(reader, disk / "a.raw")).key
    reading = (await FileSystemPoolSource(reader).read([pool]))[pool.key]
    assert isinstance(reading, PoolReading)
    assert reading.size_bytes == 8 << 20


async def test_an_overlay_is_a_pool_with_the_free_space_of_the_file_system_below_it(
    reader: FileSystemReader, disk: Path, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    for directory in (merged, disk / "upper", disk / "work", disk / "lower"):
        directory.mkdir()
    (disk / "lower" / "a.raw").write_bytes(b"x" * 65536)
    options = f"lowerdir={disk}/lower,upperdir={disk}/upper,workdir={disk}/work"
    mount(merged, "-t", "overlay", "-o", options, "overlay")
    pool, below = await find_pool(reader, merged / "a.raw"), await find_pool(reader, disk / "a.raw")
    assert (pool.name, pool.type) == (str(merged), "overlay")
    readings = await FileSystemPoolSource(reader).read([pool, below])
    reading, reading_below = readings[pool.key], readings[below.key]
    assert isinstance(reading, PoolReading)
    assert isinstance(reading_below, PoolReading)
    assert reading.free_bytes == reading_below.free_bytes
    assert reading.size_bytes == 8 << 20
