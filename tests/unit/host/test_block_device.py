from pathlib import Path

import pytest

from agent.host.block_device import (
    block_device_number,
    block_device_size_bytes,
    persistent_block_device_id,
    replace_dm_number_by_name,
)

MIB = 1 << 20


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    """Return a sysfs with a disk, a partition, a device with a slash in its name, and two volumes of LVM."""
    for name, number, mapped, sectors in (
        ("sdz", "8:400", "", 2048),
        ("sdz1", "8:401", "", 1024),
        ("cciss!c0d9", "104:9", "", 4096),
        ("dm-900", "253:900", "vg--1-vm--100--disk--0", 8192),
        ("dm-901", "253:901", "mpatha", 16384),
    ):
        folder = tmp_path / "devices" / name
        folder.mkdir(parents=True)
        (folder / "dev").write_text(f"{number}\n")
        (folder / "size").write_text(f"{sectors}\n")
        if mapped:
            (folder / "dm").mkdir()
            (folder / "dm/name").write_text(f"{mapped}\n")
        for link in (tmp_path / "class/block" / name, tmp_path / "dev/block" / number):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(folder)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/dev/sdz", "8:400"),
        ("/dev/sdz1", "8:401"),
        ("/dev/cciss/c0d9", "104:9"),
        ("/dev/dm-900", "253:900"),
        ("/dev/mapper/mpatha", "253:901"),
        ("/dev/mapper/vg--1-vm--100--disk--0", "253:900"),
        ("/dev/vg-1/vm-100-disk-0", "253:900"),
        ("/dev/vg-1/other", None),
        ("/dev/null", ""),
        ("/srv/sdz", None),
        ("/dev/../srv/sdz", None),
        ("/dev/../../class/block/sdz", None),
    ],
)
def test_a_device_is_found_in_sysfs_if_its_node_is_hidden(sys: Path, path: str, number: str | None) -> None:
    assert block_device_number(path, sys) == number


def test_a_device_is_identified_by_its_uuid_or_its_world_wide_name(sys: Path) -> None:
    (sys / "dev/block/253:900/dm").mkdir(exist_ok=True)
    (sys / "dev/block/253:900/dm/uuid").write_text("LVM-abc\n")
    assert persistent_block_device_id("/dev/vg-1/vm-100-disk-0", sys) == "LVM-abc"
    assert persistent_block_device_id("/dev/sdz", sys) == ""
    (sys / "dev/block/8:400/device").mkdir()
    (sys / "dev/block/8:400/device/wwid").write_text("naa.5000\n")
    assert persistent_block_device_id("/dev/sdz", sys) == "naa.5000"
    assert persistent_block_device_id("/srv/sdz", sys) == persistent_block_device_id("/dev/null", sys) == ""


def test_a_hidden_device_has_its_current_size(sys: Path) -> None:
    assert block_device_size_bytes("/dev/vg-1/vm-100-disk-0", sys) == 4 * MIB
    (sys / "dev/block/253:900/size").write_text("16384\n")
    assert block_device_size_bytes("/dev/vg-1/vm-100-disk-0", sys) == 8 * MIB
    assert block_device_size_bytes("/dev/null", sys) is None


def test_a_number_that_the_kernel_gave_to_another_volume_is_not_used(sys: Path) -> None:
    assert block_device_number("/dev/vg-1/vm-100-disk-0", sys) == "253:900"
    (sys / "devices/dm-900/dm/name").write_text("vg--1-new\n")
    assert block_device_number("/dev/vg-1/vm-100-disk-0", sys) is None
    assert block_device_number("/dev/vg-1/new", sys) == "253:900"


def test_a_device_mapper_device_has_a_path_that_survives_a_reboot(sys: Path) -> None:
    assert replace_dm_number_by_name("/dev/dm-900", sys) == "/dev/mapper/vg--1-vm--100--disk--0"
    assert replace_dm_number_by_name("/dev/dm-999", sys) == "/dev/dm-999"
    assert replace_dm_number_by_name("/dev/sdz", sys) == "/dev/sdz"
