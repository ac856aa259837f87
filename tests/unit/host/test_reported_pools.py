import os
import re
import time
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from agent.host.mounts import Mount
from agent.host.pools.base import (
    ImageLocation,
    Pool,
    PoolKind,
    PoolReadError,
    PoolReading,
    PoolUnresponsiveError,
    UnknownPool,
)
from agent.host.pools.filesystem import FileSystemPoolSource
from agent.host.pools.filesystem_reader import FileSystemReader, FileSystemStats
from agent.host.pools.lvm_thin import LvmThinPoolSource
from agent.host.pools.storage_report import (
    MAX_REPORT_BYTES,
    STALE_SECONDS,
    StorageReport,
    StorageReportError,
    StorageReportFile,
    volume_name_of_dev_path,
)
from agent.host.pools.zfs import ZfsPoolSource

GIB = 1 << 30
DATA: dict[str, Any] = {
    "kind": "lvm_thin",
    "name": "pve/data",
    "size_bytes": 100 * GIB,
    "free_bytes": 40 * GIB,
    "metadata_size_bytes": GIB,
    "metadata_free_bytes": GIB // 2,
    "volumes": [{"name": "pve/vm-100-disk-0", "device": "253:7", "size_bytes": 64 * GIB, "allocated_bytes": 30 * GIB}],
}
TANK: dict[str, Any] = {
    "kind": "zfs",
    "name": "tank",
    "size_bytes": 200 * GIB,
    "free_bytes": 90 * GIB,
    "volumes": [
        {"name": "tank", "file_system": "tank"},
        {"name": "tank/vm", "file_system": "tank/vm"},
        {"name": "tank/limited", "file_system": "tank/limited", "quota": True},
        {"name": "tank/disk0", "device": "230:16", "size_bytes": 32 * GIB, "allocated_bytes": GIB},
        {"name": "tank/full", "device": "230:32", "size_bytes": 32 * GIB, "reserved": True},
    ],
}


def write(path: Path, *pools: dict[str, Any], errors: tuple[dict[str, Any], ...] = (), **more: Any) -> Path:
    path.write_bytes(orjson.dumps({"version": 1, "written_at": time.time(), "pools": pools, "errors": errors} | more))
    return path


def volume(path: str, device: str = "") -> ImageLocation:
    return ImageLocation("host_device", path, device=device)


def file_on(source: str, type_: str = "zfs") -> ImageLocation:
    return ImageLocation("file", "/tank/vm/a.qcow2", Mount(1, 0, "0:51", "/", "/tank/vm", type_, source), "/tank/vm")


async def lvm(path: Path, sys: Path = Path("/nonexistent")) -> LvmThinPoolSource:
    source = LvmThinPoolSource(StorageReportFile(path), sys)
    await source.refresh_pool_lookup()
    return source


async def zfs(path: Path) -> ZfsPoolSource:
    source = ZfsPoolSource(StorageReportFile(path))
    await source.refresh_pool_lookup()
    return source


POOL = Pool("lvm_thin:pve/data", PoolKind.LVM_THIN, "pve/data", path="pve/data")


async def test_a_thin_volume_is_found_by_its_device_number(tmp_path: Path) -> None:
    source = await lvm(write(tmp_path / "report", DATA, TANK))
    image = volume("/dev/anything", "253:7")
    assert source.find_pool(image) == POOL


@pytest.mark.parametrize("path", ["/dev/pve/vm-100-disk-0", "/dev/mapper/pve-vm--100--disk--0"])
async def test_a_thin_volume_is_found_by_its_name_without_access_to_devices(tmp_path: Path, path: str) -> None:
    source = await lvm(write(tmp_path / "report", DATA))
    assert source.find_pool(volume(path)) == POOL


async def test_the_allocated_bytes_of_a_volume_are_found_by_its_device_and_by_its_name(tmp_path: Path) -> None:
    source = await lvm(write(tmp_path / "report", DATA))
    reading = (await source.read([POOL]))[POOL.key]
    assert isinstance(reading, PoolReading)
    assert reading.allocated_bytes_by_volume == {"253:7": 30 * GIB, "pve/vm-100-disk-0": 30 * GIB}


async def test_the_free_space_below_a_file_system_is_that_of_its_thin_pool(tmp_path: Path) -> None:
    source = await lvm(path := write(tmp_path / "report", DATA))
    assert source.thin_pool_free("253:7") == 40 * GIB
    assert source.thin_pool_free("8:1") is None
    write(path, DATA, written_at=time.time() - STALE_SECONDS - 60)
    assert source.thin_pool_free("253:7") is None


@pytest.mark.parametrize(("below", "free"), [(None, 70 * GIB), (40 * GIB, 40 * GIB), (90 * GIB, 70 * GIB)])
async def test_a_file_system_on_a_thin_volume_has_at_most_its_pools_free_space(below: int | None, free: int) -> None:
    class Reader:
        async def statvfs(self, _path: str, mount: str) -> FileSystemStats:
            assert mount == "253:7"
            return FileSystemStats(100 * GIB, 80 * GIB, 70 * GIB, 0, 0)

    pool = Pool("filesystem:253:7", PoolKind.FILESYSTEM, "/srv", "ext4", "/srv")
    source = FileSystemPoolSource(cast("FileSystemReader", Reader()), {"253:7": below}.get)
    (reading,) = (await source.read([pool])).values()
    assert isinstance(reading, PoolReading)
    assert (reading.free_bytes, reading.used_bytes) == (free, 20 * GIB)


async def test_an_image_on_another_device_is_in_no_thin_pool(tmp_path: Path) -> None:
    source = await lvm(write(tmp_path / "report", DATA))
    assert source.find_pool(volume("/dev/sdb", "8:16")) is None
    assert source.find_pool(file_on("/dev/mapper/pve-vm--100--disk--0", "ext4")) is None


async def test_a_thin_pool_is_read_with_its_metadata_and_the_time_of_the_report(tmp_path: Path) -> None:
    source = await lvm(write(tmp_path / "report", DATA, written_at=(written_at := time.time() - 20)))
    (reading,) = (await source.read([POOL])).values()
    assert isinstance(reading, PoolReading)
    assert reading == PoolReading(
        100 * GIB,
        40 * GIB,
        metadata_size_bytes=GIB,
        metadata_free_bytes=GIB // 2,
        read_at=written_at,
        allocated_bytes_by_volume=reading.allocated_bytes_by_volume,
    )


async def test_a_failed_pool_has_its_problem_and_no_free_space(tmp_path: Path) -> None:
    pool = {key: value for key, value in DATA.items() if key != "free_bytes"} | {"state": "failed"}
    source = await lvm(write(tmp_path / "report", pool))
    (reading,) = (await source.read([POOL])).values()
    assert isinstance(reading, PoolReading)
    assert (reading.free_bytes, reading.problem) == (None, "failed")


async def test_a_missing_report_is_named_with_its_fix(tmp_path: Path) -> None:
    source = await lvm(tmp_path / "report")
    (reading,) = (await source.read([POOL])).values()
    assert isinstance(reading, PoolReadError)
    assert "qmp-agent-storage.timer" in str(reading)


async def test_an_old_report_is_not_used(tmp_path: Path) -> None:
    path = write(tmp_path / "report", DATA, written_at=time.time() - STALE_SECONDS - 60)
    source = await lvm(path)
    (reading,) = (await source.read([POOL])).values()
    assert isinstance(reading, PoolReadError)
    assert "s old" in str(reading)
    assert not isinstance(reading, PoolUnresponsiveError)


async def test_a_command_that_hangs_makes_its_known_pools_unresponsive(tmp_path: Path) -> None:
    path = write(tmp_path / "report", DATA, written_at=time.time() - 30)
    source = await lvm(path)
    error = {"kind": "lvm_thin", "message": "lvs did not answer within 10 s", "hangs": True}
    write(path, errors=(error,))
    (reading,) = (await source.read([POOL])).values()
    assert isinstance(reading, PoolUnresponsiveError)
    assert source.find_pool(volume("", "253:7")) == POOL


async def test_a_failed_command_of_another_kind_changes_nothing(tmp_path: Path) -> None:
    source = await lvm(write(tmp_path / "report", DATA, errors=({"kind": "zfs", "message": "zpool failed"},)))
    (reading,) = (await source.read([POOL])).values()
    assert isinstance(reading, PoolReading)


async def test_a_removed_pool_is_reported_as_missing(tmp_path: Path) -> None:
    source = await lvm(write(tmp_path / "report"))
    (reading,) = (await source.read([POOL])).values()
    assert isinstance(reading, PoolReadError)


async def test_a_thin_volume_without_a_report_is_unknown_with_the_fix(tmp_path: Path) -> None:
    device = tmp_path / "sys/dev/block/253:7"
    (device / "slaves/dm-3/dm").mkdir(parents=True)
    (device / "slaves/dm-3/dm/name").write_text("pve-data-tpool\n")
    (tmp_path / "sys/dev/block/253:1/slaves/sda").mkdir(parents=True)
    source = await lvm(tmp_path / "report", tmp_path / "sys")
    unknown = source.find_pool(volume("/dev/pve/vm-100-disk-0", "253:7"))
    assert isinstance(unknown, UnknownPool)
    assert "pve-data" in unknown.reason
    assert "qmp-agent-storage.timer" in unknown.reason
    assert source.find_pool(volume("/dev/pve/root", "253:1")) is None


async def test_a_zfs_volume_and_a_file_share_their_pool(tmp_path: Path) -> None:
    source = await zfs(write(tmp_path / "report", DATA, TANK))
    tank = Pool("zfs:tank", PoolKind.ZFS, "tank", path="tank")
    assert source.find_pool(volume("/dev/zd16", "230:16")) == tank
    assert source.find_pool(volume("/dev/zvol/tank/disk0")) == tank
    assert source.find_pool(file_on("tank/vm")) == tank


async def test_a_file_system_with_a_quota_is_not_limited_by_its_zfs_pool(tmp_path: Path) -> None:
    source = await zfs(write(tmp_path / "report", TANK))
    assert source.find_pool(file_on("tank/limited")) is None


async def test_a_zfs_volume_with_a_full_reservation_is_limited_by_its_device(tmp_path: Path) -> None:
    source = await zfs(write(tmp_path / "report", TANK))
    assert source.find_pool(volume("/dev/zvol/tank/full", "230:32")) is None


async def test_a_zfs_volume_without_a_report_is_unknown_with_the_fix(tmp_path: Path) -> None:
    source = await zfs(tmp_path / "report")
    unknown = source.find_pool(volume("/dev/zvol/tank/disk0"))
    assert isinstance(unknown, UnknownPool)
    assert "qmp-agent-storage.timer" in unknown.reason
    assert source.find_pool(file_on("tank/vm")) is None  # statvfs knows its free space


async def test_a_file_on_another_file_system_is_in_no_zfs_pool(tmp_path: Path) -> None:
    source = await zfs(write(tmp_path / "report", TANK))
    assert source.find_pool(file_on("tank", "ext4")) is None


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "JSON"),
        (b"[]", "report"),
        (b'{"version": 2, "written_at": 0}', "version"),
        (
            b'{"version": 1, "written_at": 0, "pools": [{"kind": "lvm_thin", "name": "a", "size_bytes": -1}]}',
            "size_bytes",
        ),
        (b" " * (MAX_REPORT_BYTES + 1), "larger"),
    ],
)
def test_a_report_of_another_format_is_refused_with_its_cause(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "report"
    path.write_bytes(content)
    with pytest.raises(StorageReportError, match=cause):
        StorageReportFile(path).load(0.0)


@pytest.mark.parametrize("mode", [0o646, 0o664])
def test_a_report_that_another_user_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "report", DATA)
    os.chmod(path, mode)  # noqa: PTH101 - as in the other tests
    with pytest.raises(StorageReportError, match="root must own it"):
        StorageReportFile(path).load(time.time())


def test_unknown_fields_of_a_newer_report_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "report", DATA | {"colour": "red"}, more=1)
    assert StorageReportFile(path).load(time.time()).pools[0].name == "pve/data"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/dev/vg/lv", "vg/lv"),
        ("/dev/mapper/vg-lv", "vg/lv"),
        ("/dev/mapper/odd--vg_1.x+y-lv--with--hyphens", "odd-vg_1.x+y/lv-with-hyphens"),
        ("/dev/zvol/tank/vm/disk0", "tank/vm/disk0"),
    ],
)
def test_a_device_path_names_its_volume(path: str, name: str) -> None:
    assert volume_name_of_dev_path(path) == name


def test_the_documented_example_of_a_report_is_valid() -> None:
    text = (Path(__file__).parents[3] / "docs/reference/storage-report.md").read_text()
    (example,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    report = StorageReport.model_validate_json(example)
    assert [volume.device for volume in report.pools[0].volumes] == ["253:7"]
