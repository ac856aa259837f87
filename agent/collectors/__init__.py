"""Collectors: each file has the commands of one poll, and a pure function that turns QEMU's replies into samples.

Start at `base`, which defines a collector, and at `balloon`, a short one. The package may import the types of agent.host, agent.model,
agent.qmp and agent.common, and does no I/O.

To add a collector, write its file, and write its family in agent/model/metrics/. Add its command to the table in agent/qmp/queries.py. Then
add the collector to `ALL_COLLECTORS`. The session (agent/session) provides the schedule, the deadline, the isolation of failures and the
collector's own metrics.
"""

from agent.collectors import (
    balloon,
    balloon_memory_stats,
    block,
    block_device_status,
    block_layers,
    device_inventory,
    dirty_rate,
    displays,
    dump,
    guest_agent_channel,
    host_interface_traffic,
    hv_balloon,
    jobs,
    kvm,
    memory_size_and_devices,
    migration,
    process_and_cgroup,
    runstate,
    threads,
    virtio_queues,
)
from agent.collectors.base import Collector, PollIntervals, VirtioDisk, VmFacts

ALL_COLLECTORS: tuple[Collector, ...] = (
    runstate.COLLECTOR,
    block.COLLECTOR,
    block_layers.COLLECTOR,
    block_device_status.COLLECTOR,
    virtio_queues.COLLECTOR,
    jobs.COLLECTOR,
    migration.COLLECTOR,
    balloon.COLLECTOR,
    balloon_memory_stats.COLLECTOR,
    hv_balloon.COLLECTOR,
    memory_size_and_devices.COLLECTOR,
    dirty_rate.COLLECTOR,
    dump.COLLECTOR,
    device_inventory.COLLECTOR,
    device_inventory.TPMS,
    guest_agent_channel.COLLECTOR,
    displays.VNC_DISPLAYS,
    displays.SPICE_DISPLAY,
    kvm.COLLECTOR,
    threads.VCPUS,
    threads.IOTHREADS,
    process_and_cgroup.PROCESSES,
    process_and_cgroup.CGROUPS,
    host_interface_traffic.COLLECTOR,
)

FACTS_WITH_ALL_FEATURES = VmFacts(
    balloon="/machine/peripheral/balloon0",
    guest_stats_seconds=5,
    hv_balloon=True,
    guest_agent_port="/machine/peripheral/channel0",
    virtio_disks=(VirtioDisk("disk0", "/machine/peripheral/disk0/virtio-backend", 1),),
)
"""Facts about an imaginary VM that has every feature. Tests and docs use these facts to list all commands of the collectors."""

__all__ = ["ALL_COLLECTORS", "FACTS_WITH_ALL_FEATURES", "Collector", "PollIntervals", "VmFacts"]
