"""Collectors of the guest agent. Each file has one collector: its command, and a pure function from the reply to samples.

Start at `base`, which defines such a collector, and at `load`, a short one.

To add a collector, write its file and its family in agent/model/metrics/guest.py, and add the collector to `GUEST_COLLECTORS`. The list in
agent/qga/commands.py has to permit its command, and agent/guest/config.py has to define its interval.
"""

from agent.collectors.guest import clock, cpu, disks, filesystems, freeze, load, network, operating_system, users
from agent.collectors.guest.base import CommandExchange, GuestCollector

GUEST_COLLECTORS: tuple[GuestCollector, ...] = (
    freeze.COLLECTOR,  # runs first, because the others run only if the file systems are not frozen
    filesystems.COLLECTOR,
    load.COLLECTOR,
    cpu.COLLECTOR,
    disks.COLLECTOR,
    operating_system.COLLECTOR,
    network.COLLECTOR,
    users.COLLECTOR,
    clock.COLLECTOR,
)

__all__ = ["GUEST_COLLECTORS", "CommandExchange", "GuestCollector"]
