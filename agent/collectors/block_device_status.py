"""State of each disk's device: throttle limits, tray and I/O status.

The state is polled rarely, like the layers (block_layers.py), because QEMU accesses the storage for query-block.
"""

from collections.abc import Iterable

from agent.collectors.base import Collector, Replies
from agent.collectors.block import named_disks_in_reply
from agent.model.family import Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.block import BLOCK_DEVICE
from agent.qmp.commands import Command

_read = FieldReader(BLOCK_DEVICE)


def _collect(replies: Replies) -> Iterable[Sample]:
    for name, disk in named_disks_in_reply(replies[0]):
        yield Sample(BLOCK_DEVICE, (name,), _read(disk))


COLLECTOR = Collector(
    "drives", (BLOCK_DEVICE,), lambda _facts: (Command("query-block"),), _collect, accesses_storage=True
)
