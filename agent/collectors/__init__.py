"""One file per thing polled: the questions, and a pure function from QEMU's replies to samples.

To add one: write its file, its family in catalogue/metrics/ and its question's row in qmp/queries.py, and name it in `ALL`. The
schedule, the deadline, the isolation of its failures and its own metrics are given by the framework (agent/vm).
"""

from agent.collectors import (
    balloon,
    block,
    dirty,
    displays,
    drives,
    dump,
    guest_memory,
    hv_balloon,
    inventory,
    jobs,
    kvm,
    memory,
    migration,
    net,
    nodes,
    process,
    runstate,
    threads,
)
from agent.collectors.base import Collector, Facts, Intervals

ALL: tuple[Collector, ...] = (
    runstate.COLLECTOR,
    block.COLLECTOR,
    nodes.COLLECTOR,
    drives.COLLECTOR,
    jobs.COLLECTOR,
    migration.COLLECTOR,
    balloon.COLLECTOR,
    guest_memory.COLLECTOR,
    hv_balloon.COLLECTOR,
    memory.COLLECTOR,
    dirty.COLLECTOR,
    dump.COLLECTOR,
    inventory.COLLECTOR,
    inventory.TPMS,
    displays.VNC_DISPLAYS,
    displays.SPICE_DISPLAY,
    kvm.COLLECTOR,
    threads.VCPUS,
    threads.IOTHREADS,
    process.PROCESSES,
    process.CGROUPS,
    net.COLLECTOR,
)

ALL_FEATURES = Facts(balloon="/machine/peripheral/balloon0", guest_stats_seconds=5, hv_balloon=True)
"""Of a VM that has all that QEMU is asked for."""

__all__ = ["ALL", "ALL_FEATURES", "Collector", "Facts", "Intervals"]
