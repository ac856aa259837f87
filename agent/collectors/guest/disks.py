"""I/O statistics of the guest's block devices. Unused devices, loop devices, RAM disks and floppy drives are left out."""

from collections.abc import Iterable, Sequence

from agent.collectors.guest.base import MAX_SUBJECTS, MAX_TEXT, GuestCollector, TimedGuestReply, require_value
from agent.collectors.untrusted_json import list_of_objects_or_empty, object_or_empty, text_or_empty
from agent.model.family import Sample
from agent.model.field_reader import FieldReader
from agent.model.metrics.guest import GUEST_DISK
from agent.model.record import sanitize

_read = FieldReader(GUEST_DISK)
_IGNORED_NAME_PREFIXES = ("loop", "ram", "zram", "fd")
_MAX_DISKS = 1024
"""Maximum number of devices to read from a reply. A guest can have many loop devices and partitions."""


def _collect(exchanges: Sequence[TimedGuestReply]) -> Iterable[Sample]:
    samples: dict[str, Sample] = {}
    for disk in list_of_objects_or_empty(require_value(exchanges[0], list), _MAX_DISKS):
        name = sanitize(text_or_empty(disk.get("name")), MAX_TEXT)
        values = _read(object_or_empty(disk.get("stats")))
        if name and not name.startswith(_IGNORED_NAME_PREFIXES) and any(values.values()):
            samples.setdefault(name, Sample(GUEST_DISK, (name,), values))
    return list(samples.values())[:MAX_SUBJECTS]


COLLECTOR = GuestCollector("disks", (GUEST_DISK,), ("guest-get-diskstats",), _collect)
