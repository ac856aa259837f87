"""Fields of the records about the agent itself: `qemu.agent.started`, `qemu.agent.heartbeat` and `qemu.agent.stopping`. Pure.

Each `Field` defines a field of the record, a property in the JSON schema and a text in docs/reference/records.md.
"""

from agent.model.family import COUNTER, GAUGE, TEXT, Family, Field

_SOURCE = "the agent itself"

_RUN_FIELDS = (
    Field("version", "version", TEXT, "Version of the agent."),
    Field(
        "config",
        "config_digest",
        TEXT,
        "First 16 hexadecimal digits of the SHA-256 of the config in use, with all defaults. The digest changes when a reload changes the "
        "config.",
    ),
    Field("run", "run", TEXT, "Identity of this run of the agent: the first part of the ids of its records."),
    Field(
        "started", "started_timestamp_seconds", GAUGE, "Time at which the agent started, in seconds since the epoch."
    ),
    Field("interval", "heartbeat_interval_seconds", GAUGE, "Time between two heartbeats in seconds."),
)

QUEUE_NAMES = ("alerts", "events", "samples")
"""Names of the queues of records that wait for delivery."""


def _queue_fields(queue: str) -> tuple[Field, ...]:
    return (
        Field(
            f"{queue}.records", f"{queue}_waiting_records", GAUGE, f"Number of waiting records in the queue {queue}."
        ),
        Field(
            f"{queue}.oldest",
            f"{queue}_oldest_waiting_timestamp_seconds",
            GAUGE,
            "Time of the oldest waiting record in seconds since the epoch. Absent if no record waits.",
        ),
        Field(
            f"{queue}.delivered",
            f"{queue}_last_delivered_id",
            TEXT,
            "Id of the last delivered record. All records of the queue with lower ids were delivered or dropped. Absent before the "
            "first delivery.",
        ),
        Field(
            f"{queue}.dropped",
            f"{queue}_dropped_records_total",
            COUNTER,
            "Number of records that were dropped since the agent started, for any reason.",
        ),
    )


STARTED = Family(
    "agent.started",
    _SOURCE,
    "The agent started. Heartbeats follow, even on a host without VMs.",
    (),
    (
        *_RUN_FIELDS,
        Field(
            "previous",
            "previous_run",
            TEXT,
            "How the previous run ended: `stopped` on request, or `died`. Absent if unknown.",
        ),
    ),
)

HEARTBEAT = Family(
    "agent.heartbeat",
    _SOURCE,
    "The agent is alive. A host is silent if its newest heartbeat is older than three intervals, unless `qemu.agent.stopping` followed.",
    (),
    (
        *_RUN_FIELDS,
        Field("vms", "vms", GAUGE, "Number of attached VMs."),
        Field("vms.running", "vms_running", GAUGE, "Number of attached VMs whose vCPUs run."),
        Field(
            "vms.stopped", "vms_stopped", GAUGE, "Number of attached VMs whose vCPUs are stopped, such as paused VMs."
        ),
        Field("vms.unknown", "vms_unknown", GAUGE, "Number of attached VMs whose run state is not known yet."),
        Field("vms.stalled", "vms_stalled", GAUGE, "Number of attached VMs that do not respond."),
        Field("monitors", "monitors", GAUGE, "Number of monitors in any state, such as busy or gone."),
        Field("alerts", "firing_alerts", GAUGE, "Number of firing alerts."),
        *(field for queue in QUEUE_NAMES for field in _queue_fields(queue)),
        Field(
            "events.dropped",
            "unrecorded_events_total",
            COUNTER,
            "Number of events of QEMU that were dropped before they became records, since the agent started.",
        ),
    ),
)

STOPPING = Family(
    "agent.stopping",
    _SOURCE,
    "The agent stops on request. This is the last record of the run. No heartbeat follows until the next `qemu.agent.started`.",
    (),
    _RUN_FIELDS,
)

AGENT_LIFECYCLE = (STARTED, HEARTBEAT, STOPPING)
"""The types of the records about the agent itself, each with its fields. The type of a record is `qemu.<name>`.

These records are not exported to Prometheus.
"""
