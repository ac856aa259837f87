"""Disks as their devices have them: throttle limits, trays, I/O status.

Asked as rarely as the layers are, and for the same reason: query-block looks at the storage too.
"""

from collections.abc import Iterable

from agent.catalogue.metrics.block import BLOCK_DEVICE
from agent.catalogue.model import Reader, Sample
from agent.collectors.base import Answers, Collector, expect
from agent.collectors.block import stable_name
from agent.collectors.raw import objects
from agent.qmp.commands import Ask

_read = Reader(BLOCK_DEVICE)


def _collect(answers: Answers) -> Iterable[Sample]:
    seen: set[str] = set()
    for disk in objects(expect(answers[0], list)):
        name = stable_name(disk)
        if name and name not in seen:
            seen.add(name)
            yield Sample(BLOCK_DEVICE, (name,), _read(disk))


COLLECTOR = Collector("drives", (BLOCK_DEVICE,), lambda _facts: (Ask("query-block"),), _collect)
