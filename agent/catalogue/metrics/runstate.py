"""Whether the guest runs."""

from agent.catalogue.model import Family, Field, Kind

FLAG = Kind.FLAG
STATE = Kind.STATE

RUNSTATE = Family(
    "runstate",
    "query-status",
    "Whether the guest runs, and if not, why.",
    (),
    (
        Field("status", "status", STATE, "QEMU's RunState: running, paused, io-error, guest-panicked, inmigrate, ..."),
        Field("running", "running", FLAG, "Whether the vCPUs run."),
    ),
    on_change=True,
)
