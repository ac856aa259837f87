"""One file per thing polled: the questions, and a pure function from QEMU's answers to samples.

To add one: write its file with a `COLLECTOR`, add its fields to catalogue/metrics/, and name it in `ALL`. The schedule, the
deadline, the isolation of its failures and its own metrics are given by the framework (agent/vm).
"""

from agent.collectors import balloon, block, guest_memory, jobs, migration, nodes, runstate
from agent.collectors.base import Collector, Facts, Intervals

ALL: tuple[Collector, ...] = (
    runstate.COLLECTOR,
    block.COLLECTOR,
    nodes.COLLECTOR,
    jobs.COLLECTOR,
    migration.COLLECTOR,
    balloon.COLLECTOR,
    guest_memory.COLLECTOR,
)

__all__ = ["ALL", "Collector", "Facts", "Intervals"]
