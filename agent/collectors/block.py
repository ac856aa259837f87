"""What each disk did: the one question that a quiet VM is asked at every poll.

Counters live in QEMU's block backend. In `parent` (the storage under the top node) and `backing` only the highest write offset is
real; their other counters are constant zero and are not read.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from agent.catalogue.events import device_name
from agent.catalogue.metrics import BLOCK, BLOCK_BACKING
from agent.catalogue.model import Reader, Sample
from agent.collectors.base import Answers, Collector, expect
from agent.qmp.commands import Ask
from agent.record import clean

_read_disk = Reader(BLOCK)
_read_backing = Reader(BLOCK_BACKING)

_MAX_DEPTH = 64
"""Longest backing chain told; libvirt allows 200 layers, but no one has a use for more series than these."""


def _collect(answers: Answers) -> Iterable[Sample]:
    return _samples(expect(answers[0], list))


def _samples(disks: list[Any]) -> Iterator[Sample]:
    seen: set[str] = set()
    for disk in disks:
        name = stable_name(disk) if isinstance(disk, dict) else ""
        if not name or name in seen:
            continue
        seen.add(name)
        yield Sample(BLOCK, (name,), _read_disk(disk))
        layer, depth = disk.get("backing"), 1
        while isinstance(layer, dict) and depth <= _MAX_DEPTH:
            yield Sample(BLOCK_BACKING, (name, str(depth)), _read_backing(layer))
            layer, depth = layer.get("backing"), depth + 1


def stable_name(disk: dict[str, Any]) -> str:
    """Return a disk's name that outlives snapshots and mirrors: its device's id, else its backend's name, else its node's."""
    for key in ("qdev", "device", "node-name"):
        name = disk.get(key)
        if isinstance(name, str) and name:
            return clean(device_name(name))
    return ""


COLLECTOR = Collector(
    "block",
    (BLOCK, BLOCK_BACKING),
    lambda _facts: (Ask("query-blockstats"),),
    _collect,
    again=lambda _samples, _facts, intervals: intervals.poll,
)
