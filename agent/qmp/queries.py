"""The query table: one row for each `query-*` command of QEMU 2.6 to 11.1. A row states when the agent sends the command, and why.

agent/qmp/commands.py permits only `query-*` commands in this table, and none with the trigger REFUSED. A command with the trigger ALLOWED
is permitted only if the config allows that command by name. A test compares the rows with the commands that the collectors send.
Before you change a row, find out what the command does to a guest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class QueryTrigger(StrEnum):
    """When the agent sends a query. A resync polls all data again, at the interval `intervals.resync`."""

    POLLED = "at an interval"
    EVENT = "after an event"
    """After an event that can change the result; also at attach and at each resync."""
    ATTACH = "at attach"
    """At attach and at each resync."""
    BUILD = "once per build"
    """At attach to the first VM that runs this build of QEMU."""
    STALLED = "while stalled"
    """Out of band, while a reply is overdue."""
    ALLOWED = "if allowed"
    """If the config allows the command by name, because the command is unstable in QEMU."""
    REFUSED = "never"
    """The agent never sends the command, because it is not on the allow-list."""


@dataclass(frozen=True, slots=True)
class Query:
    """A row of the query table.

    Attributes:
        name: the command's name in QEMU; a trailing `*` matches every command with that prefix.
        trigger: when the agent sends the command.
        reason: what the command is for, or why the agent does not send it.
    """

    name: str
    trigger: QueryTrigger
    reason: str


_POLLED, _EVENT, _ATTACH, _REFUSED = QueryTrigger.POLLED, QueryTrigger.EVENT, QueryTrigger.ATTACH, QueryTrigger.REFUSED

_REASON_FIXED = "Describes the build or the command line of QEMU, which does not change"
_REASON_LOADS_MODULES = "Lists types, which loads modules: this can crash a QEMU whose package was upgraded"
_REASON_CPU_MODELS = "For the manager that starts or migrates a VM; creates vCPU models to inspect them"
_REASON_CONFIDENTIAL = "For the manager that launches or attests a confidential guest"

QUERIES = (
    Query(
        "query-accelerators",
        _REFUSED,
        "Replaces query-kvm since 10.2. query-kvm exists in all versions, and its reply is shorter.",
    ),
    Query("query-acpi-ospm-status", _REFUSED, "ACPI_DEVICE_OST reports the same after each change."),
    Query("query-audiodevs", _REFUSED, f"{_REASON_FIXED}."),
    Query("query-balloon", _EVENT, "Size of the balloon; BALLOON_CHANGE reports it, too."),
    Query(
        "query-block",
        _EVENT,
        "Throttle limits, trays, I/O status. The command accesses the storage, which can hang. So it is sent rarely, and never "
        "while the storage does not answer.",
    ),
    Query(
        "query-block-exports",
        _REFUSED,
        "An export belongs to the manager that created it; BLOCK_EXPORT_DELETED reports its end.",
    ),
    Query("query-block-jobs", _EVENT, "Limits, pauses and errors of block jobs; polled while one runs."),
    Query(
        "query-blockstats",
        _POLLED,
        "I/O statistics of each disk. At most polls, the agent sends only this command.",
    ),
    Query(
        "query-chardev",
        _EVENT,
        "Consoles, serial ports and monitors, for the inventory, and whether the guest agent is connected.",
    ),
    Query("query-chardev-backends", _REFUSED, f"{_REASON_FIXED}."),
    Query("query-colo-status", _REFUSED, "For the manager of the replication; COLO_EXIT reports its end."),
    Query(
        "query-command-line-options",
        _REFUSED,
        "Describes the command-line options of this build; loads modules.",
    ),
    Query("query-commands", QueryTrigger.BUILD, "Names of the supported commands, so that the agent sends no others."),
    Query("query-cpu-definitions", _REFUSED, f"{_REASON_LOADS_MODULES}."),
    Query("query-cpu-model-baseline", _REFUSED, f"{_REASON_CPU_MODELS}."),
    Query("query-cpu-model-comparison", _REFUSED, f"{_REASON_CPU_MODELS}."),
    Query("query-cpu-model-expansion", _REFUSED, f"{_REASON_CPU_MODELS}."),
    Query("query-cpus", _REFUSED, "Interrupts every vCPU (until 5.2)."),
    Query("query-cpus-fast", _EVENT, "Thread ids of the vCPUs, for their CPU time in /proc; interrupts no vCPU."),
    Query("query-cryptodev", _REFUSED, f"{_REASON_FIXED}."),
    Query("query-current-machine", _REFUSED, "A shorter command, qom-get, returns the machine type."),
    Query(
        "query-dirty-rate",
        _ATTACH,
        "Result of a measurement that another client started; polled while it runs. The agent starts none.",
    ),
    Query("query-display-options", _REFUSED, f"{_REASON_FIXED}."),
    Query("query-dump", _EVENT, "Progress of a dump of the guest's memory."),
    Query("query-dump-guest-memory-capability", _REFUSED, f"{_REASON_FIXED}."),
    Query("query-events", _REFUSED, "Names of QEMU's events; the agent has a table of its own (until 5.2)."),
    Query("query-fdsets", _REFUSED, "File descriptors that a manager passed, for its own use."),
    Query("query-firmware-log", _REFUSED, "Reads a megabyte of the guest's memory."),
    Query("query-gic-capabilities", _REFUSED, f"{_REASON_FIXED}."),
    Query("query-hotpluggable-cpus", _REFUSED, "Slots for further vCPUs; query-cpus-fast reports the existing ones."),
    Query(
        "query-hv-balloon-status-report",
        _ATTACH,
        "Memory status of a Windows guest; after that, HV_BALLOON_STATUS_REPORT reports it.",
    ),
    Query("query-iothreads", _EVENT, "Thread ids of the I/O threads, for their CPU time in /proc."),
    Query("query-jobs", _EVENT, "Status and progress of jobs; polled while one runs."),
    Query("query-kvm", _EVENT, "Whether KVM runs the guest."),
    Query("query-machines", _REFUSED, f"{_REASON_LOADS_MODULES}."),
    Query("query-memdev", _EVENT, "Memory backends and their host nodes, for the inventory."),
    Query("query-memory-devices", _EVENT, "Memory devices that were plugged in."),
    Query("query-memory-size-summary", _EVENT, "Size of the guest's memory."),
    Query("query-mice", _REFUSED, "Mouse devices of the guest, for displays only."),
    Query(
        "query-migrate",
        _EVENT,
        "Progress of a migration; polled while one runs, or at an interval if QEMU sends no MIGRATION events.",
    ),
    Query("query-migrate-cache-size", _REFUSED, "The result of query-migrate has the cache size, too (until 5.2)."),
    Query("query-migrate-capabilities", _ATTACH, "Whether MIGRATION events are on."),
    Query("query-migrate-parameters", _REFUSED, "Parameters that the manager set; query-migrate reports their effect."),
    Query("query-migrationthreads", _REFUSED, "The kernel reports the threads, too, at no cost to QEMU (7.2 to 11.0)."),
    Query("query-name", _ATTACH, "Name of the VM."),
    Query(
        "query-named-block-nodes",
        _EVENT,
        "Layers of disks. The command accesses the storage, which can hang. So it is sent rarely, and never while the storage does "
        "not answer.",
    ),
    Query("query-pci", _EVENT, "PCI devices, for the inventory."),
    Query("query-pr-managers", _REFUSED, "PR_MANAGER_STATUS_CHANGED reports each relevant change."),
    Query("query-qmp-schema", _REFUSED, "A quarter of a megabyte; query-commands has all that the agent needs."),
    Query("query-replay", _REFUSED, "For debugging a recorded run."),
    Query("query-rocker*", _REFUSED, "Describes an emulated network switch that only tests use."),
    Query(
        "query-rx-filter",
        _REFUSED,
        "Re-arms NIC_RX_FILTER_CHANGED, an event that a manager may depend on.",
    ),
    Query("query-s390x-cpu-polarization", _REFUSED, "CPU_POLARIZATION_CHANGE reports each change."),
    Query("query-sev*", _REFUSED, f"{_REASON_CONFIDENTIAL}."),
    Query("query-sgx*", _REFUSED, f"{_REASON_CONFIDENTIAL}."),
    Query("query-spice", _EVENT, "The SPICE display and its clients."),
    Query(
        "query-stats",
        _POLLED,
        "KVM's statistics, at a longer interval: the command lists their names, so QEMU takes long to read it.",
    ),
    Query("query-stats-schemas", _REFUSED, "Units of KVM's statistics; the agent has a table of its own."),
    Query("query-status", _EVENT, "Run state of the VM."),
    Query("query-target", _REFUSED, f"{_REASON_FIXED}."),
    Query("query-tpm", _ATTACH, "TPM devices, for the inventory."),
    Query("query-tpm-models", _REFUSED, f"{_REASON_FIXED}."),
    Query("query-tpm-types", _REFUSED, f"{_REASON_FIXED}."),
    Query("query-uuid", _ATTACH, "UUID of the VM."),
    Query("query-vcpu-dirty-limit", _ATTACH, "Dirty limits of the vCPUs; polled while one is set."),
    Query(
        "query-version",
        _ATTACH,
        "Version of QEMU, over libvirt with passthrough. On other connections, the greeting has the version.",
    ),
    Query("query-vm-generation-id", _REFUSED, "For the guest, which uses the id to detect that it was cloned."),
    Query("query-vnc", _REFUSED, "Reports one display only; query-vnc-servers reports all."),
    Query("query-vnc-servers", _EVENT, "VNC displays and their clients."),
    Query("query-xen-replication-status", _REFUSED, "For the manager of a Xen guest's replication."),
    Query(
        "query-yank",
        QueryTrigger.STALLED,
        "Shows whether the whole process hangs: QEMU replies even while only its main loop hangs.",
    ),
    Query("x-query-*", _REFUSED, "Text for debugging QEMU, in an unstable format."),
    Query(
        "x-query-virtio-queue-status",
        QueryTrigger.ALLOWED,
        "Requests in flight of a virtio disk that completes none, if `allow.virtio_queues` is on. The command would stop the queue "
        "of a vhost device, so it is sent only for devices of the type `virtio-blk-device`.",
    ),
)


_BY_NAME: Mapping[str, Query] = {row.name: row for row in QUERIES}


def find_query(name: str) -> Query | None:
    """Return the row of a query; None for an unknown query."""
    return _BY_NAME.get(name) or next(
        (r for r in QUERIES if r.name.endswith("*") and name.startswith(r.name[:-1])), None
    )
