"""Who a VM is, for people and for joins."""

from agent.model.family import TEXT, Family, Field, Kind

ABOUT = Family(
    "about",
    "asked at attach",
    "What a VM is; labels of the series qemu_vm_info.",
    (),
    (
        Field("machine", "machine", TEXT, "Its machine type (qom-get: type of /machine)."),
        Field("accelerator", "accelerator", TEXT, "What runs its vCPUs: kvm, or other (query-kvm)."),
        Field("pid", "pid", TEXT, "Its process' id on this host; absent where that is not known."),
        Field("process", "process_unknown", TEXT, "Why its process is not known; absent where it is."),
        Field("labels", "labels", Kind.DETAIL, "What its manager says of it and the config chose (labels)."),
    ),
    on_change=True,
    host_only=True,
)
