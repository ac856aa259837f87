"""Names of disks: finds the stable name of the guest's disk from any name that QEMU uses in events. Pure.

QEMU names a disk in an event by its QOM path, its block backend or the node at the top of its graph. That node can be a filter that a
mirror, a commit or a backup inserted, and query-block and query-blockstats leave such an implicit filter out (QEMU 2.9 to 11.1).
query-named-block-nodes lists it: since QEMU 10.1 with its children, in older versions with the file name of the node below.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from agent.collectors.untrusted import as_list_of_objects, as_object, as_text
from agent.model.events import device_name
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK, BLOCK_BACKING, BLOCK_DEVICE
from agent.model.metrics.block_layers import BLOCK_LAYER, BLOCK_NAMES
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

_MAX_DEPTH = 256
"""Longest backing chain; libvirt permits 200 layers."""
_SIDE_CHILDREN = frozenset({"target"})
"""Children that hold other data than the node: the target of a backup's filter."""


def stable_name(disk: Mapping[str, Any]) -> str:
    """Return the name that a disk keeps through snapshots and mirrors: the device id, else the backend's name, else the node name."""
    for key in ("qdev", "device", "node-name"):
        name = disk.get(key)
        if isinstance(name, str) and name:
            return sanitize(device_name(name))
    return ""


class BlockGraph:
    """The names of the disks of one VM.

    Build it with `from_replies` from QEMU's replies, or with `from_samples` from samples. It is correct for the moment of the replies: a
    job or a snapshot that starts later adds nodes.
    """

    def __init__(self) -> None:
        self._devices: dict[str, set[str]] = {}
        """By name in QEMU, the stable names of the disks that it belongs to."""

    @classmethod
    def from_replies(cls, stats: Any, nodes: Any, block: Any = None) -> "BlockGraph":
        """Return the graph of three replies; each can be an error or missing.

        Args:
            stats: the reply to query-blockstats, which defines the stable names.
            nodes: the reply to query-named-block-nodes.
            block: the reply to query-block.
        """
        graph = cls()
        for disk in as_list_of_objects(stats):
            if name := stable_name(disk):
                graph._add(name, *_names_of(disk))
        for disk in as_list_of_objects(block):
            node = as_object(disk.get("inserted")).get("node-name")
            names = (disk.get("qdev"), disk.get("device"), node)
            if name := graph.device(*names) or stable_name({**disk, "node-name": node}):
                graph._add(name, *names)
        by_name = {name: node for node in as_list_of_objects(nodes) if (name := as_text(node.get("node-name")))}
        graph._add_children(by_name)
        graph._add_filters(by_name)
        return graph

    @classmethod
    def from_samples(cls, samples: Iterable[Sample]) -> "BlockGraph":
        """Return the graph of samples of the families block, block_backing, block_layer, block_device and block_names."""
        graph = cls()
        for sample in samples:
            if sample.family in (BLOCK, BLOCK_BACKING, BLOCK_LAYER, BLOCK_DEVICE, BLOCK_NAMES):
                names = [sample.values.get(key) for key in ("node", "storage_node", "backend", "qdev")]
                graph._add(sample.subject, *names, *sample.values.get("names", ()))
        return graph

    def device(self, *names: Any) -> str | None:
        """Return the stable name of the disk that the first known name belongs to.

        Args:
            names: QOM paths, device ids, block backends and node names, such as `qom-path`, `device` and `node-name` of an event, in this
                order. Values that are not strings, empty and unknown ones are skipped, and so are names that several disks share.

        Returns:
            The stable name, or None if none of the names identifies one disk.
        """
        for name in names:
            if isinstance(name, str) and name:
                devices = self._devices.get(sanitize(name)) or self._devices.get(sanitize(device_name(name)), set())
                if len(devices) == 1:
                    return next(iter(devices))
        return None

    def names(self) -> dict[str, list[str]]:
        """Return, by stable name, the other names that belong to this disk alone, sorted."""
        names: dict[str, list[str]] = {}
        for name, devices in sorted(self._devices.items()):
            if len(devices) == 1 and name not in devices:
                names.setdefault(next(iter(devices)), []).append(name)
        return names

    def _add(self, device: str, *names: Any) -> None:
        for name in (device, *names):
            if isinstance(name, str) and name:
                self._devices.setdefault(sanitize(name), set()).add(device)

    def _add_children(self, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        """Add the nodes below known nodes."""
        pending = [name for name in nodes if name in self._devices]
        seen = set(pending)
        while pending:
            name = pending.pop()
            for child in _children(nodes.get(name, {})):
                before = len(self._devices.get(child, ()))
                for device in self._devices[name]:
                    self._add(device, child)
                if child not in seen or len(self._devices[child]) > before:
                    seen.add(child)
                    pending.append(child)

    def _add_filters(self, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        """Add the filters above known nodes; a filter can be above another filter."""
        by_file: dict[str, set[str]] = {}
        for name, node in nodes.items():
            if name in self._devices and (file := as_text(node.get("file"))):
                by_file.setdefault(file, set()).update(self._devices[name])
        filters = {n: node for n, node in nodes.items() if n not in self._devices and node.get("drv") in FILTERS}
        found = True
        while filters and found:
            found = False
            for name, node in list(filters.items()):
                if "children" in node:
                    devices = {d for child in _children(node) for d in self._devices.get(child, ())}
                else:
                    devices = by_file.get(as_text(node.get("file")), set())
                if devices:
                    for device in devices:
                        self._add(device, name)
                    del filters[name]
                    found = True


def _children(node: Mapping[str, Any]) -> Iterator[str]:
    for child in as_list_of_objects(node.get("children")):
        name = as_text(child.get("node-name"))
        if name and child.get("child") not in _SIDE_CHILDREN:
            yield sanitize(name)


def _names_of(disk: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the names of a disk in query-blockstats: its own, and those of every node below."""
    yield disk.get("qdev")
    yield disk.get("device")
    pending, left = [disk], _MAX_DEPTH * 2
    while pending and left:
        layer = pending.pop()
        left -= 1
        yield layer.get("node-name")
        pending += [below for key in ("parent", "backing") if isinstance(below := layer.get(key), dict)]
