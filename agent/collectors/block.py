"""I/O statistics of each disk: the only command that a quiet VM receives at every poll.

QEMU counts in the block backend. In `parent` (the storage under the top node) and `backing`, only the highest write offset is real;
the other counters are constant zero and are not read.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from agent.collectors.base import Collector, Replies, require_type
from agent.collectors.block_graph import stable_name
from agent.collectors.untrusted import as_list_of_objects, as_object, as_text
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK, BLOCK_BACKING, BLOCK_TIMED
from agent.model.reader import Reader
from agent.qmp.commands import Command

_read_disk = Reader(BLOCK)
_read_backing = Reader(BLOCK_BACKING)
_read_timed = Reader(BLOCK_TIMED)

_HISTOGRAMS = {f"{op}_latency_histogram": f"{op}_total_time_ns" for op in ("rd", "wr", "zone_append", "flush")}
"""Latency histograms, each with the total time that is its sum."""

_MAX_INTERVALS = 16

_MAX_DEPTH = 64
"""Longest backing chain reported. libvirt permits 200 layers, which would take too many series."""

_MAX_LAYERS = 16


def _collect(replies: Replies) -> Iterable[Sample]:
    for name, disk in disks(replies[0]):
        stats, storage = as_object(disk.get("stats")), chain(disk)[-1]
        changed = {"parent": storage} if storage is not disk.get("parent") else {}
        if not _HISTOGRAMS.keys().isdisjoint(stats):
            changed["stats"] = stats | _with_sums(stats)
        yield Sample(BLOCK, (name,), _read_disk(disk | changed if changed else disk))
        for timed in as_list_of_objects(stats.get("timed_stats"), _MAX_INTERVALS):
            if type(seconds := timed.get("interval_length")) is int:
                yield Sample(BLOCK_TIMED, (name, f"{seconds}s"), _read_timed(timed))
        for depth, layer in enumerate(backings(disk), 1):
            yield Sample(BLOCK_BACKING, (name, str(depth)), _read_backing(layer))


def _with_sums(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Return the histograms of the reply, each with its sum."""
    return {
        key: stats[key] | {"sum": stats.get(time)}
        for key, time in _HISTOGRAMS.items()
        if isinstance(stats.get(key), dict)
    }


def chain(disk: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a disk's layers from its top node to its storage: filters, format, protocol."""
    layers = [disk]
    while len(layers) < _MAX_LAYERS and isinstance(below := layers[-1].get("parent"), dict):
        layers.append(below)
    return layers


def backings(disk: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the layers of a disk's backing chain from the top, without filters."""
    layer = _below_filters(disk)
    for _ in range(_MAX_DEPTH):
        backing = layer.get("backing")
        if not isinstance(backing, dict):
            return
        layer = _below_filters(backing)
        yield layer


def _below_filters(layer: dict[str, Any]) -> dict[str, Any]:
    """Return the first node that is not a filter. QEMU reports the node under a filter as both `parent` and `backing` (QEMU 5.2)."""
    for _ in range(_MAX_LAYERS):
        below, backing = layer.get("parent"), layer.get("backing")
        if not isinstance(below, dict) or not isinstance(backing, dict):
            break
        if not (name := as_text(below.get("node-name"))) or name != backing.get("node-name"):
            break
        layer = below
    return layer


def count_repeated_images(reply: Any) -> int:
    """Return how many images query-named-block-nodes lists without `flat`, from the reply to query-blockstats.

    The reply repeats for each image of a chain all images below it. Chains are counted up to `_MAX_DEPTH`.
    """
    layers = (1 + sum(1 for _ in backings(disk)) for disk in as_list_of_objects(reply))
    return sum(count * (count + 1) // 2 for count in layers)


def disks(reply: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each disk of a reply with its stable name; the first one if several have the same name.

    Raises:
        QmpError: the reply is an error.
        UnexpectedReplyError: the reply is not a list.
    """
    seen: set[str] = set()
    for disk in as_list_of_objects(require_type(reply, list)):
        name = stable_name(disk)
        if name and name not in seen:
            seen.add(name)
            yield name, disk


def _topology(samples: Sequence[Sample]) -> object:
    """Return the nodes of each disk: a snapshot or a mirror's pivot changes them without an event."""
    return {s.subject: (s.values.get("node"), s.values.get("storage_node")) for s in samples if s.family is BLOCK}


COLLECTOR = Collector(
    "block",
    (BLOCK, BLOCK_BACKING, BLOCK_TIMED),
    lambda _facts: (Command("query-blockstats"),),
    _collect,
    next_poll_delay=lambda _samples, _facts, intervals: intervals.poll,
    topology=_topology,
    invalidates=("nodes", "drives"),
)
