"""The metrics table: one `Field` for each value that the agent reads from QEMU and from the host's kernel.

Start at `runstate`, a short part of the table. A `Field` defines the record's field, the Prometheus metric, the JSON schema's property and
the line in docs/reference/metrics.md. Paths and units are as in QEMU's qapi/, 2.6 to 11.1. If a field is newer than QEMU 2.6, the help
text has the version that added the field.
"""

from agent.model.family import Family
from agent.model.metrics import (
    block,
    block_layers,
    block_stall,
    devices_and_displays,
    guest,
    host_resources,
    identity,
    jobs,
    kvm,
    memory,
    migration,
    runstate,
    storage_pool,
    vm_process_and_interfaces,
)

TRANSITION_FAMILIES = (migration.MIGRATION_ENDED,)
"""Families of the records about a change that a collector found between two polls. The type of a record is `qemu.<name>`.

These families are not exported to Prometheus.
"""

_MODULES = (
    block,
    block_layers,
    block_stall,
    storage_pool,
    jobs,
    migration,
    memory,
    kvm,
    guest,
    devices_and_displays,
    runstate,
    vm_process_and_interfaces,
    host_resources,
    identity,
)

FAMILIES = tuple(
    family
    for module in _MODULES
    for family in vars(module).values()
    if isinstance(family, Family) and family not in TRANSITION_FAMILIES
)
"""Every family of samples, in the order of the modules."""
