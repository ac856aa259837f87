"""Run state of a VM."""

from agent.model.family import FLAG, GAUGE, STATE, Family, Field

RUNSTATE = Family(
    "runstate",
    "query-status",
    "Run state of the VM.",
    (),
    (
        Field("status", "status", STATE, "QEMU's RunState: running, paused, io-error, guest-panicked, inmigrate, ..."),
        Field("running", "running", FLAG, "Whether the vCPUs run."),
        Field(
            "since",
            "since_timestamp_seconds",
            GAUGE,
            "Time since which the agent has seen this status, in seconds since the epoch; before the attach it is not known.",
        ),
    ),
    on_change=True,
)
