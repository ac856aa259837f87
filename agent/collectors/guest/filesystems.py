"""File systems of the guest. Pure.

A file system may be mounted several times, for example by bind mounts. Each file system has one sample, labelled with its shortest
mountpoint. Two mounts belong to the same file system if their block device, type and disks are equal.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from agent.collectors.guest.base import MAX_SUBJECTS, MAX_TEXT, GuestCollector, TimedGuestReply, require_value
from agent.collectors.untrusted_json import list_of_objects_or_empty, object_or_empty, text_or_empty
from agent.model.family import FieldValues, Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.guest import GUEST_FILESYSTEM
from agent.model.record import sanitize

_read = FieldReader(GUEST_FILESYSTEM)

IGNORED_TYPES = frozenset(
    {
        *(
            "autofs",
            "cgroup",
            "cgroup2",
            "configfs",
            "debugfs",
            "devpts",
            "devtmpfs",
            "proc",
            "ramfs",
            "sysfs",
            "tmpfs",
        ),
        *("cdfs", "cramfs", "erofs", "iso9660", "overlay", "romfs", "squashfs", "udf"),
    }
)
"""Ignored types of file systems, in lower case: types without storage of their own, and read-only types, which are always full."""

_MAX_MOUNTS = 1024
"""Maximum number of mounts to read from a reply. A host of containers has hundreds of mounts."""
_MAX_DISKS = 8
"""Maximum number of disks below one file system."""
_MAX_DISKS_OF_GUEST = 1024
"""Maximum number of disks to read from a reply. Most file systems have one disk."""
_MAX_BYTES = 2**63 - 1


def _collect(exchanges: Sequence[TimedGuestReply]) -> Iterable[Sample]:
    mounts: list[FieldValues] = []
    unread = _MAX_DISKS_OF_GUEST
    for entry in list_of_objects_or_empty(require_value(exchanges[0], list), _MAX_MOUNTS):
        if (mount := _parse_mount(entry, min(_MAX_DISKS, unread))) is not None:
            mounts.append(mount)
            unread -= len(mount.get("disks", ()))
    shortest: dict[object, FieldValues] = {}
    for mount in sorted(mounts, key=lambda mount: len(mount["mountpoint"])):
        shortest.setdefault(mount["identity"], mount)
    for mount in list(shortest.values())[:MAX_SUBJECTS]:
        labels = tuple(sanitize(mount[name], MAX_TEXT) for name in ("mountpoint", "name", "type"))
        yield Sample(GUEST_FILESYSTEM, labels, _read(mount))


def _parse_mount(entry: dict[str, Any], max_disks: int) -> FieldValues | None:
    """Return the values of a mount, with at most `max_disks` disks.

    Return None if the mount's type is ignored, or if the mount's size is unknown or invalid.
    """
    kind, mountpoint, name = (text_or_empty(entry.get(key)) for key in ("type", "mountpoint", "name"))
    total, used = entry.get("total-bytes"), entry.get("used-bytes")
    if not mountpoint or not name or kind.lower() in IGNORED_TYPES:
        return None
    if type(total) is not int or type(used) is not int or not 0 <= used <= total <= _MAX_BYTES or not total:
        return None
    disks = [_parse_disk(disk) for disk in list_of_objects_or_empty(entry.get("disk"), max_disks)]
    mount: FieldValues = {
        "mountpoint": mountpoint,
        "name": name,
        "type": kind or "unknown",
        "identity": (name, kind, repr(disks)),
    }
    mount |= {"total-bytes": total, "used-bytes": used, "available-bytes": total - used}
    privileged = entry.get("total-bytes-privileged")
    if type(privileged) is int and total <= privileged <= _MAX_BYTES:
        mount["total-bytes-privileged"] = privileged
    return mount | ({"disks": disks} if disks else {})


def _parse_disk(disk: dict[str, Any]) -> FieldValues:
    """Return the device, serial number, bus and PCI address of a disk below a file system."""
    texts = {"device": disk.get("dev"), "serial": disk.get("serial"), "bus": disk.get("bus-type")}
    pci = object_or_empty(disk.get("pci-controller"))
    address = [
        n for key in ("domain", "bus", "slot", "function") if type(n := pci.get(key)) is int and 0 <= n < 1 << 16
    ]
    values: FieldValues = {name: sanitize(text, MAX_TEXT) for name, text in texts.items() if isinstance(text, str)}
    if len(address) == 4:
        values["pci_address"] = "{:04x}:{:02x}:{:02x}.{:x}".format(*address)
    return values


COLLECTOR = GuestCollector("filesystems", (GUEST_FILESYSTEM,), ("guest-get-fsinfo",), _collect)
