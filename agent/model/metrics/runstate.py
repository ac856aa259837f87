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
            "Time of the first poll with this status, in seconds since the epoch. The status may have begun before the agent attached.",
        ),
    ),
    on_change=True,
)
