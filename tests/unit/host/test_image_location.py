"""The path of an image on this host, from what QEMU reports."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.host.filesystem_reader import FileSystemReader
from agent.host.image_location import ImageLocator, MountTables, local_path, read_mounts
from agent.host.pools.base import ImageLocation, UnknownPool


@pytest.mark.parametrize(
    ("driver", "path", "expected"),
    [
        ("file", "/images/a.qcow2", "/images/a.qcow2"),
        ("file", "/images/../b//a.qcow2", "/b/a.qcow2"),
        ("host_device", "/dev/vg/lv", "/dev/vg/lv"),
        ("qcow2", 'json:{"driver":"qcow2","file":{"driver":"file","filename":"/images/a"}}', "/images/a"),
        ("qcow2", 'json:{"driver":"qcow2","file.filename":"/images/a"}', "/images/a"),
    ],
)
def test_a_local_image_has_a_path(driver: str, path: str, expected: str) -> None:
    assert local_path(driver, path) == expected


@pytest.mark.parametrize(
    ("driver", "path", "reason"),
    [
        ("file", "/dev/fdset/3", "open file"),
        ("file", "/dev/fd/7", "open file"),
        ("nbd", "nbd://server/export", "nbd storage is outside this host"),
        (
            "qcow2",
            'json:{"driver":"qcow2","file":{"driver":"rbd","pool":"p","image":"i"}}',
            "rbd storage is outside this host",
        ),
        ("raw", "rbd:pool/image", "rbd storage is outside this host"),
        ("file", "a.qcow2", "is relative"),
        ("file", "json:{broken", "no path"),
        ("nvme", "", "nvme storage is outside this host"),
    ],
)
def test_another_image_has_the_reason_why_its_pool_is_unknown(driver: str, path: str, reason: str) -> None:
    unknown = local_path(driver, path)
    assert isinstance(unknown, UnknownPool)
    assert reason in unknown.reason


@pytest.fixture
async def reader() -> AsyncIterator[FileSystemReader]:
    reader = FileSystemReader(slow_seconds=20, deadline_seconds=20)
    yield reader
    await reader.close()


async def locate(reader: FileSystemReader, path: Path, pid: int | None = None) -> ImageLocation | UnknownPool:
    return await ImageLocator(reader).locate(MountTables.of_process(pid or os.getpid()), "file", str(path))


async def test_a_file_is_on_the_mount_of_its_directory(reader: FileSystemReader, tmp_path: Path) -> None:
    location = await locate(reader, tmp_path / "a.qcow2")
    assert isinstance(location, ImageLocation)
    assert location.mount is not None
    assert location.mount in read_mounts("self")
    assert str(tmp_path).startswith(location.directory)
    assert location.quota == ""


async def test_a_symbolic_link_is_followed(reader: FileSystemReader, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/shm")
    location = await locate(reader, tmp_path / "link" / "a.qcow2")
    assert isinstance(location, ImageLocation)
    assert location.mount is not None
    assert location.mount.point.startswith("/dev")


async def test_a_directory_that_cannot_be_reached_is_unknown(reader: FileSystemReader, tmp_path: Path) -> None:
    location = await locate(reader, tmp_path / "none" / "a.qcow2")
    assert isinstance(location, UnknownPool)
    assert "No such file or directory" in location.reason


async def test_an_image_of_an_unknown_process_is_unknown(reader: FileSystemReader) -> None:
    location = await ImageLocator(reader).locate(None, "file", "/images/a")
    assert isinstance(location, UnknownPool)
    assert "process of the VM is unknown" in location.reason


async def test_a_process_that_has_ended_has_no_mounts(reader: FileSystemReader) -> None:
    location = await locate(reader, Path("/images/a"), pid=1 << 22)
    assert isinstance(location, UnknownPool)
    assert "cannot be read" in location.reason


async def test_a_directory_that_is_known_needs_no_question(reader: FileSystemReader, tmp_path: Path) -> None:
    locator, tables = ImageLocator(reader), MountTables.of_process(os.getpid())
    assert locator.known_location(tables, "file", str(tmp_path / "a")) is None
    location = await locator.locate(tables, "file", str(tmp_path / "a"))
    assert locator.known_location(tables, "file", str(tmp_path / "a")) == location
