"""I/O statistics of each disk, from query-blockstats. While no event arrives, most polls send no other command.

QEMU counts requests in the block backend. In the `stats` of `parent` (the storage under the top node) and of `backing`, QEMU sets only the
highest write offset. The other counters in these `stats` are always 0, and the agent does not read them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from agent.collectors.base import Collector, Replies, require_type
from agent.collectors.disk_names import stable_disk_name
from agent.collectors.untrusted_json import list_of_objects_or_empty, object_or_empty, text_or_empty
from agent.model.family import Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.block import BLOCK, BLOCK_BACKING, BLOCK_TIMED
from agent.qmp.commands import Command

_read_disk = FieldReader(BLOCK)
_read_backing = FieldReader(BLOCK_BACKING)
_read_timed = FieldReader(BLOCK_TIMED)

_HISTOGRAMS = {
    f"{op}_latency_histogram": (f"{op}_total_time_ns", f"{op}_operations", f"failed_{op}_operations")
    for op in ("rd", "wr", "zone_append", "flush")
}
"""The counters that belong to each latency histogram, by its name: total time, completed operations and failed operations."""

_COMMANDS = (Command("query-blockstats"),)

_MAX_INTERVALS = 16
"""Maximum number of `timed_stats` intervals of a disk."""

_MAX_BACKING_LAYERS = 64
"""Maximum number of reported layers of a backing chain. libvirt permits 200 layers, which would be too many series."""

_MAX_NODES = 16
"""Maximum number of nodes between a disk's top node and its storage."""


def _collect(replies: Replies) -> Iterable[Sample]:
    for name, disk in named_disks_in_reply(replies[0]):
        stats, storage = object_or_empty(disk.get("stats")), nodes_from_top_to_storage(disk)[-1]
        changed = {"parent": storage} if storage is not disk.get("parent") else {}
        if not stats.keys().isdisjoint(_HISTOGRAMS):
            changed["stats"] = stats | _histograms_with_sums(stats)
        yield Sample(BLOCK, (name,), _read_disk(disk | changed if changed else disk))
        if stats.get("timed_stats"):
            for timed in list_of_objects_or_empty(stats["timed_stats"], _MAX_INTERVALS):
                if type(seconds := timed.get("interval_length")) is int:
                    yield Sample(BLOCK_TIMED, (name, f"{seconds}s"), _read_timed(timed))
        if "backing" in disk:
            for depth, layer in enumerate(backing_layers(disk), 1):
                yield Sample(BLOCK_BACKING, (name, str(depth)), _read_backing(layer))


def _histograms_with_sums(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Return the histograms in a disk's statistics, each with its sum if the sum is known."""
    return {
        key: stats[key] | {"sum": _sum_of_histogram(stats, key)}
        for key in _HISTOGRAMS
        if isinstance(stats.get(key), dict)
    }


def _sum_of_histogram(stats: Mapping[str, Any], key: str) -> Any:
    """Return QEMU's total time as the sum of a histogram. Return None if the total and the histogram count different operations.

    A histogram that was set after the first operations counts fewer operations than QEMU's total. If `account_failed` is false, QEMU's
    total does not include failed operations.
    """
    total, completed, failed = (stats.get(name) for name in _HISTOGRAMS[key])
    counts = stats[key].get("bins")
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        return None
    if type(completed) is not int or type(failed) is not int:
        return None
    has_all = sum(counts) >= completed + failed  # QEMU reads the counts later, and requests may end in between
    return total if has_all and (failed == 0 or stats.get("account_failed") is True) else None


def nodes_from_top_to_storage(disk: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a disk's nodes from the top node to the storage: filters, the format and the protocol."""
    nodes = [disk]
    while len(nodes) < _MAX_NODES and isinstance(below := nodes[-1].get("parent"), dict):
        nodes.append(below)
    return nodes


def backing_layers(disk: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the backing images of a disk, from the top to the base. Filter nodes are omitted."""
    layer = _skip_filters(disk)
    for _ in range(_MAX_BACKING_LAYERS):
        backing = layer.get("backing")
        if not isinstance(backing, dict):
            return
        layer = _skip_filters(backing)
        yield layer


def _skip_filters(node: dict[str, Any]) -> dict[str, Any]:
    """Return the first node that is not a filter: the node itself, or a node below it.

    QEMU 5.2 reports the node below a filter as both `parent` and `backing`.
    """
    for _ in range(_MAX_NODES):
        below, backing = node.get("parent"), node.get("backing")
        if not isinstance(below, dict) or not isinstance(backing, dict):
            break
        if not (name := text_or_empty(below.get("node-name"))) or name != backing.get("node-name"):
            break
        node = below
    return node


def predict_images_listed_without_flat(reply: Any) -> int:
    """Return how many images query-named-block-nodes would list without `flat`.

    Without `flat`, QEMU lists each image of a backing chain together with all images below it. At most `_MAX_BACKING_LAYERS` images of a
    chain count.

    Args:
        reply: the reply to query-blockstats.
    """
    layers = (1 + sum(1 for _ in backing_layers(disk)) for disk in list_of_objects_or_empty(reply))
    return sum(count * (count + 1) // 2 for count in layers)


def named_disks_in_reply(reply: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the stable name and the data of each disk. If several disks have the same name, yield only the first of them.

    Args:
        reply: the reply to query-blockstats or query-block.

    Raises:
        QmpError: the reply is an error.
        UnexpectedReplyTypeError: the reply is not a list.
    """
    seen: set[str] = set()
    for disk in list_of_objects_or_empty(require_type(reply, list)):
        name = stable_disk_name(disk)
        if name and name not in seen:
            seen.add(name)
            yield name, disk


def _topology(samples: Sequence[Sample]) -> object:
    """Return the nodes of each disk. A snapshot or a completed mirror changes the nodes without an event."""
    return {
        labels: (values.get("node"), values.get("storage_node"))
        for family, labels, values in samples
        if family is BLOCK
    }


COLLECTOR = Collector(
    "block",
    (BLOCK, BLOCK_BACKING, BLOCK_TIMED),
    lambda _facts: _COMMANDS,
    _collect,
    next_poll_delay=lambda _samples, _facts, intervals: intervals.poll,
    topology=_topology,
    invalidates=("nodes", "drives"),
)
