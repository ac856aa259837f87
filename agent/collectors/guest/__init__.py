"""Collectors of the guest agent. Each file has one collector: its command, and a pure function from the reply to samples.

Start at `base`, which defines the class of a collector, and at `load`, a short collector.

How to add a collector: write its file, write its family in agent/model/metrics/guest.py, and add the collector to `GUEST_COLLECTORS`.
Permit its command in agent/qga/commands.py, and define its interval in agent/guest/config.py.
"""

from agent.collectors.guest import clock, cpu, disks, filesystems, freeze, load, network, operating_system, users
from agent.collectors.guest.base import GuestCollector, TimedGuestReply

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

__all__ = ["GUEST_COLLECTORS", "GuestCollector", "TimedGuestReply"]
