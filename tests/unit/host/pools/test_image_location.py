"""The path of an image on this host, from what QEMU reports."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.host.block_device import block_device_number
from agent.host.mounts import Mount
from agent.host.pools.base import ImageLocation, Pool, PoolReading, UnknownPool
from agent.host.pools.filesystem import FileSystemPoolSource
from agent.host.pools.filesystem_reader import FileSystemReader, FileSystemStats
from agent.host.pools.image_location import ImageLocator, QemuAndAgentMounts, local_path, read_mounts_of_process

ROOT_MOUNT = Mount(1, 0, "8:1", "/", "/", "xfs", "/dev/sda1")


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
        ("file", "/images/a\0b", "no file can have"),
        ("file", "/images/\ud800", "no file can have"),
        ("file", "/" + "a" * 5000, "no file can have"),
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
    return await ImageLocator(reader).locate(QemuAndAgentMounts.read_for_process(pid or os.getpid()), "file", str(path))


async def test_a_file_is_on_the_mount_of_its_directory(reader: FileSystemReader, tmp_path: Path) -> None:
    location = await locate(reader, tmp_path / "a.qcow2")
    assert isinstance(location, ImageLocation)
    assert location.mount is not None
    assert location.mount in read_mounts_of_process("self")
    assert str(tmp_path).startswith(location.directory)
    assert location.quota_directory == ""


async def test_a_symbolic_link_is_followed(reader: FileSystemReader, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/shm")
    location = await locate(reader, tmp_path / "link" / "a.qcow2")
    assert isinstance(location, ImageLocation)
    assert location.mount is not None
    assert location.mount.mount_point.startswith("/dev")


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
    locator, tables = ImageLocator(reader), QemuAndAgentMounts.read_for_process(os.getpid())
    assert locator.location_without_io(tables, "file", str(tmp_path / "a")) is None
    location = await locator.locate(tables, "file", str(tmp_path / "a"))
    assert locator.location_without_io(tables, "file", str(tmp_path / "a")) == location


async def test_an_image_that_is_a_link_is_where_the_link_leads(reader: FileSystemReader, tmp_path: Path) -> None:
    """QEMU gets such a link from oVirt, to the image or to a logical volume."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "real").touch()
    (tmp_path / "link").symlink_to(tmp_path / "images" / "real")
    locator, tables = ImageLocator(reader), QemuAndAgentMounts.read_for_process(os.getpid())
    location = await locator.locate(tables, "file", str(tmp_path / "link"))
    assert isinstance(location, ImageLocation)
    assert location.path == str(tmp_path / "images" / "real")
    assert locator.location_without_io(tables, "file", str(tmp_path / "link")) == location


BLOCK_DEVICES = [path for path in sorted(Path("/dev").iterdir()) if path.is_block_device() and not path.is_symlink()]


@pytest.mark.skipif(not BLOCK_DEVICES, reason="this machine has no block device")
async def test_an_image_that_is_a_link_to_a_device_is_the_device(reader: FileSystemReader, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(BLOCK_DEVICES[0])
    tables = QemuAndAgentMounts.read_for_process(os.getpid())
    location = await ImageLocator(reader).locate(tables, "host_device", str(tmp_path / "link"))
    assert isinstance(location, ImageLocation)
    assert (location.mount, location.path) == (None, str(BLOCK_DEVICES[0]))
    assert location.device == block_device_number(str(BLOCK_DEVICES[0]))


async def test_a_deleted_image_belongs_to_the_file_system_of_its_directory(
    reader: FileSystemReader, tmp_path: Path
) -> None:
    location = await locate(reader, tmp_path / "deleted")
    assert isinstance(location, ImageLocation)
    assert location.path == str(tmp_path / "deleted")


class QuotaReader(FileSystemReader):
    """A reader of a file system of 100 bytes, in which some directories have a quota of another size.

    Attributes:
        asked: The paths whose figures were asked for.
    """

    def __init__(self, **quotas: int) -> None:
        super().__init__()
        self.asked: list[str] = []
        self._quotas = {f"/{name}": size for name, size in quotas.items()}

    async def statvfs(self, path: str, mount: str) -> FileSystemStats:  # noqa: ARG002 - the reader's signature
        self.asked.append(path)
        size = next((size for top, size in self._quotas.items() if f"{path}/".startswith(f"{top}/")), 100)
        return FileSystemStats(size, 0, 0, 0, 0)

    async def realpath(self, path: str, mount: str) -> str:  # noqa: ARG002 - the reader's signature
        return path


@pytest.mark.parametrize(
    ("directory", "quota"), [("/srv/vm1/disks", "/srv"), ("/srv", "/srv"), ("/srv2/a", ""), ("", "")]
)
async def test_the_topmost_directory_of_a_quota_stands_for_it(directory: str, quota: str) -> None:
    tables = QemuAndAgentMounts(1, (ROOT_MOUNT,), (ROOT_MOUNT,))
    location = await ImageLocator(QuotaReader(srv=20)).locate(tables, "file", f"{directory}/a.qcow2")
    assert isinstance(location, ImageLocation)
    assert (location.quota_directory, location.directory) == (quota, quota or "/")
    pool = FileSystemPoolSource(QuotaReader()).find_pool(location)
    assert isinstance(pool, Pool)
    assert (pool.name, pool.key) == (quota or "/", f"filesystem:8:1{':' if quota else ''}{quota}")


async def test_an_image_that_is_a_mount_point_is_on_its_own_mount() -> None:
    export = Mount(2, 1, "0:50", "/", "/images/exported", "fuse", "fuse")
    tables = QemuAndAgentMounts(1, (ROOT_MOUNT, export), (ROOT_MOUNT, export))
    location = await ImageLocator(QuotaReader()).locate(tables, "file", "/images/exported")
    assert isinstance(location, ImageLocation)
    assert (location.mount, location.directory) == (export, "/images/exported")


@pytest.mark.parametrize(
    ("own", "asked"),
    [
        (Mount(7, 6, "8:1", "/", "/host", "xfs", "/dev/sda1"), "/host/images"),
        (Mount(7, 6, "8:1", "/images", "/data", "xfs", "/dev/sda1"), "/data"),
        (Mount(7, 6, "8:1", "/other", "/data", "xfs", "/dev/sda1"), "/proc/1/root/"),
        (Mount(7, 6, "8:9", "/", "/images", "xfs", "/dev/sdb1"), "/proc/1/root/"),
    ],
)
async def test_an_agent_in_a_container_reads_its_own_mount_or_qemus_root(own: Mount, asked: str) -> None:
    tables = QemuAndAgentMounts(1, (ROOT_MOUNT,), (Mount(6, 0, "0:99", "/", "/", "overlay", "overlay"), own))
    reader = QuotaReader()
    assert isinstance(await ImageLocator(reader).locate(tables, "file", "/images/a.qcow2"), ImageLocation)
    assert reader.asked[0] == asked


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make mount namespaces")
async def test_a_mount_that_only_qemu_has_is_read_through_qemus_root(reader: FileSystemReader, tmp_path: Path) -> None:
    script = f"mount -t tmpfs -o size=8M tmpfs {tmp_path} && echo mounted && exec sleep 60"
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", script), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"mounted\n"
        location = await ImageLocator(reader).locate(
            QemuAndAgentMounts.read_for_process(process.pid), "file", f"{tmp_path}/a"
        )
        assert isinstance(location, ImageLocation)
        assert location.directory == f"/proc/{process.pid}/root{tmp_path}"
        pool = FileSystemPoolSource(reader).find_pool(location)
        assert isinstance(pool, Pool)
        reading = (await FileSystemPoolSource(reader).read([pool]))[pool.key]
        assert isinstance(reading, PoolReading)
        assert (pool.name, reading.size_bytes) == (str(tmp_path), 8 << 20)
    finally:
        process.kill()
        await process.wait()
