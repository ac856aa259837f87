"""Whether the guest runs."""

from agent.model.family import FLAG, GAUGE, STATE, Family, Field

RUNSTATE = Family(
    "runstate",
    "query-status",
    "Whether the guest runs, and if not, why.",
    (),
    (
        Field("status", "status", STATE, "QEMU's RunState: running, paused, io-error, guest-panicked, inmigrate, ..."),
        Field("running", "running", FLAG, "Whether the vCPUs run."),
        Field(
            "since",
            "since_timestamp_seconds",
            GAUGE,
            "Since when the agent has seen it so; at attach it may have been so for longer.",
        ),
    ),
    on_change=True,
)
