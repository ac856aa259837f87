"""Lookup of a VM's virtio disks whose queues may be queried. A vhost disk is never returned."""

from collections.abc import Awaitable, Callable, Sequence

from agent.collectors.base import VirtioDisk, VmFacts
from agent.collectors.virtio_queues import disk_property_commands, parse_virtio_disk, virtio_disk_qom_paths
from agent.qmp.client import CommandResult
from agent.qmp.commands import VIRTIO_QUEUE_STATUS, Command, OptInQemuChange
from agent.qmp.errors import QmpError
from agent.session.shared_types import SessionContext

Execute = Callable[[Sequence[Command]], Awaitable[list[CommandResult]]]


async def find_disks_with_queryable_queues(
    execute: Execute, context: SessionContext, facts: VmFacts
) -> tuple[VirtioDisk, ...]:
    """Return the VM's virtio disks that QEMU itself serves. Return no disk if the config does not allow queries of queues.

    Also return no disk on a connection without events, because the agent would not notice that another device has replaced a disk.

    Args:
        execute: executes commands on QEMU.
        context: state that all sessions share.
        facts: the facts about the VM that are known already.

    Raises:
        QmpError: the connection ended.
    """
    is_allowed = OptInQemuChange.VIRTIO_QUEUES in context.settings.changes
    if not is_allowed or not facts.receives_events or not facts.has_command(VIRTIO_QUEUE_STATUS):
        return ()
    (stats,) = await execute((Command("query-blockstats"),))
    if isinstance(stats, QmpError) or not isinstance(stats, list):
        return ()
    disks = []
    for name, path in virtio_disk_qom_paths(stats):
        disk = parse_virtio_disk(name, path, *(await execute(disk_property_commands(path))))
        if disk is not None:
            disks.append(disk)
    return tuple(disks)
