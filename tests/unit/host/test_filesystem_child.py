"""The child process that reads file systems: what Btrfs has not written back yet counts as used."""

from pathlib import Path

import pytest

from agent.host.filesystem_child import find_btrfs_uuid_by_fsid, read_btrfs_unflushed_bytes

UUID = "5d08d26b-87e0-4d9a-a3d2-0d9b4a3e6f11"
FSID = 0x5D08D26B ^ 0xA3D20D9B


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    data = tmp_path / UUID / "allocation" / "data"
    data.mkdir(parents=True)
    (data / "bytes_may_use").write_text("4096\n")
    (data / "bytes_reserved").write_text("8192\n")
    (tmp_path / "features").mkdir()
    (tmp_path / "ffffffff-0000-0000-0000-000000000000").mkdir()
    return tmp_path


@pytest.mark.parametrize("subvolume", [5, 256, 70000])
def test_a_btrfs_is_found_by_the_id_of_any_of_its_subvolumes(sysfs: Path, subvolume: int) -> None:
    upper = (0x87E04D9A ^ 0x4A3E6F11 ^ subvolume) << 32
    assert find_btrfs_uuid_by_fsid(upper | FSID, str(sysfs)) == UUID


def test_another_file_system_is_no_btrfs(sysfs: Path) -> None:
    assert find_btrfs_uuid_by_fsid(FSID + 1, str(sysfs)) == ""
    assert find_btrfs_uuid_by_fsid(FSID, str(sysfs / "none")) == ""


def test_pending_bytes_are_reserved_or_in_the_page_cache(sysfs: Path) -> None:
    assert read_btrfs_unflushed_bytes(UUID, str(sysfs)) == 12288


@pytest.mark.parametrize("content", ["", "many\n"])
def test_pending_bytes_that_cannot_be_read_are_none(sysfs: Path, content: str) -> None:
    (sysfs / UUID / "allocation" / "data" / "bytes_reserved").write_text(content)
    assert read_btrfs_unflushed_bytes(UUID, str(sysfs)) == 0
    assert read_btrfs_unflushed_bytes("none", str(sysfs)) == 0
