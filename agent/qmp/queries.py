"""Every question of QMP's, `query-*`, from QEMU 2.6 to 11.1, a row each: what becomes of it, and why.

What is not refused here may be sent, and nothing else that begins so: commands.py takes it from here. A test holds the rows to what is
asked. Before a row is changed: read what the question does to a guest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class QueryPolicy(StrEnum):
    """What becomes of a question."""

    POLLED = "polled"
    """By the clock."""
    EVENT = "asked after an event"
    """And at attach, and at each resync."""
    ATTACH = "asked at attach"
    """And at each resync."""
    BUILD = "asked once for each build"
    """Of the first VM that has it."""
    STALLED = "asked of one that stalls"
    """Out of band."""
    REFUSED = "refused"
    """Cannot be sent."""


@dataclass(frozen=True, slots=True)
class Query:
    """One row.

    Attributes:
        name: QEMU's name; one that ends in `*` stands for all that begin so.
        policy: what becomes of it.
        reason: what it is good for, or what speaks against it.
    """

    name: str
    policy: QueryPolicy
    reason: str


_POLLED, _EVENT, _ATTACH, _NO = QueryPolicy.POLLED, QueryPolicy.EVENT, QueryPolicy.ATTACH, QueryPolicy.REFUSED

_FIXED = "Says what QEMU was built or started with, not how the guest fares"
_MODULES = "Lists types, which loads modules: a QEMU whose package was upgraded under it can crash of that"
_CPU_MODELS = "Makes vCPU models to look at them, for whoever is to start or move a VM"
_SEALED = "Of confidential computing: for whoever launches or attests the guest"

ROWS = (
    Query("query-accelerators", _NO, "Since 10.2, in place of query-kvm, which all have and which is shorter."),
    Query("query-acpi-ospm-status", _NO, "ACPI_DEVICE_OST brings the same, when it changes."),
    Query("query-audiodevs", _NO, f"{_FIXED}."),
    Query("query-balloon", _EVENT, "The balloon's size, which BALLOON_CHANGE carries too."),
    Query(
        "query-block", _EVENT, "Throttle limits, trays, I/O status. Looks at the storage, which may hang: asked rarely."
    ),
    Query("query-block-exports", _NO, "An export is its manager's, who made it; BLOCK_EXPORT_DELETED tells its end."),
    Query("query-block-jobs", _EVENT, "Limits, pauses and errors of block jobs; followed while one runs."),
    Query("query-blockstats", _POLLED, "What each disk did: the one question that a quiet VM is asked."),
    Query("query-chardev", _EVENT, "Consoles, serial ports and monitors, for the inventory."),
    Query("query-chardev-backends", _NO, f"{_FIXED}."),
    Query("query-colo-status", _NO, "For whoever replicates the VM; COLO_EXIT tells the end of it."),
    Query("query-command-line-options", _NO, "Describes this build's command line, for management; loads modules."),
    Query("query-commands", QueryPolicy.BUILD, "What this QEMU understands, so that what it lacks is never asked."),
    Query("query-cpu-definitions", _NO, f"{_MODULES}."),
    Query("query-cpu-model-baseline", _NO, f"{_CPU_MODELS}."),
    Query("query-cpu-model-comparison", _NO, f"{_CPU_MODELS}."),
    Query("query-cpu-model-expansion", _NO, f"{_CPU_MODELS}."),
    Query("query-cpus", _NO, "Interrupts every vCPU (until 5.2)."),
    Query("query-cpus-fast", _EVENT, "The vCPUs' threads, whose time the kernel then tells; interrupts nothing."),
    Query("query-cryptodev", _NO, f"{_FIXED}."),
    Query("query-current-machine", _NO, "The machine's type is asked for by a shorter question, qom-get."),
    Query("query-dirty-rate", _ATTACH, "What another measured; polled while it is measured. To measure is a change."),
    Query("query-display-options", _NO, f"{_FIXED}."),
    Query("query-dump", _EVENT, "How far a dump of the guest's memory is."),
    Query("query-dump-guest-memory-capability", _NO, f"{_FIXED}."),
    Query("query-events", _NO, "Names of events, which are in our own table (until 5.2)."),
    Query("query-fdsets", _NO, "Files that a manager handed over: its own concern."),
    Query("query-firmware-log", _NO, "Reads a megabyte out of the guest's memory."),
    Query("query-gic-capabilities", _NO, f"{_FIXED}."),
    Query("query-hotpluggable-cpus", _NO, "What could be plugged in; query-cpus-fast tells what is."),
    Query(
        "query-hv-balloon-status-report", _ATTACH, "A Windows guest's memory; then HV_BALLOON_STATUS_REPORT carries it."
    ),
    Query("query-iothreads", _EVENT, "I/O threads, whose time the kernel then tells."),
    Query("query-jobs", _EVENT, "Jobs' states and progress; followed while one runs."),
    Query("query-kvm", _EVENT, "Whether it is KVM that runs the guest."),
    Query("query-machines", _NO, f"{_MODULES}."),
    Query("query-memdev", _EVENT, "Memory backends and their host nodes, for the inventory."),
    Query("query-memory-devices", _EVENT, "Memory that was plugged in."),
    Query("query-memory-size-summary", _EVENT, "How much memory the guest has."),
    Query("query-mice", _NO, "Which pointer a display moves is nobody's concern here."),
    Query("query-migrate", _EVENT, "All of a migration, followed while it moves; polled where its events are off."),
    Query("query-migrate-cache-size", _NO, "In query-migrate too (until 5.2)."),
    Query("query-migrate-capabilities", _ATTACH, "Whether MIGRATION events are on."),
    Query("query-migrate-parameters", _NO, "What the manager set; what came of it is in query-migrate."),
    Query("query-migrationthreads", _NO, "The kernel tells of threads, at no cost to QEMU (7.2 to 11.0)."),
    Query("query-name", _ATTACH, "Who it is."),
    Query("query-named-block-nodes", _EVENT, "Disks' layers. Looks at the storage, which may hang: asked rarely."),
    Query("query-pci", _EVENT, "The devices, for the inventory."),
    Query("query-pr-managers", _NO, "PR_MANAGER_STATUS_CHANGED tells when it matters."),
    Query("query-qmp-schema", _NO, "A quarter of a megabyte; query-commands says enough."),
    Query("query-replay", _NO, "For debugging a recorded run."),
    Query("query-rocker*", _NO, "A switch for tests, which no guest has."),
    Query(
        "query-rx-filter",
        _NO,
        "Not only a question: it has the guest's next change told again, which a manager may wait for.",
    ),
    Query("query-s390x-cpu-polarization", _NO, "CPU_POLARIZATION_CHANGE brings it."),
    Query("query-sev*", _NO, f"{_SEALED}."),
    Query("query-sgx*", _NO, f"{_SEALED}."),
    Query("query-spice", _EVENT, "The display, and who looks at it."),
    Query("query-stats", _POLLED, "KVM's own statistics, by name and at an interval of their own, for names are long."),
    Query("query-stats-schemas", _NO, "Units of KVM's statistics, which are in our own table."),
    Query("query-status", _EVENT, "Whether the guest runs."),
    Query("query-target", _NO, f"{_FIXED}."),
    Query("query-tpm", _ATTACH, "TPMs."),
    Query("query-tpm-models", _NO, f"{_FIXED}."),
    Query("query-tpm-types", _NO, f"{_FIXED}."),
    Query("query-uuid", _ATTACH, "Who it is."),
    Query("query-vcpu-dirty-limit", _ATTACH, "The vCPUs' dirty limits; polled where one is set."),
    Query("query-version", _NO, "It is in the greeting."),
    Query("query-vm-generation-id", _NO, "For the guest, which sees by it that it was cloned."),
    Query("query-vnc", _NO, "Tells of one display only; query-vnc-servers of all."),
    Query("query-vnc-servers", _EVENT, "The displays, and who looks at them."),
    Query("query-xen-replication-status", _NO, "For whoever replicates a Xen guest."),
    Query(
        "query-yank", QueryPolicy.STALLED, "Answered while QEMU's main loop is stuck: so it is known which part hangs."
    ),
    Query("x-query-*", _NO, "Texts for people who debug QEMU, with no promise that they stay as they are."),
)


_BY_NAME: Mapping[str, Query] = {row.name: row for row in ROWS}


def query_of(name: str) -> Query | None:
    """Return the row of a question, or None where nobody here has heard of it."""
    return _BY_NAME.get(name) or next((r for r in ROWS if r.name.endswith("*") and name.startswith(r.name[:-1])), None)
