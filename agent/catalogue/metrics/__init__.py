"""Every field that we take out of QEMU and the host's kernel, a row each, in a file for each part of a VM.

One row makes the record's field, the Prometheus series, the JSON schema's property and the line in docs/metrics.md. Paths and units are
those of QEMU's qapi/, 2.6 to 11.1; a field younger than 2.6 says so in its help.
"""

from agent.catalogue.metrics.about import ABOUT
from agent.catalogue.metrics.block import (
    BLOCK,
    BLOCK_BACKING,
    BLOCK_BITMAP,
    BLOCK_DEVICE,
    BLOCK_LAYER,
    BLOCK_SPACE,
    BLOCK_TIMED,
)
from agent.catalogue.metrics.host import CGROUP, IOTHREAD, NET, PROCESS, VCPU
from agent.catalogue.metrics.inventory import INVENTORY, SPICE, TPM, VNC
from agent.catalogue.metrics.jobs import JOB
from agent.catalogue.metrics.kvm import KVM, KVM_VCPU
from agent.catalogue.metrics.memory import (
    BALLOON,
    DIRTY_RATE,
    DUMP,
    GUEST_MEMORY,
    HV_BALLOON,
    MEMORY,
    MEMORY_DEVICE,
    VCPU_DIRTY,
)
from agent.catalogue.metrics.migration import MIGRATION, MIGRATION_ENDED
from agent.catalogue.metrics.runstate import RUNSTATE

FAMILIES = (
    BLOCK,
    BLOCK_BACKING,
    BLOCK_LAYER,
    BLOCK_BITMAP,
    BLOCK_DEVICE,
    BLOCK_TIMED,
    BLOCK_SPACE,
    JOB,
    MIGRATION,
    BALLOON,
    GUEST_MEMORY,
    HV_BALLOON,
    MEMORY,
    MEMORY_DEVICE,
    DIRTY_RATE,
    VCPU_DIRTY,
    DUMP,
    KVM,
    KVM_VCPU,
    INVENTORY,
    TPM,
    VNC,
    SPICE,
    RUNSTATE,
    VCPU,
    IOTHREAD,
    PROCESS,
    CGROUP,
    NET,
    ABOUT,
)

NOTICES = (MIGRATION_ENDED,)
"""What comes to pass once: records `qemu.<name>` with no series."""

__all__ = [
    "ABOUT",
    "BALLOON",
    "BLOCK",
    "BLOCK_BACKING",
    "BLOCK_BITMAP",
    "BLOCK_DEVICE",
    "BLOCK_LAYER",
    "BLOCK_SPACE",
    "BLOCK_TIMED",
    "CGROUP",
    "DIRTY_RATE",
    "DUMP",
    "FAMILIES",
    "GUEST_MEMORY",
    "HV_BALLOON",
    "INVENTORY",
    "IOTHREAD",
    "JOB",
    "KVM",
    "KVM_VCPU",
    "MEMORY",
    "MEMORY_DEVICE",
    "MIGRATION",
    "MIGRATION_ENDED",
    "NET",
    "NOTICES",
    "PROCESS",
    "RUNSTATE",
    "SPICE",
    "TPM",
    "VCPU",
    "VCPU_DIRTY",
    "VNC",
]
