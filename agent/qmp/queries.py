"""The query table: one row for each `query-*` command of QEMU 2.6 to 11.1, with its policy and the reason.

agent/qmp/commands.py permits every command here whose row does not refuse it, and no other `query-*` command. A test compares the rows
with the commands that the collectors send. Before you change a row, find out what the command does to a guest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class QueryPolicy(StrEnum):
    """When the agent sends a query."""

    POLLED = "at an interval"
    EVENT = "after an event"
    """Also at attach and at each resync."""
    ATTACH = "at attach"
    """Also at each resync."""
    BUILD = "once per build"
    """On the first VM that runs this build of QEMU."""
    STALLED = "while stalled"
    """Out of band."""
    REFUSED = "never"
    """The agent cannot send it."""


@dataclass(frozen=True, slots=True)
class Query:
    """One row.

    Attributes:
        name: the command's name in QEMU; a trailing `*` matches every command with that prefix.
        policy: when the agent sends it.
        reason: what it is for, or why the agent does not send it.
    """

    name: str
    policy: QueryPolicy
    reason: str


_POLLED, _EVENT, _ATTACH, _NO = QueryPolicy.POLLED, QueryPolicy.EVENT, QueryPolicy.ATTACH, QueryPolicy.REFUSED

_FIXED = "Describes the build or the command line of QEMU, which does not change"
_MODULES = "Lists types, which loads modules: this can crash a QEMU whose package was upgraded"
_CPU_MODELS = "Creates vCPU models to inspect them, for the manager that starts or moves a VM"
_SEALED = "Confidential computing, for the launch or attestation of the guest"

ROWS = (
    Query(
        "query-accelerators", _NO, "Replaces query-kvm since 10.2; query-kvm exists in every version and is shorter."
    ),
    Query("query-acpi-ospm-status", _NO, "ACPI_DEVICE_OST reports the same after each change."),
    Query("query-audiodevs", _NO, f"{_FIXED}."),
    Query("query-balloon", _EVENT, "Size of the balloon; BALLOON_CHANGE reports it, too."),
    Query(
        "query-block",
        _EVENT,
        "Throttle limits, trays, I/O status. Accesses the storage, which can hang, so it is sent rarely.",
    ),
    Query(
        "query-block-exports",
        _NO,
        "An export belongs to the manager that created it; BLOCK_EXPORT_DELETED reports its end.",
    ),
    Query("query-block-jobs", _EVENT, "Limits, pauses and errors of block jobs; polled while one runs."),
    Query(
        "query-blockstats",
        _POLLED,
        "I/O statistics of each disk: the only command that a quiet VM receives at every poll.",
    ),
    Query(
        "query-chardev",
        _EVENT,
        "Consoles, serial ports and monitors, for the inventory, and whether the guest agent is connected.",
    ),
    Query("query-chardev-backends", _NO, f"{_FIXED}."),
    Query("query-colo-status", _NO, "For the manager of the replication; COLO_EXIT reports its end."),
    Query(
        "query-command-line-options", _NO, "Describes the command line of this build, for management; loads modules."
    ),
    Query("query-commands", QueryPolicy.BUILD, "Names of the supported commands, so that the agent sends no others."),
    Query("query-cpu-definitions", _NO, f"{_MODULES}."),
    Query("query-cpu-model-baseline", _NO, f"{_CPU_MODELS}."),
    Query("query-cpu-model-comparison", _NO, f"{_CPU_MODELS}."),
    Query("query-cpu-model-expansion", _NO, f"{_CPU_MODELS}."),
    Query("query-cpus", _NO, "Interrupts every vCPU (until 5.2)."),
    Query("query-cpus-fast", _EVENT, "Threads of the vCPUs, whose CPU time the kernel reports; interrupts nothing."),
    Query("query-cryptodev", _NO, f"{_FIXED}."),
    Query("query-current-machine", _NO, "A shorter command, qom-get, returns the machine type."),
    Query(
        "query-dirty-rate",
        _ATTACH,
        "Result of another client's measurement; polled during a measurement. A measurement is a change.",
    ),
    Query("query-display-options", _NO, f"{_FIXED}."),
    Query("query-dump", _EVENT, "Progress of a dump of the guest's memory."),
    Query("query-dump-guest-memory-capability", _NO, f"{_FIXED}."),
    Query("query-events", _NO, "Names of events, which the agent's own table has (until 5.2)."),
    Query("query-fdsets", _NO, "File descriptors that a manager passed, for its own use."),
    Query("query-firmware-log", _NO, "Reads a megabyte of the guest's memory."),
    Query("query-gic-capabilities", _NO, f"{_FIXED}."),
    Query("query-hotpluggable-cpus", _NO, "Slots for further vCPUs; query-cpus-fast reports the existing ones."),
    Query(
        "query-hv-balloon-status-report",
        _ATTACH,
        "Memory status of a Windows guest; after that, HV_BALLOON_STATUS_REPORT reports it.",
    ),
    Query("query-iothreads", _EVENT, "I/O threads, whose CPU time the kernel reports."),
    Query("query-jobs", _EVENT, "Status and progress of jobs; polled while one runs."),
    Query("query-kvm", _EVENT, "Whether KVM runs the guest."),
    Query("query-machines", _NO, f"{_MODULES}."),
    Query("query-memdev", _EVENT, "Memory backends and their host nodes, for the inventory."),
    Query("query-memory-devices", _EVENT, "Memory devices that were plugged in."),
    Query("query-memory-size-summary", _EVENT, "Size of the guest's memory."),
    Query("query-mice", _NO, "Mouse devices of the guest, for displays only."),
    Query(
        "query-migrate",
        _EVENT,
        "Everything about a migration, polled while one runs; at an interval without migration events.",
    ),
    Query("query-migrate-cache-size", _NO, "Also in query-migrate (until 5.2)."),
    Query("query-migrate-capabilities", _ATTACH, "Whether MIGRATION events are on."),
    Query("query-migrate-parameters", _NO, "Parameters that the manager set; query-migrate reports their effect."),
    Query("query-migrationthreads", _NO, "The kernel reports on threads without any cost for QEMU (7.2 to 11.0)."),
    Query("query-name", _ATTACH, "Name of the VM."),
    Query(
        "query-named-block-nodes",
        _EVENT,
        "Layers of disks. Accesses the storage, which can hang, so it is sent rarely.",
    ),
    Query("query-pci", _EVENT, "PCI devices, for the inventory."),
    Query("query-pr-managers", _NO, "PR_MANAGER_STATUS_CHANGED reports each relevant change."),
    Query("query-qmp-schema", _NO, "A quarter of a megabyte; query-commands has all that the agent needs."),
    Query("query-replay", _NO, "For debugging a recorded run."),
    Query("query-rocker*", _NO, "A switch for tests, which no guest uses."),
    Query(
        "query-rx-filter",
        _NO,
        "Re-arms NIC_RX_FILTER_CHANGED, an event that a manager may depend on.",
    ),
    Query("query-s390x-cpu-polarization", _NO, "CPU_POLARIZATION_CHANGE reports it."),
    Query("query-sev*", _NO, f"{_SEALED}."),
    Query("query-sgx*", _NO, f"{_SEALED}."),
    Query("query-spice", _EVENT, "The SPICE display and its clients."),
    Query(
        "query-stats",
        _POLLED,
        "KVM's statistics, by name and at an interval of their own, because the names make the command long.",
    ),
    Query("query-stats-schemas", _NO, "Units of KVM's statistics, which the agent's own table has."),
    Query("query-status", _EVENT, "Run state of the VM."),
    Query("query-target", _NO, f"{_FIXED}."),
    Query("query-tpm", _ATTACH, "TPMs."),
    Query("query-tpm-models", _NO, f"{_FIXED}."),
    Query("query-tpm-types", _NO, f"{_FIXED}."),
    Query("query-uuid", _ATTACH, "UUID of the VM."),
    Query("query-vcpu-dirty-limit", _ATTACH, "Dirty limits of the vCPUs; polled while one is set."),
    Query("query-version", _NO, "The greeting has it."),
    Query("query-vm-generation-id", _NO, "For the guest, which detects by it that it was cloned."),
    Query("query-vnc", _NO, "Reports one display only; query-vnc-servers reports all."),
    Query("query-vnc-servers", _EVENT, "VNC displays and their clients."),
    Query("query-xen-replication-status", _NO, "For the manager of a Xen guest's replication."),
    Query("query-yank", QueryPolicy.STALLED, "QEMU replies while its main loop hangs, which shows which part hangs."),
    Query("x-query-*", _NO, "Text for debugging QEMU, in an unstable format."),
)


_BY_NAME: Mapping[str, Query] = {row.name: row for row in ROWS}


def query_of(name: str) -> Query | None:
    """Return the row of a query, or None if it is unknown."""
    return _BY_NAME.get(name) or next((r for r in ROWS if r.name.endswith("*") and name.startswith(r.name[:-1])), None)
