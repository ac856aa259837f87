"""Every field that we take out of QEMU and the host's kernel, a row each, in a file for each part of a VM.

One row makes the record's field, the Prometheus series, the JSON schema's property and the line in docs/metrics.md. Paths and units are
those of QEMU's qapi/, 2.6 to 11.1; a field younger than 2.6 says so in its help.
"""

from agent.model.family import Family
from agent.model.metrics import about, block, host, inventory, jobs, kvm, memory, migration, runstate

NOTICES = (migration.MIGRATION_ENDED,)
"""What comes to pass once: records `qemu.<name>` with no series."""

_PARTS = (block, jobs, migration, memory, kvm, inventory, runstate, host, about)

FAMILIES = tuple(
    family for part in _PARTS for family in vars(part).values() if isinstance(family, Family) and family not in NOTICES
)
"""All families of these files, in their order."""
