"""Fields of the records in the state topic: the current state of each VM, of each firing alert and of the host. Pure.

The topic is compacted: Kafka keeps the last record of each key. A key includes the host, so a host never replaces or deletes another
host's state of the same VM. A tombstone, which is a message without a value, deletes its key.
"""

from dataclasses import dataclass

import orjson

from agent.model.family import DETAIL, FLAG, GAUGE, TEXT, Family, Field
from agent.model.record import Vm, sanitize

STATE_PREFIX = "qemu.state."
"""Prefix of the record types in the state topic."""


@dataclass(frozen=True, slots=True)
class StateRecordEntity(Vm):
    """The source of a state record: a VM, an alert or the host.

    Attributes:
        path: `vms/<uuid>` or `alerts/<fingerprint>`; empty for the host. The record's source and key are `/hosts/<host>/state/<path>`.
    """

    path: str = ""

    def __post_init__(self) -> None:
        host = Vm(self.host, "", "")
        source = f"{host.source}/state/{self.path}".rstrip("/")
        envelope = {"specversion": "1.0", "source": source, "host": sanitize(self.host), "partitionkey": source}
        if self.uuid:
            envelope |= {"vmuuid": self.uuid, "vmname": sanitize(self.name)}
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "key", source)
        object.__setattr__(self, "json_prefix", orjson.dumps(envelope)[:-1])
        object.__setattr__(self, "_hash", hash((source, self.uuid, self.name)))

    def __hash__(self) -> int:
        return self._hash


VM_STATE = Family(
    "state.vm",
    "the agent's latest polls",
    "The current state of a VM on this host. A tombstone follows when the VM ends or migrates away, or a minute after its monitor is lost.",
    (),
    (
        Field("monitor", "monitor", TEXT, "Address of the VM's monitor."),
        Field(
            "monitor.state",
            "monitor_state",
            TEXT,
            "State of the monitor: `up`, `stalled`, or another state if the VM may have ended. In another state, the other fields "
            "are out of date.",
        ),
        Field("qemu_version", "qemu_version", TEXT, "Version of QEMU."),
        Field("pid", "pid", TEXT, "Process id on the host; absent if the process could not be identified."),
        Field("machine", "machine", TEXT, "Machine type."),
        Field("accelerator", "accelerator", TEXT, "`kvm`, or `other`."),
        Field("labels", "labels", DETAIL, "Metadata from the VM's manager, selected by the config."),
        Field("runstate.status", "run_state", TEXT, "QEMU's RunState."),
        Field("runstate.running", "running", FLAG, "Whether the vCPUs run."),
        Field(
            "runstate.since", "run_state_since_timestamp_seconds", GAUGE, "Time of the first poll with this run state."
        ),
        Field(
            "disks",
            "disks",
            DETAIL,
            "Each disk: `device`, `driver`, `path`, `size_bytes`, `read_only`, what limits its growth (`limited_by`), the limit in bytes "
            "(`limit_bytes`, absent for a pool), and the `pool` with its `pool_kind`. At most 256 disks.",
        ),
        Field(
            "guest_agent.connected", "guest_agent_connected", FLAG, "Whether the guest has opened its agent's channel."
        ),
        Field(
            "guest_agent.state",
            "guest_agent_state",
            TEXT,
            "State of the queries of the guest agent, if they are enabled.",
        ),
        Field(
            "migration",
            "last_migration",
            DETAIL,
            "The last migration that the agent observed: `outcome`, `role`, `ended_timestamp_seconds`, `elapsed_seconds` and "
            "`downtime_seconds`.",
        ),
    ),
)

ALERT_STATE = Family(
    "state.alert",
    "the alert's record",
    "A firing alert. The data is that of the alert's record when the alert began to fire. A tombstone follows when the alert is resolved.",
    (),
    (),
)

HOST_STATE = Family(
    "state.host",
    "the agent itself",
    "The agent of a host. This state is never deleted. If the state is `running` and no heartbeats arrive, the host is silent.",
    (),
    (
        Field("state", "state", TEXT, "`running`, or `stopped` if the agent was stopped on request."),
        Field("version", "version", TEXT, "Version of the agent."),
        Field("config", "config_digest", TEXT, "Digest of the config in use, as in the heartbeats."),
        Field("run", "run", TEXT, "Identity of this run of the agent: the first part of the ids of its records."),
        Field(
            "started",
            "started_timestamp_seconds",
            GAUGE,
            "Time at which the agent started, in seconds since the epoch.",
        ),
        Field("interval", "heartbeat_interval_seconds", GAUGE, "Time between two heartbeats in seconds."),
        Field(
            "pools",
            "pools",
            DETAIL,
            "Each pool under the VMs' images: `pool`, `kind`, `type` and whether it is `responsive`. At most 256 pools.",
        ),
    ),
)

STATES = (HOST_STATE, VM_STATE, ALERT_STATE)
"""The types of the records in the state topic, each with its fields. The type of a record is `qemu.<name>`.

These records are not exported to Prometheus.
"""
