"""The metrics table: one row for each field that the agent reads from QEMU and from the host's kernel.

One row defines the record's field, the Prometheus series, the JSON schema's property and the line in docs/metrics.md. Paths and units are
those of QEMU's qapi/, 2.6 to 11.1. The help text names the QEMU version of a field that is newer than 2.6.
"""

from agent.model.family import Family
from agent.model.metrics import (
    about,
    block,
    block_layers,
    guest,
    host,
    inventory,
    jobs,
    kvm,
    memory,
    migration,
    pool,
    runstate,
)

TRANSITIONS = (migration.MIGRATION_ENDED,)
"""Families whose records, `qemu.<name>`, report a change that a collector derived from two polls. They have no series."""

_PARTS = (block, block_layers, pool, jobs, migration, memory, kvm, guest, inventory, runstate, host, about)

FAMILIES = tuple(
    family
    for part in _PARTS
    for family in vars(part).values()
    if isinstance(family, Family) and family not in TRANSITIONS
)
"""Every family of samples, in the order of the files."""
