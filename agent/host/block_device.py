"""Device number, current size and unique identity of a block device, from sysfs.

The agent does not use QEMU's size, because QEMU reports the size that the device had when QEMU opened the device. So
`query-named-block-nodes` reports the old size of a logical volume that was extended later. After a write beyond the old size, QEMU 7.2
reports the end of that write as the size. The volume then always looks full.

The agent's systemd unit hides the nodes in /dev (PrivateDevices). Every process can see the devices in sysfs.
"""

import os
import stat
from pathlib import Path

_SECTOR_BYTES = 512

MAX_IDENTITY_CHARACTERS = 256
"""Maximum length of a device's identity. The UUID of a logical volume has 68 characters."""
_SYS = Path("/sys")

_mapper_numbers: dict[str, str] = {}
"""Cache of device numbers by device-mapper name. The name is compared with sysfs before each use, because the kernel reuses numbers."""


def block_device_size_bytes(path: str, sys: Path = _SYS) -> int | None:
    """Return the size of a block device in bytes without opening the device.

    Args:
        path: the path that QEMU reports. A path outside /dev is ignored, because a file on a hung mount would block the agent.
        sys: the /sys directory.

    Returns:
        None if the path is ignored or is not a block device, or if the agent cannot see the device, for example in a container.
    """
    number = block_device_number(path, sys)
    if not number:
        return None
    try:
        return int((sys / "dev/block" / number / "size").read_text()) * _SECTOR_BYTES or None
    except (OSError, ValueError):
        return None


def persistent_block_device_id(path: str, sys: Path = _SYS) -> str:
    """Return a unique identifier of a block device, such as the UUID of a logical volume. The identifier survives a reboot.

    Args:
        path: the path that QEMU reports. A path outside /dev is ignored.
        sys: the /sys directory.

    Returns:
        An empty string if the path is ignored, or if the kernel reports no unique identifier.
    """
    number = block_device_number(path, sys)
    if not number:
        return ""
    names = (_read_text(sys / "dev/block" / number / name) for name in ("dm/uuid", "wwid", "device/wwid"))
    return next(filter(None, names), "")[:MAX_IDENTITY_CHARACTERS]


def replace_dm_number_by_name(path: str, sys: Path = _SYS) -> str:
    """Return `/dev/mapper/NAME` for the path of a device-mapper device such as `/dev/dm-7`. Return any other path unchanged.

    The number in `/dev/dm-7` is not stable: the kernel may give this number to another device after a reboot.
    """
    name = (
        _read_text(sys / "class/block" / path.removeprefix("/dev/") / "dm/name")
        if path.startswith("/dev/dm-")
        else None
    )
    return f"/dev/mapper/{name}" if name else path


def block_device_number(path: str, sys: Path = _SYS) -> str | None:
    """Return `major:minor` of a block device without opening the device.

    Args:
        path: the path that QEMU reports. A path outside /dev is ignored.
        sys: the /sys directory.

    Returns:
        An empty string if the path is not a block device. None if the path is ignored, or if the agent cannot see the device.
    """
    if not path.startswith("/dev/") or os.path.normpath(path) != path:
        return None
    try:
        status = Path(path).stat()
    except OSError:
        return _number_by_name(path.removeprefix("/dev/"), sys)
    if not stat.S_ISBLK(status.st_mode):
        return ""
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _number_by_name(name: str, sys: Path) -> str | None:
    """Return `major:minor` of a device by its name in /dev, such as `sda` or `vg/lv`; None if sysfs does not list the device."""
    number = _read_text(sys / "class/block" / name.replace("/", "!") / "dev")
    if number is not None:
        return number
    if name.startswith("mapper/"):
        return _number_by_mapper_name(name.removeprefix("mapper/"), sys)
    group, slash, volume = name.partition("/")  # LVM doubles each hyphen of the two names in the device-mapper name
    return _number_by_mapper_name("-".join(part.replace("-", "--") for part in (group, volume)), sys) if slash else None


def _number_by_mapper_name(name: str, sys: Path) -> str | None:
    known = _mapper_numbers.get(name)
    if known is not None and _read_text(sys / "dev/block" / known / "dm/name") == name:
        return known
    _mapper_numbers.pop(name, None)
    for device in (sys / "class/block").glob("dm-*"):
        if _read_text(device / "dm/name") == name and (number := _read_text(device / "dev")) is not None:
            _mapper_numbers[name] = number
            return number
    return None


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
