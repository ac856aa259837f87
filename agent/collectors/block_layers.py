"""Layers of each disk, such as its image and backing images: virtual size, allocated size, path and write threshold.

The layers are polled rarely, because QEMU accesses the storage for these commands. If the storage hangs, the guest freezes
(block/qapi.c, 7.2 to 11.1).
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import orjson

from agent.collectors.base import Collector, Replies, VmFacts, require_type
from agent.collectors.block import backing_layers, named_disks_in_reply, nodes_from_top_to_storage
from agent.collectors.disk_names import FILTERS, DiskNames
from agent.collectors.untrusted_json import list_of_objects_or_empty, object_or_empty, text_or_empty
from agent.model.family import FieldValues, Sample
from agent.model.field_reader import MAX_DETAIL_BYTES, FieldReader
from agent.model.metrics.block_layers import BLOCK_BITMAP, BLOCK_LAYER, BLOCK_NAMES
from agent.model.record import sanitize
from agent.qmp.commands import Command
from agent.qmp.errors import UnexpectedReplyTypeError

_read = FieldReader(BLOCK_LAYER)
_read_bitmap = FieldReader(BLOCK_BITMAP)
_read_names = FieldReader(BLOCK_NAMES)

_QUERY_STATS = Command("query-blockstats")

_MAX_IMAGES_WITHOUT_FLAT = 1000
"""Maximum number of images in a reply without `flat`. A backing chain of 45 layers exceeds this maximum.

The guest is stopped while QEMU reads the state of each image. A chain of 215 layers counts as 23,220 images and takes 22 s (measured with
QEMU 7.2 on a busy host).
"""

_CHAINS_TOO_LONG = (
    "the backing chains are too long: QEMU before 5.0 stops the guest for seconds to list them; merge layers"
)

_MAX_BITMAPS = 64
_MAX_SNAPSHOTS = 32
_MAX_TEXT = 96

NodesByName = Mapping[str, Mapping[str, Any]]
"""Block nodes by name, as in the reply to query-named-block-nodes."""


def _commands(facts: VmFacts) -> tuple[Command, ...]:
    if facts.images_listed_without_flat > _MAX_IMAGES_WITHOUT_FLAT:
        return (_QUERY_STATS,)
    # With `flat` (QEMU 5.0), QEMU lists no backing chain for each node.
    return (
        Command("query-named-block-nodes", {"flat": True} if has_flat_argument(facts.version) else None),
        _QUERY_STATS,
    )


def has_flat_argument(version: tuple[int, int]) -> bool:
    """Return whether query-named-block-nodes has the argument `flat` in this major and minor version of QEMU; True if it is unknown."""
    return version >= (5, 0) or version == (0, 0)


def _collect(replies: Replies) -> Iterable[Sample]:
    listed = require_type(replies[0], list)
    if len(replies) == 1:
        raise UnexpectedReplyTypeError(_CHAINS_TOO_LONG)
    nodes = {name: node for node in list_of_objects_or_empty(listed) if (name := text_or_empty(node.get("node-name")))}
    for device, disk in named_disks_in_reply(replies[1]):
        for layer, name in _layers_of_disk(nodes, disk):
            if name in nodes:
                yield Sample(BLOCK_LAYER, (device, layer), _read(_add_image_details(nodes[name])))
                yield from _bitmap_samples(device, layer, nodes[name])
    names = DiskNames.from_replies(replies[1], replies[0]).unshared_names_by_disk()
    for device, _ in named_disks_in_reply(replies[1]):
        if device in names:
            yield Sample(BLOCK_NAMES, (device,), _read_names({"names": _truncate_names(names[device])}))


def _truncate_names(names: list[str]) -> list[str]:
    """Return as many of the names as fit into one field of a record."""
    ends = accumulate(len(orjson.dumps(name)) + 1 for name in names)
    return [name for name, end in zip(names, ends, strict=True) if end < MAX_DETAIL_BYTES]


def _add_image_details(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the node with its internal snapshots and the details of its encryption, if its format has them."""
    image = object_or_empty(node.get("image"))
    details = _encryption_details(object_or_empty(image.get("format-specific")))
    fields = {**node, "encryption_details": details} if details else node
    if image.get("format") != "qcow2":
        return fields
    snapshots = image.get("snapshots", [])
    if not isinstance(snapshots, list):
        return fields
    last = [_snapshot_fields(snapshot) for snapshot in list_of_objects_or_empty(snapshots[-_MAX_SNAPSHOTS:])]
    return {**fields, "snapshots": len(snapshots), **({"snapshot_list": last} if last else {})}


def _snapshot_fields(snapshot: Mapping[str, Any]) -> FieldValues:
    numbers = {"created_timestamp_seconds": snapshot.get("date-sec"), "vm_state_bytes": snapshot.get("vm-state-size")}
    texts = {key: sanitize(text_or_empty(snapshot.get(key)), _MAX_TEXT) for key in ("id", "name")}
    return texts | {key: number for key, number in numbers.items() if type(number) is int and number >= 0}


def _encryption_details(format_specific: Mapping[str, Any]) -> FieldValues:
    """Return the details of an image's LUKS encryption. A qcow2 image has these details in the object `encrypt`."""
    data = object_or_empty(format_specific.get("data"))
    luks = data if format_specific.get("type") == "luks" else object_or_empty(data.get("encrypt"))
    keys = {
        "cipher": "cipher-alg",
        "mode": "cipher-mode",
        "iv_generator": "ivgen-alg",
        "iv_hash": "ivgen-hash-alg",
        "hash": "hash-alg",
    }
    details: FieldValues = {
        name: sanitize(text, _MAX_TEXT) for name, key in keys.items() if (text := text_or_empty(luks.get(key)))
    }
    if details:
        details["active_slots"] = sum(
            slot.get("active") is True for slot in list_of_objects_or_empty(luks.get("slots"))
        )
    return details


def _bitmap_samples(device: str, layer: str, node: Mapping[str, Any]) -> Iterator[Sample]:
    """Yield a sample for each named dirty bitmap of a layer. Bitmaps without a name belong to jobs and are omitted."""
    for bitmap in list_of_objects_or_empty(node.get("dirty-bitmaps"), _MAX_BITMAPS):
        if name := text_or_empty(bitmap.get("name")):
            yield Sample(BLOCK_BITMAP, (device, layer, sanitize(name)), _read_bitmap(bitmap))


def _layers_of_disk(nodes: NodesByName, disk: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the layers of a disk, `format`, `storage` and `backing-1` to `backing-N`, each with its node name. Omit filter nodes."""
    names = [name for node in nodes_from_top_to_storage(disk) if isinstance(name := node.get("node-name"), str)]
    without_filters = [name for name in names if str(nodes.get(name, {}).get("drv")) not in FILTERS]
    if without_filters:
        yield "format", without_filters[0]
        yield "storage", without_filters[-1]
    for depth, layer in enumerate(backing_layers(disk), 1):
        if isinstance(name := layer.get("node-name"), str):
            yield f"backing-{depth}", name


COLLECTOR = Collector("nodes", (BLOCK_LAYER, BLOCK_BITMAP, BLOCK_NAMES), _commands, _collect, accesses_storage=True)
