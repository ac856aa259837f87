"""The event table: one row for each QMP event of QEMU 2.6 to 11.1.

A row has the category, the severity and the subject of an event, and the collectors that run again after the event. The subject is a
device or a job.

`agent.model.qmp_event_fields` has the fields of the events' data.

An event without a row has category `unknown` and severity `info`. The words "rate-limited" in a help text mean that QEMU sends at
most one of these events per second and drops the others. The number of received events is then a lower bound.
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from agent.model.event_definition import EventCategory, EventData, EventDefinition
from agent.model.field_reader import find_nested_object
from agent.model.record import Severity

DEBUG, INFO, WARNING, ERROR, CRITICAL = Severity


def _severity_by_field(
    field: str, severities: Mapping[Any, Severity], default: Severity
) -> Callable[[EventData], Severity]:
    """Return a function that derives an event's severity from one field of the event's data."""

    def severity_for(data: EventData) -> Severity:
        value = data.get(field)
        return severities.get(value, default) if type(value) is str or type(value) is bool else default

    return severity_for


def _severity_of_io_error(data: EventData) -> Severity:
    return CRITICAL if data.get("action") == "stop" or data.get("nospace") is True else ERROR


def _severity_of_job_end(data: EventData) -> Severity:
    return ERROR if data.get("error") else INFO


def _severity_of_acpi_ost(data: EventData) -> Severity:
    info = find_nested_object(data, ("info",))
    return WARNING if info is not None and info.get("status") not in (0, None) else INFO


_RUNSTATE, _BLOCK, _JOB, _MIGRATION = (
    EventCategory.RUNSTATE,
    EventCategory.BLOCK,
    EventCategory.JOB,
    EventCategory.MIGRATION,
)
_MEMORY, _DEVICE, _NETWORK, _DISPLAY = (
    EventCategory.MEMORY,
    EventCategory.DEVICE,
    EventCategory.NETWORK,
    EventCategory.DISPLAY,
)

# Names of the collectors that run again after an event.
_RERUN_RUNSTATE = ("runstate",)
_RERUN_MIGRATION = ("migration", "runstate")
_RERUN_DISKS = ("block", "nodes", "drives")
_RERUN_JOBS = ("jobs",)
_RERUN_DISKS_AND_JOBS = ("block", "nodes", "drives", "jobs")

EVENT_DEFINITIONS = (
    EventDefinition(
        "SHUTDOWN",
        _RUNSTATE,
        _severity_by_field("reason", {"host-error": CRITICAL, "guest-panic": ERROR}, INFO),
        "The VM shut down.",
        invalidates=_RERUN_RUNSTATE,
    ),
    EventDefinition("POWERDOWN", _RUNSTATE, INFO, "The host requested a shutdown of the guest."),
    EventDefinition(
        "RESET",
        _RUNSTATE,
        _severity_by_field("reason", {"guest-panic": WARNING, "subsystem-reset": WARNING}, INFO),
        "The VM was reset.",
        invalidates=_RERUN_RUNSTATE,
    ),
    EventDefinition(
        "STOP", _RUNSTATE, INFO, "The vCPUs stopped; query-status has the reason.", invalidates=("runstate", "dump")
    ),
    EventDefinition("RESUME", _RUNSTATE, INFO, "The vCPUs resumed.", invalidates=_RERUN_RUNSTATE),
    EventDefinition("SUSPEND", _RUNSTATE, INFO, "The guest suspended to RAM.", invalidates=_RERUN_RUNSTATE),
    EventDefinition("SUSPEND_DISK", _RUNSTATE, INFO, "The guest suspended to disk."),
    EventDefinition("WAKEUP", _RUNSTATE, INFO, "The guest woke up from suspend.", invalidates=_RERUN_RUNSTATE),
    EventDefinition(
        "WATCHDOG", _RUNSTATE, ERROR, "The guest's watchdog expired. Rate-limited.", invalidates=_RERUN_RUNSTATE
    ),
    EventDefinition("GUEST_PANICKED", _RUNSTATE, CRITICAL, "The guest's kernel panicked.", invalidates=_RERUN_RUNSTATE),
    EventDefinition(
        "GUEST_CRASHLOADED", _RUNSTATE, ERROR, "The guest crashed and loaded its crash kernel.", since="5.0"
    ),
    EventDefinition(
        "GUEST_PVSHUTDOWN", _RUNSTATE, INFO, "The guest requested a shutdown through pvpanic.", since="9.1"
    ),
    EventDefinition(
        "MEMORY_FAILURE",
        _MEMORY,
        _severity_by_field("action", {"fatal": CRITICAL, "reset": CRITICAL}, ERROR),
        "A hardware memory error hit the VM.",
        ("recipient",),
        since="5.2",
    ),
    EventDefinition(
        "BLOCK_IO_ERROR",
        _BLOCK,
        _severity_of_io_error,
        "A disk request failed. Rate-limited since QEMU 9.2.",
        ("qom-path", "device", "node-name"),
        _RERUN_RUNSTATE,
        coalesce_by=("operation", "action", "nospace"),
    ),
    EventDefinition(
        "BLOCK_IMAGE_CORRUPTED",
        _BLOCK,
        _severity_by_field("fatal", {False: ERROR}, CRITICAL),
        "The metadata of an image is corrupt.",
        ("device", "node-name"),
    ),
    EventDefinition(
        "BLOCK_WRITE_THRESHOLD",
        _BLOCK,
        WARNING,
        "A write exceeded the node's threshold; QEMU has removed the threshold.",
        ("node-name",),
    ),
    EventDefinition("BLOCK_EXPORT_DELETED", _BLOCK, INFO, "A block export was removed.", ("id",), since="5.2"),
    EventDefinition(
        "QUORUM_FAILURE",
        _BLOCK,
        CRITICAL,
        "A quorum read or write failed. Rate-limited.",
        ("reference",),
        coalesce_by=(),
    ),
    EventDefinition(
        "QUORUM_REPORT_BAD",
        _BLOCK,
        ERROR,
        "A member of a quorum failed or returned different data. Rate-limited.",
        ("node-name",),
        coalesce_by=("type",),
    ),
    EventDefinition(
        "DEVICE_TRAY_MOVED",
        _BLOCK,
        INFO,
        "The tray of a removable device opened or closed.",
        ("id", "device"),
        _RERUN_DISKS,
    ),
    EventDefinition(
        "PR_MANAGER_STATUS_CHANGED",
        _BLOCK,
        _severity_by_field("connected", {False: WARNING}, INFO),
        "The persistent reservation helper connected or disconnected.",
        ("id",),
        since="3.0",
    ),
    EventDefinition(
        "JOB_STATUS_CHANGE",
        _JOB,
        _severity_by_field("status", {"aborting": WARNING}, DEBUG),
        "A job changed its status.",
        ("id",),
        _RERUN_JOBS,
        since="3.0",
    ),
    EventDefinition(
        "BLOCK_JOB_COMPLETED",
        _JOB,
        _severity_of_job_end,
        "A block job completed; `error` is set if it failed.",
        ("device",),
        _RERUN_DISKS_AND_JOBS,
    ),
    EventDefinition(
        "BLOCK_JOB_CANCELLED", _JOB, WARNING, "A block job was cancelled.", ("device",), _RERUN_DISKS_AND_JOBS
    ),
    EventDefinition(
        "BLOCK_JOB_ERROR",
        _JOB,
        ERROR,
        "A block job had an I/O error.",
        ("device",),
        _RERUN_JOBS,
        coalesce_by=("operation", "action"),
    ),
    EventDefinition("BLOCK_JOB_READY", _JOB, INFO, "A block job is ready to be completed.", ("device",), _RERUN_JOBS),
    EventDefinition(
        "BLOCK_JOB_PENDING", _JOB, INFO, "A block job is waiting to be finalized.", ("id",), _RERUN_JOBS, since="2.12"
    ),
    EventDefinition(
        "MIGRATION",
        _MIGRATION,
        _severity_by_field(
            "status", {"failing": ERROR, "failed": ERROR, "cancelled": ERROR, "postcopy-paused": ERROR}, INFO
        ),
        "The migration changed its status; only with the migration capability `events`.",
        invalidates=_RERUN_MIGRATION,
    ),
    EventDefinition("MIGRATION_PASS", _MIGRATION, DEBUG, "A pass over the RAM started.", invalidates=("migration",)),
    EventDefinition(
        "UNPLUG_PRIMARY",
        _MIGRATION,
        INFO,
        "QEMU is unplugging the primary device of a failover pair.",
        ("device-id",),
        since="4.2",
    ),
    EventDefinition(
        "FAILOVER_NEGOTIATED",
        _MIGRATION,
        INFO,
        "The guest supports failover between network devices.",
        ("device-id",),
        since="4.2",
    ),
    EventDefinition(
        "VFIO_MIGRATION",
        _MIGRATION,
        DEBUG,
        "A VFIO device changed its migration state.",
        ("device-id", "qom-path"),
        since="9.1",
    ),
    EventDefinition(
        "COLO_EXIT",
        _MIGRATION,
        _severity_by_field("reason", {"request": INFO}, ERROR),
        "COLO replication ended: on request if `reason` is `request`, otherwise because of an error.",
        since="3.1",
    ),
    EventDefinition("DUMP_COMPLETED", _RUNSTATE, _severity_of_job_end, "A dump of the guest's memory ended."),
    EventDefinition("BALLOON_CHANGE", _MEMORY, INFO, "The size of the balloon changed. Rate-limited."),
    EventDefinition(
        "HV_BALLOON_STATUS_REPORT",
        _MEMORY,
        INFO,
        "A Windows guest reported its memory status. Rate-limited.",
        since="8.2",
    ),
    EventDefinition(
        "MEMORY_DEVICE_SIZE_CHANGE",
        _MEMORY,
        INFO,
        "A memory device changed its size. Rate-limited.",
        ("id", "qom-path"),
        ("memory",),
        since="5.1",
    ),
    EventDefinition(
        "MEM_UNPLUG_ERROR", _MEMORY, WARNING, "Unplugging a memory device failed (until QEMU 9.0).", ("device",)
    ),
    EventDefinition(
        "DEVICE_DELETED",
        _DEVICE,
        INFO,
        "A device was removed.",
        ("device", "path"),
        (*_RERUN_DISKS, "balloon", "memory", "inventory", "threads"),
    ),
    EventDefinition(
        "DEVICE_UNPLUG_GUEST_ERROR",
        _DEVICE,
        WARNING,
        "The guest rejected the unplug of a device.",
        ("device", "path"),
        since="6.2",
    ),
    EventDefinition(
        "ACPI_DEVICE_OST",
        _DEVICE,
        _severity_of_acpi_ost,
        "The guest reported the result of a hot-plug or an unplug.",
        ("info.device", "info.slot"),
        ("block", "balloon", "memory", "inventory", "threads"),
    ),
    EventDefinition("RTC_CHANGE", _DEVICE, INFO, "The guest set its clock. Rate-limited.", ("qom-path",)),
    EventDefinition(
        "VSERPORT_CHANGE",
        _DEVICE,
        INFO,
        "The guest opened or closed a virtio serial port. Rate-limited.",
        ("id",),
        ("guest_agent",),
    ),
    EventDefinition("CPU_POLARIZATION_CHANGE", _DEVICE, INFO, "The guest changed its CPU polarization.", since="8.2"),
    EventDefinition(
        "SCLP_CPI_INFO_AVAILABLE", _DEVICE, INFO, "An s390x guest reported its system name and level.", since="10.2"
    ),
    EventDefinition(
        "VFU_CLIENT_HANGUP",
        _DEVICE,
        WARNING,
        "The client of a vfio-user device disconnected.",
        ("dev-id", "vfu-id"),
        since="7.1",
    ),
    EventDefinition("COMMAND_DROPPED", _DEVICE, WARNING, "QEMU dropped a command (QEMU 2.12 to 3.1).", since="2.12"),
    EventDefinition(
        "RDMA_GID_STATUS_CHANGED",
        _NETWORK,
        INFO,
        "An RDMA address changed (QEMU 4.0 to 9.0).",
        ("netdev",),
        since="4.0",
    ),
    EventDefinition(
        "NIC_RX_FILTER_CHANGED",
        _NETWORK,
        DEBUG,
        "The guest changed the receive filter of a network device.",
        ("name", "path"),
        ("threads",),
    ),
    EventDefinition(
        "NETDEV_STREAM_CONNECTED", _NETWORK, INFO, "A stream network backend connected.", ("netdev-id",), since="7.2"
    ),
    EventDefinition(
        "NETDEV_STREAM_DISCONNECTED",
        _NETWORK,
        WARNING,
        "A stream network backend disconnected from its peer.",
        ("netdev-id",),
        since="7.2",
    ),
    EventDefinition(
        "NETDEV_VHOST_USER_CONNECTED", _NETWORK, INFO, "A vhost-user backend connected.", ("netdev-id",), since="10.0"
    ),
    EventDefinition(
        "NETDEV_VHOST_USER_DISCONNECTED",
        _NETWORK,
        ERROR,
        "A vhost-user backend disconnected.",
        ("netdev-id",),
        since="10.0",
    ),
    EventDefinition("VNC_CONNECTED", _DISPLAY, INFO, "A VNC client connected.", ("client.host",), ("vnc",)),
    EventDefinition("VNC_INITIALIZED", _DISPLAY, INFO, "A VNC client was authenticated.", ("client.host",), ("vnc",)),
    EventDefinition("VNC_DISCONNECTED", _DISPLAY, INFO, "A VNC client disconnected.", ("client.host",), ("vnc",)),
    EventDefinition("SPICE_CONNECTED", _DISPLAY, INFO, "A SPICE client connected.", ("client.host",), ("spice",)),
    EventDefinition(
        "SPICE_INITIALIZED", _DISPLAY, INFO, "A SPICE client was authenticated.", ("client.host",), ("spice",)
    ),
    EventDefinition("SPICE_DISCONNECTED", _DISPLAY, INFO, "A SPICE client disconnected.", ("client.host",), ("spice",)),
    EventDefinition("SPICE_MIGRATE_COMPLETED", _DISPLAY, INFO, "The SPICE clients moved to the migration destination."),
)

EVENT_DEFINITIONS_BY_NAME: Mapping[str, EventDefinition] = {row.name: row for row in EVENT_DEFINITIONS}


_EVENT_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
"""Matches the names that QAPI permits for events."""


def find_event_definition(name: str) -> EventDefinition:
    """Return the row of an event. For an event that the table lacks, return a row of category `unknown`."""
    return EVENT_DEFINITIONS_BY_NAME.get(name) or _unknown_row(name if _EVENT_NAME.fullmatch(name) else "UNKNOWN")


@lru_cache(maxsize=64)
def _unknown_row(name: str) -> EventDefinition:
    return EventDefinition(name, EventCategory.UNKNOWN, INFO, "An event that this release of the agent does not know.")
