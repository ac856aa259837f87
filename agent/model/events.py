"""Every QMP event from QEMU 2.6 to 11.1, a row each: its category, how severe it is, whom it is about, what it makes us ask again.

An event without a row is passed through as category `unknown`, severity `info`. `since` is the QEMU release that brought it, empty
for 2.6 and older. "Coalesced" in a help means that QEMU sends at most one a second and drops those between: a count is a lower bound.
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
    """What part of a VM an event is about."""

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
        name: QEMU's name.
        category: what part of the VM.
        severity: how severe, or how to judge that by the event's data.
        help: one line for people.
        subject: paths in the data, by dots, of which the first that is there names the subject.
        invalidates: the families whose last answer it made untrue; `threads` is which threads and interfaces its process has.
        since: the QEMU release that brought it.
        coalesce_by: of those that come in storms, the fields by which two are alike, so that many within a second are told as one.
        record_type: the type of its records.
        head: how the data of its records begins.
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
    head: Mapping[str, str] = field(init=False, compare=False)
    _paths: tuple[tuple[tuple[str, ...], str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # What every event of its kind would have to be cut up and put together for.
        object.__setattr__(self, "record_type", f"qemu.event.{self.name.lower()}")
        object.__setattr__(self, "head", {"event": self.name, "category": self.category.value})
        paths = tuple((tuple(parents), last) for *parents, last in (path.split(".") for path in self.subject))
        object.__setattr__(self, "_paths", paths)

    def severity_for(self, data: Data) -> Severity:
        """Return the severity of an event with this data."""
        return self.severity if isinstance(self.severity, Severity) else self.severity(data)

    def coalesce_key(self, data: Data, fields: Iterable[str]) -> tuple[object, ...]:
        """Return what two events of one storm have in common."""
        values = ((field, data.get(field)) for field in fields)
        return (self.name, self.subject_of(data), *(v for v in values if isinstance(v[1], str | bool)))

    def subject_of(self, data: Data) -> str:
        """Return whom it is about, in the names that the samples use too, or empty."""
        for parents, last in self._paths:
            holder = object_at(data, parents) if parents else data
            name = holder.get(last) if holder is not None else None
            if isinstance(name, str) and name:
                return sanitize(device_name(name) if name[0] == "/" else name)
        return ""


def device_name(qdev: str) -> str:
    """Return a device's stable name: its id, out of the QOM path that some of QEMU's answers give instead.

    `/machine/peripheral/disk0/virtio-backend` and `disk0` are one device; a path of a device without an id keeps what tells it apart.
    """
    for root in ("/machine/peripheral/", "/machine/peripheral-anon/"):
        if qdev.startswith(root):
            return qdev.removeprefix(root).removesuffix("/virtio-backend")
    return qdev


def _by(key: str, table: Mapping[Any, Severity], otherwise: Severity) -> Callable[[Data], Severity]:
    """SeverityRule by one field's value."""

    def judge(data: Data) -> Severity:
        value = data.get(key)
        return table.get(value, otherwise) if type(value) is str or type(value) is bool else otherwise

    return judge


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
        _by("reason", {"host-error": CRITICAL, "guest-panic": ERROR}, INFO),
        "The VM shut down.",
        invalidates=_RS,
    ),
    EventRow("POWERDOWN", _RUN, INFO, "The host asked the guest to power down."),
    EventRow(
        "RESET",
        _RUN,
        _by("reason", {"guest-panic": WARNING, "subsystem-reset": WARNING}, INFO),
        "The VM was reset.",
        invalidates=_RS,
    ),
    EventRow("STOP", _RUN, INFO, "The vCPUs were stopped; query-status says why.", invalidates=("runstate", "dump")),
    EventRow("RESUME", _RUN, INFO, "The vCPUs run again.", invalidates=_RS),
    EventRow("SUSPEND", _RUN, INFO, "The guest suspended to RAM.", invalidates=_RS),
    EventRow("SUSPEND_DISK", _RUN, INFO, "The guest suspended to disk."),
    EventRow("WAKEUP", _RUN, INFO, "The guest woke up from suspend.", invalidates=_RS),
    EventRow("WATCHDOG", _RUN, ERROR, "The guest's watchdog expired. Coalesced.", invalidates=_RS),
    EventRow("GUEST_PANICKED", _RUN, CRITICAL, "The guest's kernel panicked.", invalidates=_RS),
    EventRow("GUEST_CRASHLOADED", _RUN, ERROR, "The guest crashed and loaded its crash kernel.", since="5.0"),
    EventRow("GUEST_PVSHUTDOWN", _RUN, INFO, "The guest asked for a shutdown through pvpanic.", since="9.1"),
    EventRow(
        "MEMORY_FAILURE",
        _MEM,
        _by("action", {"fatal": CRITICAL, "reset": CRITICAL}, ERROR),
        "The host's memory failed under the VM.",
        ("recipient",),
        since="5.2",
    ),
    EventRow(
        "BLOCK_IO_ERROR",
        _BLK,
        _io_error,
        "A disk request failed. Coalesced from QEMU 9.2.",
        ("qom-path", "device", "node-name"),
        _RS,
        coalesce_by=("operation", "action", "nospace"),
    ),
    EventRow(
        "BLOCK_IMAGE_CORRUPTED",
        _BLK,
        _by("fatal", {False: ERROR}, CRITICAL),
        "An image's metadata is corrupt.",
        ("device", "node-name"),
    ),
    EventRow(
        "BLOCK_WRITE_THRESHOLD",
        _BLK,
        WARNING,
        "A write went past the node's threshold, which is now unset.",
        ("node-name",),
    ),
    EventRow("BLOCK_EXPORT_DELETED", _BLK, INFO, "A block export is gone.", ("id",), since="5.2"),
    EventRow("QUORUM_FAILURE", _BLK, CRITICAL, "A quorum could not agree. Coalesced.", ("reference",), coalesce_by=()),
    EventRow(
        "QUORUM_REPORT_BAD",
        _BLK,
        ERROR,
        "A member of a quorum failed or differs. Coalesced.",
        ("node-name",),
        coalesce_by=("type",),
    ),
    EventRow("DEVICE_TRAY_MOVED", _BLK, INFO, "A removable medium's tray moved.", ("id", "device"), _BN),
    EventRow(
        "PR_MANAGER_STATUS_CHANGED",
        _BLK,
        _by("connected", {False: WARNING}, INFO),
        "The SCSI helper came or went.",
        ("id",),
        since="3.0",
    ),
    EventRow(
        "JOB_STATUS_CHANGE",
        _JOB,
        _by("status", {"aborting": WARNING}, DEBUG),
        "A job changed state.",
        ("id",),
        _JB,
        since="3.0",
    ),
    EventRow("BLOCK_JOB_COMPLETED", _JOB, _failed, "A block job ended; `error` says if badly.", ("device",), _BJ),
    EventRow("BLOCK_JOB_CANCELLED", _JOB, WARNING, "A block job was cancelled.", ("device",), _BJ),
    EventRow(
        "BLOCK_JOB_ERROR",
        _JOB,
        ERROR,
        "A block job met an I/O error.",
        ("device",),
        _JB,
        coalesce_by=("operation", "action"),
    ),
    EventRow("BLOCK_JOB_READY", _JOB, INFO, "A block job is ready to be completed.", ("device",), _JB),
    EventRow("BLOCK_JOB_PENDING", _JOB, INFO, "A block job waits to be finalized.", ("id",), _JB, since="2.12"),
    EventRow(
        "MIGRATION",
        _MIG,
        _by("status", {"failing": ERROR, "failed": ERROR, "cancelled": ERROR, "postcopy-paused": ERROR}, INFO),
        "The migration changed state; only where the capability `events` is on.",
        invalidates=_MS,
    ),
    EventRow("MIGRATION_PASS", _MIG, DEBUG, "A new pass over the RAM began.", invalidates=("migration",)),
    EventRow(
        "UNPLUG_PRIMARY", _MIG, INFO, "A failover's primary device is being unplugged.", ("device-id",), since="4.2"
    ),
    EventRow(
        "FAILOVER_NEGOTIATED",
        _MIG,
        INFO,
        "The guest can fail over between network devices.",
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
    EventRow("COLO_EXIT", _MIG, ERROR, "COLO replication ended.", since="3.1"),
    EventRow("DUMP_COMPLETED", _RUN, _failed, "A dump of the guest's memory ended."),
    EventRow("BALLOON_CHANGE", _MEM, INFO, "The balloon's size changed. Coalesced."),
    EventRow(
        "HV_BALLOON_STATUS_REPORT", _MEM, INFO, "A Windows guest told its memory pressure. Coalesced.", since="8.2"
    ),
    EventRow(
        "MEMORY_DEVICE_SIZE_CHANGE",
        _MEM,
        INFO,
        "A memory device changed size. Coalesced.",
        ("id", "qom-path"),
        ("memory",),
        since="5.1",
    ),
    EventRow(
        "MEM_UNPLUG_ERROR", _MEM, WARNING, "A memory device could not be unplugged (until QEMU 9.0).", ("device",)
    ),
    EventRow(
        "DEVICE_DELETED",
        _DEV,
        INFO,
        "A device is gone.",
        ("device", "path"),
        (*_BN, "balloon", "memory", "inventory", "threads"),
    ),
    EventRow(
        "DEVICE_UNPLUG_GUEST_ERROR",
        _DEV,
        WARNING,
        "The guest refused to give a device back.",
        ("device", "path"),
        since="6.2",
    ),
    EventRow(
        "ACPI_DEVICE_OST",
        _DEV,
        _ost,
        "The guest answered a hot-plug or unplug.",
        ("info.device", "info.slot"),
        ("block", "balloon", "memory", "inventory", "threads"),
    ),
    EventRow("RTC_CHANGE", _DEV, INFO, "The guest set its clock. Coalesced.", ("qom-path",)),
    EventRow(
        "VSERPORT_CHANGE", _DEV, INFO, "A virtio serial port was opened or closed in the guest. Coalesced.", ("id",)
    ),
    EventRow("CPU_POLARIZATION_CHANGE", _DEV, INFO, "The guest changed its CPU polarization.", since="8.2"),
    EventRow("SCLP_CPI_INFO_AVAILABLE", _DEV, INFO, "An s390x guest told its name and level.", since="10.2"),
    EventRow(
        "VFU_CLIENT_HANGUP", _DEV, WARNING, "The client of a vfio-user device left.", ("dev-id", "vfu-id"), since="7.1"
    ),
    EventRow("COMMAND_DROPPED", _DEV, WARNING, "QEMU dropped a command (2.12 to 3.1).", since="2.12"),
    EventRow("RDMA_GID_STATUS_CHANGED", _NET, INFO, "An RDMA address changed (4.0 to 9.0).", ("netdev",), since="4.0"),
    EventRow(
        "NIC_RX_FILTER_CHANGED",
        _NET,
        DEBUG,
        "The guest changed a network card's filter.",
        ("name", "path"),
        ("threads",),
    ),
    EventRow("NETDEV_STREAM_CONNECTED", _NET, INFO, "A stream network backend connected.", ("netdev-id",), since="7.2"),
    EventRow(
        "NETDEV_STREAM_DISCONNECTED",
        _NET,
        WARNING,
        "A stream network backend lost its peer.",
        ("netdev-id",),
        since="7.2",
    ),
    EventRow(
        "NETDEV_VHOST_USER_CONNECTED", _NET, INFO, "A vhost-user backend connected.", ("netdev-id",), since="10.0"
    ),
    EventRow(
        "NETDEV_VHOST_USER_DISCONNECTED", _NET, ERROR, "A vhost-user backend is gone.", ("netdev-id",), since="10.0"
    ),
    EventRow("VNC_CONNECTED", _DSP, INFO, "A VNC client connected.", ("client.host",), ("vnc",)),
    EventRow("VNC_INITIALIZED", _DSP, INFO, "A VNC client was let in.", ("client.host",), ("vnc",)),
    EventRow("VNC_DISCONNECTED", _DSP, INFO, "A VNC client left.", ("client.host",), ("vnc",)),
    EventRow("SPICE_CONNECTED", _DSP, INFO, "A SPICE client connected.", ("client.host",), ("spice",)),
    EventRow("SPICE_INITIALIZED", _DSP, INFO, "A SPICE client was let in.", ("client.host",), ("spice",)),
    EventRow("SPICE_DISCONNECTED", _DSP, INFO, "A SPICE client left.", ("client.host",), ("spice",)),
    EventRow("SPICE_MIGRATE_COMPLETED", _DSP, INFO, "The SPICE clients moved to the migration's destination."),
)

EVENTS: Mapping[str, EventRow] = {row.name: row for row in ROWS}


_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
"""What QAPI lets an event be called."""


def row_of(name: str) -> EventRow:
    """Return the row of an event, or the one for events that nobody here has heard of."""
    return EVENTS.get(name) or _unheard_of(name if _NAME.fullmatch(name) else "UNKNOWN")


@lru_cache(maxsize=64)
def _unheard_of(name: str) -> EventRow:
    return EventRow(name, Category.UNKNOWN, INFO, "Not known to this release of the agent.")
