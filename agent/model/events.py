"""The event table: one row for each QMP event of QEMU 2.6 to 11.1, with its category, severity, subject and stale collectors.

An event without a row is passed through with category `unknown` and severity `info`. `since` is the QEMU release that added the event,
empty for 2.6 and older. "Rate-limited" in a help text means that QEMU sends at most one per second and drops the others: a count of them
is a lower bound.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum, auto
from functools import lru_cache
from typing import Any

from agent.model.reader import object_at
from agent.model.record import Severity, sanitize

DEBUG, INFO, WARNING, ERROR, CRITICAL = Severity


class Category(StrEnum):
    """The part of a VM that an event concerns."""

    RUNSTATE = auto()
    BLOCK = auto()
    JOB = auto()
    MIGRATION = auto()
    MEMORY = auto()
    DEVICE = auto()
    NETWORK = auto()
    DISPLAY = auto()
    UNKNOWN = auto()


Data = Mapping[str, Any]
SeverityRule = Severity | Callable[[Data], Severity]


@dataclass(frozen=True, slots=True)
class EventRow:
    """One row.

    Attributes:
        name: the event's name in QEMU.
        category: the part of the VM that it concerns.
        severity: the severity, or a function that returns it for the event's data.
        help: the help text, one line.
        subject: paths in the data, with dots between keys; the value at the first path that is present is the subject.
        invalidates: names of the collectors to poll again; `threads` looks up the threads and interfaces of the process.
        since: the QEMU release that added the event.
        coalesce_by: the fields that have to be equal in events that are coalesced; None for an event that is not coalesced.
        record_type: the type of its records.
        data_head: the first fields of its records' data.
    """

    name: str
    category: Category
    severity: SeverityRule
    help: str
    subject: tuple[str, ...] = ()
    invalidates: tuple[str, ...] = ()
    since: str = ""
    coalesce_by: tuple[str, ...] | None = None
    record_type: str = field(init=False, compare=False)
    data_head: Mapping[str, str] = field(init=False, compare=False)
    _paths: tuple[tuple[tuple[str, ...], str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Computed once per row instead of once per event.
        object.__setattr__(self, "record_type", f"qemu.event.{self.name.lower()}")
        object.__setattr__(self, "data_head", {"event": self.name, "category": self.category.value})
        paths = tuple((tuple(parents), last) for *parents, last in (path.split(".") for path in self.subject))
        object.__setattr__(self, "_paths", paths)

    def severity_for(self, data: Data) -> Severity:
        """Return the severity of an event with this data."""
        return self.severity if isinstance(self.severity, Severity) else self.severity(data)

    def coalesce_key(self, data: Data, fields: Iterable[str]) -> tuple[object, ...]:
        """Return a key that is equal for events to coalesce into one record."""
        values = ((field, data.get(field)) for field in fields)
        return (self.name, self.subject_of(data), *(v for v in values if isinstance(v[1], str | bool)))

    def subject_of(self, data: Data) -> str:
        """Return the event's subject by the name that samples use, or an empty string."""
        for parents, last in self._paths:
            holder = object_at(data, parents) if parents else data
            name = holder.get(last) if holder is not None else None
            if isinstance(name, str) and name:
                return sanitize(device_name(name) if name[0] == "/" else name)
        return ""


_LATER_LEGACY_DISK = re.compile(r"legacy\[[1-9][0-9]*\]\Z")
"""A second or later disk of a SCSI controller; only the first one has the controller's id as its name."""


def device_name(qdev: str) -> str:
    """Return a device's stable name: its id. Some replies have its QOM path instead; the id is then extracted from the path.

    `/machine/peripheral/disk0/virtio-backend`, `/machine/peripheral/disk0` and `disk0` are one device; `usb0/usb0.0/legacy[0]` is the disk
    inside the device `usb0`. A device without an id keeps the distinctive part of its path, such as `device[0]`.
    """
    for root in ("/machine/peripheral/", "/machine/peripheral-anon/"):
        if qdev.startswith(root):
            path = qdev.removeprefix(root)
            device, _, part = path.partition("/")
            return (path if _LATER_LEGACY_DISK.search(part) else device) or qdev
    return qdev


def _by_field(key: str, table: Mapping[Any, Severity], otherwise: Severity) -> Callable[[Data], Severity]:
    """Return a function that looks up the severity by the value of one field."""

    def severity_for(data: Data) -> Severity:
        value = data.get(key)
        return table.get(value, otherwise) if type(value) is str or type(value) is bool else otherwise

    return severity_for


def _io_error(data: Data) -> Severity:
    return CRITICAL if data.get("action") == "stop" or data.get("nospace") is True else ERROR


def _failed(data: Data) -> Severity:
    return ERROR if data.get("error") else INFO


def _ost(data: Data) -> Severity:
    info = object_at(data, ("info",))
    return WARNING if info is not None and info.get("status") not in (0, None) else INFO


_RUN, _BLK, _JOB, _MIG = Category.RUNSTATE, Category.BLOCK, Category.JOB, Category.MIGRATION
_MEM, _DEV, _NET, _DSP = Category.MEMORY, Category.DEVICE, Category.NETWORK, Category.DISPLAY
_RS = ("runstate",)
_MS = ("migration", "runstate")
_BN = ("block", "nodes", "drives")
_JB = ("jobs",)
_BJ = ("block", "nodes", "drives", "jobs")

ROWS = (
    EventRow(
        "SHUTDOWN",
        _RUN,
        _by_field("reason", {"host-error": CRITICAL, "guest-panic": ERROR}, INFO),
        "The VM shut down.",
        invalidates=_RS,
    ),
    EventRow("POWERDOWN", _RUN, INFO, "The host requested a shutdown of the guest."),
    EventRow(
        "RESET",
        _RUN,
        _by_field("reason", {"guest-panic": WARNING, "subsystem-reset": WARNING}, INFO),
        "The VM was reset.",
        invalidates=_RS,
    ),
    EventRow("STOP", _RUN, INFO, "The vCPUs stopped; query-status has the reason.", invalidates=("runstate", "dump")),
    EventRow("RESUME", _RUN, INFO, "The vCPUs resumed.", invalidates=_RS),
    EventRow("SUSPEND", _RUN, INFO, "The guest suspended to RAM.", invalidates=_RS),
    EventRow("SUSPEND_DISK", _RUN, INFO, "The guest suspended to disk."),
    EventRow("WAKEUP", _RUN, INFO, "The guest woke up from suspend.", invalidates=_RS),
    EventRow("WATCHDOG", _RUN, ERROR, "The guest's watchdog expired. Rate-limited.", invalidates=_RS),
    EventRow("GUEST_PANICKED", _RUN, CRITICAL, "The guest's kernel panicked.", invalidates=_RS),
    EventRow("GUEST_CRASHLOADED", _RUN, ERROR, "The guest crashed and loaded its crash kernel.", since="5.0"),
    EventRow("GUEST_PVSHUTDOWN", _RUN, INFO, "The guest requested a shutdown through pvpanic.", since="9.1"),
    EventRow(
        "MEMORY_FAILURE",
        _MEM,
        _by_field("action", {"fatal": CRITICAL, "reset": CRITICAL}, ERROR),
        "A hardware memory error hit the VM.",
        ("recipient",),
        since="5.2",
    ),
    EventRow(
        "BLOCK_IO_ERROR",
        _BLK,
        _io_error,
        "A disk request failed. Rate-limited since QEMU 9.2.",
        ("qom-path", "device", "node-name"),
        _RS,
        coalesce_by=("operation", "action", "nospace"),
    ),
    EventRow(
        "BLOCK_IMAGE_CORRUPTED",
        _BLK,
        _by_field("fatal", {False: ERROR}, CRITICAL),
        "The metadata of an image is corrupt.",
        ("device", "node-name"),
    ),
    EventRow(
        "BLOCK_WRITE_THRESHOLD",
        _BLK,
        WARNING,
        "A write exceeded the node's threshold; QEMU has removed the threshold.",
        ("node-name",),
    ),
    EventRow("BLOCK_EXPORT_DELETED", _BLK, INFO, "A block export was removed.", ("id",), since="5.2"),
    EventRow(
        "QUORUM_FAILURE", _BLK, CRITICAL, "A quorum read or write failed. Rate-limited.", ("reference",), coalesce_by=()
    ),
    EventRow(
        "QUORUM_REPORT_BAD",
        _BLK,
        ERROR,
        "A member of a quorum failed or returned different data. Rate-limited.",
        ("node-name",),
        coalesce_by=("type",),
    ),
    EventRow(
        "DEVICE_TRAY_MOVED", _BLK, INFO, "The tray of a removable device opened or closed.", ("id", "device"), _BN
    ),
    EventRow(
        "PR_MANAGER_STATUS_CHANGED",
        _BLK,
        _by_field("connected", {False: WARNING}, INFO),
        "The persistent reservation helper connected or disconnected.",
        ("id",),
        since="3.0",
    ),
    EventRow(
        "JOB_STATUS_CHANGE",
        _JOB,
        _by_field("status", {"aborting": WARNING}, DEBUG),
        "A job changed its status.",
        ("id",),
        _JB,
        since="3.0",
    ),
    EventRow(
        "BLOCK_JOB_COMPLETED", _JOB, _failed, "A block job completed; `error` is set if it failed.", ("device",), _BJ
    ),
    EventRow("BLOCK_JOB_CANCELLED", _JOB, WARNING, "A block job was cancelled.", ("device",), _BJ),
    EventRow(
        "BLOCK_JOB_ERROR",
        _JOB,
        ERROR,
        "A block job had an I/O error.",
        ("device",),
        _JB,
        coalesce_by=("operation", "action"),
    ),
    EventRow("BLOCK_JOB_READY", _JOB, INFO, "A block job is ready to be completed.", ("device",), _JB),
    EventRow("BLOCK_JOB_PENDING", _JOB, INFO, "A block job is waiting to be finalized.", ("id",), _JB, since="2.12"),
    EventRow(
        "MIGRATION",
        _MIG,
        _by_field("status", {"failing": ERROR, "failed": ERROR, "cancelled": ERROR, "postcopy-paused": ERROR}, INFO),
        "The migration changed its status; only with the migration capability `events`.",
        invalidates=_MS,
    ),
    EventRow("MIGRATION_PASS", _MIG, DEBUG, "A pass over the RAM started.", invalidates=("migration",)),
    EventRow(
        "UNPLUG_PRIMARY",
        _MIG,
        INFO,
        "QEMU is unplugging the primary device of a failover pair.",
        ("device-id",),
        since="4.2",
    ),
    EventRow(
        "FAILOVER_NEGOTIATED",
        _MIG,
        INFO,
        "The guest supports failover between network devices.",
        ("device-id",),
        since="4.2",
    ),
    EventRow(
        "VFIO_MIGRATION",
        _MIG,
        DEBUG,
        "A VFIO device changed its migration state.",
        ("device-id", "qom-path"),
        since="9.1",
    ),
    EventRow(
        "COLO_EXIT",
        _MIG,
        _by_field("reason", {"request": INFO}, ERROR),
        "COLO replication ended, because of an error unless `reason` is request.",
        since="3.1",
    ),
    EventRow("DUMP_COMPLETED", _RUN, _failed, "A dump of the guest's memory ended."),
    EventRow("BALLOON_CHANGE", _MEM, INFO, "The size of the balloon changed. Rate-limited."),
    EventRow(
        "HV_BALLOON_STATUS_REPORT", _MEM, INFO, "A Windows guest reported its memory status. Rate-limited.", since="8.2"
    ),
    EventRow(
        "MEMORY_DEVICE_SIZE_CHANGE",
        _MEM,
        INFO,
        "A memory device changed its size. Rate-limited.",
        ("id", "qom-path"),
        ("memory",),
        since="5.1",
    ),
    EventRow("MEM_UNPLUG_ERROR", _MEM, WARNING, "Unplugging a memory device failed (until QEMU 9.0).", ("device",)),
    EventRow(
        "DEVICE_DELETED",
        _DEV,
        INFO,
        "A device was removed.",
        ("device", "path"),
        (*_BN, "balloon", "memory", "inventory", "threads"),
    ),
    EventRow(
        "DEVICE_UNPLUG_GUEST_ERROR",
        _DEV,
        WARNING,
        "The guest rejected the unplug of a device.",
        ("device", "path"),
        since="6.2",
    ),
    EventRow(
        "ACPI_DEVICE_OST",
        _DEV,
        _ost,
        "The guest reported the result of a hot-plug or an unplug.",
        ("info.device", "info.slot"),
        ("block", "balloon", "memory", "inventory", "threads"),
    ),
    EventRow("RTC_CHANGE", _DEV, INFO, "The guest set its clock. Rate-limited.", ("qom-path",)),
    EventRow(
        "VSERPORT_CHANGE",
        _DEV,
        INFO,
        "The guest opened or closed a virtio serial port. Rate-limited.",
        ("id",),
        ("guest_agent",),
    ),
    EventRow("CPU_POLARIZATION_CHANGE", _DEV, INFO, "The guest changed its CPU polarization.", since="8.2"),
    EventRow("SCLP_CPI_INFO_AVAILABLE", _DEV, INFO, "An s390x guest reported its system name and level.", since="10.2"),
    EventRow(
        "VFU_CLIENT_HANGUP",
        _DEV,
        WARNING,
        "The client of a vfio-user device disconnected.",
        ("dev-id", "vfu-id"),
        since="7.1",
    ),
    EventRow("COMMAND_DROPPED", _DEV, WARNING, "QEMU dropped a command (2.12 to 3.1).", since="2.12"),
    EventRow("RDMA_GID_STATUS_CHANGED", _NET, INFO, "An RDMA address changed (4.0 to 9.0).", ("netdev",), since="4.0"),
    EventRow(
        "NIC_RX_FILTER_CHANGED",
        _NET,
        DEBUG,
        "The guest changed the receive filter of a network device.",
        ("name", "path"),
        ("threads",),
    ),
    EventRow("NETDEV_STREAM_CONNECTED", _NET, INFO, "A stream network backend connected.", ("netdev-id",), since="7.2"),
    EventRow(
        "NETDEV_STREAM_DISCONNECTED",
        _NET,
        WARNING,
        "A stream network backend disconnected from its peer.",
        ("netdev-id",),
        since="7.2",
    ),
    EventRow(
        "NETDEV_VHOST_USER_CONNECTED", _NET, INFO, "A vhost-user backend connected.", ("netdev-id",), since="10.0"
    ),
    EventRow(
        "NETDEV_VHOST_USER_DISCONNECTED",
        _NET,
        ERROR,
        "A vhost-user backend disconnected.",
        ("netdev-id",),
        since="10.0",
    ),
    EventRow("VNC_CONNECTED", _DSP, INFO, "A VNC client connected.", ("client.host",), ("vnc",)),
    EventRow("VNC_INITIALIZED", _DSP, INFO, "A VNC client was authenticated.", ("client.host",), ("vnc",)),
    EventRow("VNC_DISCONNECTED", _DSP, INFO, "A VNC client disconnected.", ("client.host",), ("vnc",)),
    EventRow("SPICE_CONNECTED", _DSP, INFO, "A SPICE client connected.", ("client.host",), ("spice",)),
    EventRow("SPICE_INITIALIZED", _DSP, INFO, "A SPICE client was authenticated.", ("client.host",), ("spice",)),
    EventRow("SPICE_DISCONNECTED", _DSP, INFO, "A SPICE client disconnected.", ("client.host",), ("spice",)),
    EventRow("SPICE_MIGRATE_COMPLETED", _DSP, INFO, "The SPICE clients moved to the migration destination."),
)

EVENTS: Mapping[str, EventRow] = {row.name: row for row in ROWS}


_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
"""Names that QAPI permits for events."""


def row_of(name: str) -> EventRow:
    """Return the row of an event, or a row of category `unknown`."""
    return EVENTS.get(name) or _unknown_row(name if _NAME.fullmatch(name) else "UNKNOWN")


@lru_cache(maxsize=64)
def _unknown_row(name: str) -> EventRow:
    return EventRow(name, Category.UNKNOWN, INFO, "An event that this release of the agent does not know.")
