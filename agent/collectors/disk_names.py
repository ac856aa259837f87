"""Finds a guest's disk by any of the names that QEMU uses in events. Pure.

In an event, QEMU names a disk by the QOM path of its device, by its block backend or by its top block node. The top node can be a filter
that a mirror, a commit or a backup has inserted. query-block and query-blockstats omit this filter (QEMU 2.9 to 11.1).
query-named-block-nodes lists the filter. Since QEMU 10.1, the filter's entry has the filter's children. Before QEMU 10.1, the entry has
only the file name of the node below the filter.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from agent.collectors.untrusted_json import list_of_objects_or_empty, text_or_empty
from agent.model.event_definition import device_name_from_qom_path
from agent.model.record import sanitize

FILTERS = frozenset(
    {
        "blkdebug",
        "blklogwrites",
        "blkreplay",
        "blkverify",
        "compress",
        "copy-before-write",
        "copy-on-read",
        "preallocate",
        "snapshot-access",
    }
    | {"throttle", "mirror_top", "commit_top", "backup-top"}
)
"""Filter drivers, which store no data (QEMU's BlockDriver.is_filter, 2.6 to 11.1)."""

_MAX_CHAIN_LENGTH = 256
"""Maximum length of a backing chain; libvirt permits 200 layers."""
_OTHER_DATA_CHILDREN = frozenset({"target"})
"""Roles of child nodes that do not contain the disk's data, such as the target of a backup's filter."""


_MAX_CACHED_NAME = 255
"""Maximum length of a cached device name in characters, because a hostile QEMU can send names of megabytes."""


def stable_disk_name(disk: Mapping[str, Any]) -> str:
    """Return the disk's stable name, which snapshots and mirrors do not change.

    The stable name is the device id; without a device id, the name of the block backend; without both, the node name.

    Args:
        disk: an entry of the reply to query-blockstats or query-block.

    Returns:
        The name; empty if the disk has none of these names.
    """
    for key in ("qdev", "device", "node-name"):
        name = disk.get(key)
        if isinstance(name, str) and name:
            return (
                _short_device_name(name) if len(name) <= _MAX_CACHED_NAME else sanitize(device_name_from_qom_path(name))
            )
    return ""


@lru_cache(maxsize=4096)
def _short_device_name(name: str) -> str:
    """Return the sanitized device name. The result is cached, because every poll of every disk needs the name."""
    return sanitize(device_name_from_qom_path(name))


class DiskNames:
    """All names of one VM's disks at one time, without the names that jobs and snapshots add later.

    Create an object with `from_replies`.
    """

    def __init__(self) -> None:
        self._disks_by_name: dict[str, set[str]] = {}  # for each name, the stable names of its disks

    @classmethod
    def from_replies(cls, stats: Any, nodes: Any) -> "DiskNames":
        """Collect the names from QEMU's replies. Each reply may also be an error or None.

        Args:
            stats: the reply to query-blockstats, which has the stable names.
            nodes: the reply to query-named-block-nodes.
        """
        names = cls()
        for disk in list_of_objects_or_empty(stats):
            if name := stable_disk_name(disk):
                names._add_names(name, *_names_of_disk(disk))
        by_name = {
            name: node for node in list_of_objects_or_empty(nodes) if (name := text_or_empty(node.get("node-name")))
        }
        names._add_child_names(by_name)
        names._add_filter_names(by_name)
        return names

    def find_disk(self, *names: Any) -> str | None:
        """Return the stable name of the disk that has one of these names. The first name that belongs to exactly one disk counts.

        Args:
            names: QOM paths, device ids, block backends and node names. For an event, give its `qom-path`, `device` and `node-name`.
                Values that are not strings, unknown names and names of several disks are ignored.

        Returns:
            The stable name, or None if none of the names identifies one disk.
        """
        for name in names:
            if isinstance(name, str) and name:
                disks = self._disks_with_name(name) or self._disks_with_name(device_name_from_qom_path(name))
                if len(disks) == 1:
                    return next(iter(disks))
        return None

    def _disks_with_name(self, name: str) -> set[str]:
        return self._disks_by_name.get(sanitize(name), set())

    def unshared_names_by_disk(self) -> dict[str, list[str]]:
        """Return the other names of each disk, sorted, by the disk's stable name. Names that several disks share are omitted."""
        names: dict[str, list[str]] = {}
        for name, disks in sorted(self._disks_by_name.items()):
            if len(disks) == 1 and name not in disks:
                names.setdefault(next(iter(disks)), []).append(name)
        return names

    def _add_names(self, disk: str, *names: Any) -> None:
        for name in (disk, *names):
            if isinstance(name, str) and name:
                self._disks_by_name.setdefault(sanitize(name), set()).add(disk)

    def _add_child_names(self, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        """Add the names of the nodes below known nodes."""
        pending = [name for name in nodes if name in self._disks_by_name]
        seen = set(pending)
        while pending:
            name = pending.pop()
            for child in _child_nodes(nodes.get(name, {})):
                before = len(self._disks_by_name.get(child, ()))
                for disk in self._disks_by_name[name]:
                    self._add_names(disk, child)
                if child not in seen or len(self._disks_by_name[child]) > before:
                    seen.add(child)
                    pending.append(child)

    def _add_filter_names(self, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        """Add the names of the filters above known nodes. A filter can be above another filter."""
        disks_by_file: dict[str, set[str]] = {}
        for name, node in nodes.items():
            if name in self._disks_by_name and (file := text_or_empty(node.get("file"))):
                disks_by_file.setdefault(file, set()).update(self._disks_by_name[name])
        filters = {
            name: node
            for name, node in nodes.items()
            if name not in self._disks_by_name and text_or_empty(node.get("drv")) in FILTERS
        }
        has_located = True
        while filters and has_located:
            has_located = False
            for name, node in list(filters.items()):
                if "children" in node:
                    disks = {disk for child in _child_nodes(node) for disk in self._disks_by_name.get(child, ())}
                else:
                    disks = disks_by_file.get(text_or_empty(node.get("file")), set())
                if disks:
                    for disk in disks:
                        self._add_names(disk, name)
                    del filters[name]
                    has_located = True


def _child_nodes(node: Mapping[str, Any]) -> Iterator[str]:
    for child in list_of_objects_or_empty(node.get("children")):
        name = text_or_empty(child.get("node-name"))
        if name and text_or_empty(child.get("child")) not in _OTHER_DATA_CHILDREN:
            yield sanitize(name)


def _names_of_disk(disk: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the names of a disk in the reply to query-blockstats, and the names of all nodes below it."""
    yield disk.get("qdev")
    yield disk.get("device")
    pending, remaining_nodes = [disk], _MAX_CHAIN_LENGTH * 2
    while pending and remaining_nodes:
        node = pending.pop()
        remaining_nodes -= 1
        yield node.get("node-name")
        pending += [below for key in ("parent", "backing") if isinstance(below := node.get(key), dict)]
