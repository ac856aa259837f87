"""Quotas of directories (projects of XFS and ext4), with the figures of a real kernel in a guest (tests/lab/storage_recorder.py)."""

import json
from pathlib import Path
from typing import Any

import pytest

from agent.host.mounts import parse_mountinfo
from agent.host.pools.base import ImageLocation, Pool, PoolReading
from agent.host.pools.filesystem import FileSystemPoolSource
from agent.host.pools.filesystem_reader import FileSystemReader, FileSystemStats
from agent.host.pools.image_location import ImageLocator, QemuAndAgentMounts

GOLDEN = Path(__file__).parents[2] / "golden" / "storage"
RECORDINGS = {path.stem: json.loads(path.read_text()) for path in sorted(GOLDEN.glob("quota-*.json"))}
MIB = 1 << 20


class RecordedReader(FileSystemReader):
    """A reader whose figures are those of a recording."""

    def __init__(self, recording: dict[str, Any], section: str = "statfs") -> None:
        super().__init__()
        lines = [line.split() for line in recording[section].splitlines()]
        self._recorded = {path: tuple(map(int, numbers)) for path, *numbers in lines}

    async def statvfs(self, path: str, mount: str) -> FileSystemStats:  # noqa: ARG002 - the reader's signature
        unit, blocks, free, available, inodes, free_inodes = self._recorded[path]
        return FileSystemStats(blocks * unit, free * unit, available * unit, inodes, free_inodes)

    async def realpath(self, path: str, mount: str) -> str:  # noqa: ARG002 - the reader's signature
        return path


async def pool_of(recording: dict[str, Any], directory: str, section: str = "statfs") -> tuple[Pool, PoolReading]:
    mounts = parse_mountinfo(recording["mountinfo"])
    locator = ImageLocator(RecordedReader(recording))
    location = await locator.locate(QemuAndAgentMounts(1, mounts, mounts), "file", f"{directory}/a.qcow2")
    assert isinstance(location, ImageLocation)
    source = FileSystemPoolSource(RecordedReader(recording, section))
    pool = source.find_pool(location)
    assert isinstance(pool, Pool)
    reading = (await source.read([pool]))[pool.key]
    assert isinstance(reading, PoolReading)
    return pool, reading


def test_there_are_recordings() -> None:
    assert RECORDINGS


@pytest.mark.parametrize("recording", RECORDINGS.values(), ids=RECORDINGS)
@pytest.mark.parametrize("file_system", ["/xfs", "/ext4"])
async def test_the_directory_of_a_project_is_a_pool_with_the_figures_of_its_quota(
    recording: dict[str, Any], file_system: str
) -> None:
    pool, reading = await pool_of(recording, f"{file_system}/images/vm1/disks")
    assert (pool.name, pool.type) == (f"{file_system}/images", file_system[1:])
    assert reading.size_bytes == 60 * MIB
    assert reading.free_bytes is not None
    assert 49 * MIB <= reading.free_bytes <= 50 * MIB, "ten megabytes are written, and some metadata on ext4"
    assert reading.inodes == 100
    _, full = await pool_of(recording, f"{file_system}/images", "full")
    assert full.free_bytes == 0
    _, whole = await pool_of(recording, file_system, "full")
    assert whole.free_bytes is not None
    assert whole.free_bytes > 700 * MIB, "the file system around the project has room"


@pytest.mark.parametrize("recording", RECORDINGS.values(), ids=RECORDINGS)
async def test_the_soft_limit_of_a_project_counts_as_its_size(recording: dict[str, Any]) -> None:
    """XFS reports the soft limit, and lets a project exceed it for a week at most."""
    pool, reading = await pool_of(recording, "/xfs/soft")
    assert (pool.name, reading.size_bytes, reading.free_bytes) == ("/xfs/soft", 30 * MIB, 20 * MIB)


@pytest.mark.parametrize("recording", RECORDINGS.values(), ids=RECORDINGS)
@pytest.mark.parametrize("file_system", ["/xfs", "/ext4"])
async def test_a_directory_without_a_project_belongs_to_the_file_system(
    recording: dict[str, Any], file_system: str
) -> None:
    pool, reading = await pool_of(recording, f"{file_system}/other")
    assert pool.name == file_system
    assert reading.size_bytes > 900 * MIB


@pytest.mark.parametrize("recording", RECORDINGS.values(), ids=RECORDINGS)
@pytest.mark.parametrize("file_system", ["/xfs", "/ext4"])
async def test_a_quota_has_at_most_the_free_space_of_the_file_system_around_it(
    recording: dict[str, Any], file_system: str
) -> None:
    """The kernels report the smaller figure themselves."""
    pool, reading = await pool_of(recording, f"{file_system}/soft", "crowded")
    _, whole = await pool_of(recording, file_system, "crowded")
    assert whole.free_bytes is not None
    assert whole.free_bytes < 20 * MIB, "the quota has 20 MiB left"
    assert (pool.name, reading.free_bytes) == (f"{file_system}/soft", whole.free_bytes)
