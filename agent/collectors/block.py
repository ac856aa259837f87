"""What each disk did: the one question that a quiet VM is asked at every poll.

Counters live in QEMU's block backend. In `parent` (the storage under the top node) and `backing` only the highest write offset is
real; their other counters are constant zero and are not read.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from agent.collectors.base import Collector, Replies, require_type
from agent.collectors.untrusted import as_list_of_objects, as_object
from agent.model.events import device_name
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK, BLOCK_BACKING, BLOCK_TIMED
from agent.model.reader import Reader
from agent.model.record import sanitize
from agent.qmp.commands import Command

_read_disk = Reader(BLOCK)
_read_backing = Reader(BLOCK_BACKING)
_read_timed = Reader(BLOCK_TIMED)

_HISTOGRAMS = {f"{op}_latency_histogram": f"{op}_total_time_ns" for op in ("rd", "wr", "zone_append", "flush")}
"""Latency histograms, and the times that are their sums."""

_MAX_INTERVALS = 16

_MAX_DEPTH = 64
"""Longest backing chain told; libvirt allows 200 layers, but no one has a use for more series than these."""

_MAX_LAYERS = 16


def _collect(replies: Replies) -> Iterable[Sample]:
    for name, disk in disks(replies[0]):
        stats, storage = as_object(disk.get("stats")), chain(disk)[-1]
        made = {"parent": storage} if storage is not disk.get("parent") else {}
        if not _HISTOGRAMS.keys().isdisjoint(stats):
            made["stats"] = stats | _with_sums(stats)
        yield Sample(BLOCK, (name,), _read_disk(disk | made if made else disk))
        for timed in as_list_of_objects(stats.get("timed_stats"), _MAX_INTERVALS):
            if type(seconds := timed.get("interval_length")) is int:
                yield Sample(BLOCK_TIMED, (name, f"{seconds}s"), _read_timed(timed))
        for depth, layer in enumerate(backings(disk), 1):
            yield Sample(BLOCK_BACKING, (name, str(depth)), _read_backing(layer))


def _with_sums(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Return the histograms that there are, each with its sum in it."""
    return {
        key: stats[key] | {"sum": stats.get(time)}
        for key, time in _HISTOGRAMS.items()
        if isinstance(stats.get(key), dict)
    }


def chain(disk: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a disk's layers from its top node down to its storage: filters, the format, the protocol."""
    layers = [disk]
    while len(layers) < _MAX_LAYERS and isinstance(below := layers[-1].get("parent"), dict):
        layers.append(below)
    return layers


def backings(disk: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the layers of a disk's backing chain, the nearest first."""
    layer = disk.get("backing")
    for _ in range(_MAX_DEPTH):
        if not isinstance(layer, dict):
            return
        yield layer
        layer = layer.get("backing")


def disks(answer: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each disk of an answer with its stable name; of several of one name the first.

    Raises:
        CommandError: QEMU refused.
        UnexpectedReplyError: it answered with something else than a list.
    """
    seen: set[str] = set()
    for disk in as_list_of_objects(require_type(answer, list)):
        name = stable_name(disk)
        if name and name not in seen:
            seen.add(name)
            yield name, disk


def stable_name(disk: dict[str, Any]) -> str:
    """Return a disk's name that outlives snapshots and mirrors: its device's id, else its backend's name, else its node's."""
    for key in ("qdev", "device", "node-name"):
        name = disk.get(key)
        if isinstance(name, str) and name:
            return sanitize(device_name(name))
    return ""


def _topology(samples: Sequence[Sample]) -> object:
    """Return which nodes each disk is made of: a snapshot or a mirror's pivot changes them, and QEMU tells nobody."""
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
