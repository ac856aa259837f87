"""The type of a row of the event table: how the agent classifies one QMP event. Pure."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Any

from agent.model.field_reader import find_nested_object
from agent.model.record import Severity, sanitize


class EventCategory(StrEnum):
    """The part of a VM that an event reports on."""

    RUNSTATE = auto()
    BLOCK = auto()
    JOB = auto()
    MIGRATION = auto()
    MEMORY = auto()
    DEVICE = auto()
    NETWORK = auto()
    DISPLAY = auto()
    UNKNOWN = auto()


EventData = Mapping[str, Any]
SeverityRule = Severity | Callable[[EventData], Severity]


@dataclass(frozen=True, slots=True)
class EventDefinition:
    """One row of the event table.

    Attributes:
        name: the event's name in QEMU.
        category: the part of the VM that the event reports on.
        severity: the severity, or a function that returns the severity for the event's data.
        help: the help text, one line.
        subject_paths: paths in the event's data, with dots between keys. The first path that leads to a text gives the name of the device
            or job.
        invalidates: names of the collectors to run again at once, because the event makes their last results stale. The name `threads`
            stands for a new search for the threads and interfaces of the QEMU process.
        since: the QEMU release that added the event; empty for 2.6 and older.
        coalesce_by: names of fields in the event's data. Repeated events about one device or job with equal values in these
            fields are coalesced into one record. None if each event gets its own record.
        record_type: the type of the event's records.
        common_data: the fields of the data that are equal in all records of this event.
    """

    name: str
    category: EventCategory
    severity: SeverityRule
    help: str
    subject_paths: tuple[str, ...] = ()
    invalidates: tuple[str, ...] = ()
    since: str = ""
    coalesce_by: tuple[str, ...] | None = None
    record_type: str = field(init=False, compare=False)
    common_data: Mapping[str, str] = field(init=False, compare=False)
    _paths: tuple[tuple[tuple[str, ...], str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # These values are computed once per row, not once per event.
        object.__setattr__(self, "record_type", f"qemu.event.{self.name.lower()}")
        object.__setattr__(self, "common_data", {"event": self.name, "category": self.category.value})
        paths = tuple((tuple(parents), last) for *parents, last in (path.split(".") for path in self.subject_paths))
        object.__setattr__(self, "_paths", paths)

    def severity_for(self, data: EventData) -> Severity:
        """Return the severity of an event with this data."""
        return self.severity if isinstance(self.severity, Severity) else self.severity(data)

    def coalesce_key(self, data: EventData, fields: Iterable[str]) -> tuple[object, ...]:
        """Return the key of an event. Events with equal keys are coalesced into one record.

        Args:
            data: the event's data.
            fields: names of the fields whose values are part of the key.
        """
        values = ((field, data.get(field)) for field in fields)
        return (self.name, self.subject_of(data), *(v for v in values if isinstance(v[1], str | bool)))

    def subject_of(self, data: EventData) -> str:
        """Return the name that samples use for the event's device or job; empty if the data names no device or job."""
        for parents, last in self._paths:
            parent = find_nested_object(data, parents) if parents else data
            name = parent.get(last) if parent is not None else None
            if isinstance(name, str) and name:
                return sanitize(device_name_from_qom_path(name) if name[0] == "/" else name)
        return ""


_LATER_LEGACY_DISK = re.compile(r"legacy\[[1-9][0-9]*\]\Z")
"""Matches the path of each disk of a SCSI controller except the first. Only the first disk is named by the controller's id."""


def device_name_from_qom_path(qdev: str) -> str:
    """Return the stable name of a device, which is the device's id.

    `/machine/peripheral/disk0/virtio-backend`, `/machine/peripheral/disk0` and `disk0` are the same device, `disk0`.
    `/machine/peripheral/usb0/usb0.0/legacy[0]` is the disk inside the device `usb0`, and has the name `usb0`. A device without an id
    is named by the distinctive part of its path, such as `device[0]`.

    Args:
        qdev: the id of a device, or its QOM path.
    """
    for root in ("/machine/peripheral/", "/machine/peripheral-anon/"):
        if qdev.startswith(root):
            path = qdev.removeprefix(root)
            device, _, part = path.partition("/")
            return (path if _LATER_LEGACY_DISK.search(part) else device) or qdev
    return qdev
