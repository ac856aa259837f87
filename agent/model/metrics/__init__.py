"""The metrics table: one row for each field that the agent reads from QEMU and from the host's kernel.

Start at `runstate`, a short part of the table. One row defines the record's field, the Prometheus series, the JSON schema's property and
the line in docs/reference/metrics.md. Paths and units are those in QEMU's qapi/, 2.6 to 11.1. The help text names the QEMU version of a
field that is newer than 2.6.
"""

from agent.model.family import Family
from agent.model.metrics import (
    block,
    block_layers,
    block_stall,
    guest,
    host,
    host_resources,
    identity,
    inventory,
    jobs,
    kvm,
    memory,
    migration,
    pool,
    runstate,
)

TRANSITION_FAMILIES = (migration.MIGRATION_ENDED,)
"""Families whose records, `qemu.<name>`, report a change that a collector derived from two polls. They have no series."""

_PARTS = (
    block,
    block_layers,
    block_stall,
    pool,
    jobs,
    migration,
    memory,
    kvm,
    guest,
    inventory,
    runstate,
    host,
    host_resources,
    identity,
)

FAMILIES = tuple(
    family
    for part in _PARTS
    for family in vars(part).values()
    if isinstance(family, Family) and family not in TRANSITION_FAMILIES
)
"""Every family of samples, in the order of the files."""
