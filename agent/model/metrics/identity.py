"""Identity of a VM, for operators and for joins in PromQL."""

from agent.model.family import TEXT, Family, Field, FieldKind

IDENTITY = Family(
    "identity",
    "read at attach",
    "Identity of a VM. The metric qemu_vm_info has these values as labels.",
    (),
    (
        Field("machine", "machine", TEXT, "Machine type (qom-get: type of /machine)."),
        Field(
            "accelerator",
            "accelerator",
            TEXT,
            "Accelerator of the vCPUs: `kvm`, or `other` for any other accelerator (query-kvm).",
        ),
        Field("pid", "pid", TEXT, "Process id on the host; absent if the process could not be identified."),
        Field(
            "process",
            "process_unknown_reason",
            TEXT,
            "Reason why the process could not be identified; absent if it was identified.",
        ),
        Field("labels", "labels", FieldKind.DETAIL, "Metadata from the VM's manager, selected by the config (labels)."),
    ),
    on_change=True,
    from_host_or_agent=True,
)
