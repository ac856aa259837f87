"""Requests in flight in the queues of virtio disks, which no other QMP command reports. The config has to allow this collector.

QEMU's command is unstable (`x-`). For a vhost device, the command stops the queue to read its state. So the agent queries only disks that
QEMU itself serves, with the QOM type `virtio-blk-device`. The agent queries all these disks of a VM if one disk completes no request, and
at each resync.
"""

from collections.abc import Iterable, Sequence

from agent.collectors.base import Collector, Replies, VirtioDisk, VmFacts, optional_reply
from agent.collectors.block import named_disks_in_reply
from agent.collectors.untrusted_json import text_or_empty
from agent.model.family import Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.block_stall import VIRTIO_QUEUE
from agent.qmp.commands import VIRTIO_BACKEND_SUFFIX, VIRTIO_QUEUE_STATUS, Command

MAX_DISKS = 16
"""Maximum number of disks of a VM to query."""
MAX_QUEUES = 16
"""Maximum number of queues of a disk to query. By default, QEMU creates one queue for each vCPU."""
DISK_TYPE = "virtio-blk-device"
"""QOM type of a virtio disk that QEMU itself serves. A disk of vhost-user has another type."""

_read = FieldReader(VIRTIO_QUEUE)


def virtio_disk_qom_paths(blockstats: object) -> list[tuple[str, str]]:
    """Return the name and the QOM path of each disk that may be a virtio disk.

    The result omits vhost disks, because query-blockstats does not report vhost disks.

    Args:
        blockstats: the reply to query-blockstats.

    Raises:
        QmpError: the reply is an error, or is not a list.
    """
    paths = [(name, text_or_empty(disk.get("qdev"))) for name, disk in named_disks_in_reply(blockstats)]
    return [(name, path) for name, path in paths if path.endswith(VIRTIO_BACKEND_SUFFIX)][:MAX_DISKS]


def disk_property_commands(path: str) -> tuple[Command, Command]:
    """Return the commands that read the type and the number of queues of a device."""
    return (
        Command("qom-get", {"path": path, "property": "type"}),
        Command("qom-get", {"path": path, "property": "num-queues"}),
    )


def parse_virtio_disk(name: str, path: str, kind: object, queues: object) -> VirtioDisk | None:
    """Return a virtio disk from the replies to `disk_property_commands`; None if QEMU does not serve the disk itself."""
    if kind != DISK_TYPE or type(queues) is not int or queues < 1:
        return None
    return VirtioDisk(name, path, min(queues, MAX_QUEUES))


def _commands(facts: VmFacts) -> Sequence[Command]:
    return [
        Command(VIRTIO_QUEUE_STATUS, {"path": disk.path, "queue": number})
        for disk in facts.virtio_disks
        for number in range(disk.queues)
    ]


def _subjects(facts: VmFacts) -> Sequence[tuple[str, str]]:
    return [(disk.device, str(number)) for disk in facts.virtio_disks for number in range(disk.queues)]


def _collect(replies: Replies) -> Iterable[Sample]:
    for labels, reply in replies:
        queue = optional_reply(reply, dict)
        if queue is not None:
            yield Sample(VIRTIO_QUEUE, labels, _read(queue))


COLLECTOR = Collector("virtio_queues", (VIRTIO_QUEUE,), _commands, _collect, subjects=_subjects)
