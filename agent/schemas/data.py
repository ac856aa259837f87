"""JSON schemas of the member `data` of records, one schema for each record type. Pure."""

from collections.abc import Mapping
from typing import Any

from agent.alerts.catalogue import ALERT_CATALOGUE
from agent.alerts.disk_threshold_types import DetectedBy, LimitedBy
from agent.alerts.pool_alerts import GUESTS_STAND_STILL
from agent.alerts.pool_levels import PoolLevelMeasure
from agent.alerts.store import CUSTOM_TYPE
from agent.delivery.drops import DropReason
from agent.host.pools.base import PoolKind
from agent.model.agent_lifecycle_records import AGENT_LIFECYCLE
from agent.model.event_definition import EventCategory
from agent.model.family import Family, Field, FieldKind
from agent.model.metrics import FAMILIES, TRANSITION_FAMILIES
from agent.model.metrics.block import BLOCK_SPACE
from agent.model.metrics.storage_pool import POOL
from agent.model.schema_versions import EVENT_SCHEMA, schema_uri
from agent.model.state_topic_records import ALERT_STATE, STATES

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NONEMPTY_TEXT = {"type": "string", "minLength": 1}

_JSON_TYPES: dict[FieldKind, dict[str, Any]] = {
    FieldKind.COUNTER: {"type": "number", "minimum": 0},
    FieldKind.GAUGE: {"type": "number"},
    FieldKind.FLAG: {"type": "boolean"},
    FieldKind.STATE: {"type": "string"},
    FieldKind.HISTOGRAM: {
        "type": "object",
        "properties": {
            "boundaries_seconds": {"type": "array", "items": {"type": "number", "minimum": 0}},
            "counts": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "sum_seconds": {"type": "number", "minimum": 0},
        },
        "required": ["boundaries_seconds", "counts"],
        "additionalProperties": False,
    },
    FieldKind.NAME: {"type": "string"},
    FieldKind.TEXT: {"type": "string"},
    FieldKind.DETAIL: {},
}


def data_schemas() -> dict[str, dict[str, Any]]:
    """Return the schema of the data of each record type, by type. The schema of all events has the key EVENT_SCHEMA.

    The schemas accept only what this version of the agent sends.
    """
    return {EVENT_SCHEMA: _EVENT_DATA} | _schemas_by_type()


def to_published_data_schema(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a record type for consumers, with a URI. The schema permits fields that later versions of the agent add."""
    head = {"$schema": DIALECT, "$id": schema_uri(name), "title": f"Data of {name}"}
    return head | {key: value for key, value in schema.items() if key != "additionalProperties"}


def published_data_schemas() -> dict[str, dict[str, Any]]:
    """Return the schemas for consumers, by name."""
    return {name: to_published_data_schema(name, schema) for name, schema in sorted(data_schemas().items())}


def _schemas_by_type() -> dict[str, dict[str, Any]]:
    """Return the schema of `data` for each record type except events, because all events share one schema."""
    data_schemas = {family.type: _sample_schema(family) for family in FAMILIES if family is not BLOCK_SPACE}
    data_schemas |= {
        f"qemu.{family.name}": _sample_schema(family) for family in (*TRANSITION_FAMILIES, *AGENT_LIFECYCLE, *STATES)
    }
    data_schemas |= {
        f"qemu.vm.{change}": _object_schema(change_fields, required=needed)
        for change, (change_fields, needed) in LIFECYCLE_CHANGES.items()
    }
    alert_state = _object_schema(_ALERT_FIELDS, required=("alert", "state", "fingerprint"))
    data_schemas[f"qemu.{ALERT_STATE.name}"] = alert_state | {"additionalProperties": True}
    data_schemas["qemu.agent.records_dropped"] = _object_schema(
        _DROPPED_RECORDS_FIELDS, required=("reason", "queue", "records")
    )
    data_schemas["qemu.alert.write_threshold"] = _object_schema(
        _THRESHOLD_ALERT_FIELDS, required=("alert", "state", "fingerprint", "device", "level", "detected_by")
    )
    for alert, (properties, needed) in POOL_ALERTS.items():
        required = ("alert", "state", "fingerprint", "pool", "kind", *needed)
        data_schemas[f"qemu.alert.{alert}"] = _object_schema(
            _POOL_ALERT_FIELDS | {"alert": {"const": alert}} | properties, required=required
        )
    for alert in sorted({*ALERT_CATALOGUE, CUSTOM_TYPE} - {"write_threshold", *POOL_ALERTS}):
        name = NONEMPTY_TEXT if alert == CUSTOM_TYPE else {"const": alert}
        body = _object_schema(
            _ALERT_FIELDS | {"alert": name, "help": NONEMPTY_TEXT, "event": NONEMPTY_TEXT},
            required=("alert", "state", "fingerprint"),
        )
        data_schemas[f"qemu.alert.{alert}"] = body | {"additionalProperties": True}
    return data_schemas


def _object_schema(properties: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _sample_schema(family: Family) -> dict[str, Any]:
    properties: dict[str, Any] = dict.fromkeys(family.labels, NONEMPTY_TEXT)
    properties |= {field.name: _field_schema(family, field) for field in family.fields}
    return {"description": family.help, **_object_schema(properties, family.labels)}


def _field_schema(family: Family, field: Field) -> dict[str, Any]:
    return {**_JSON_TYPES[field.kind], "description": f"{field.help} ({family.source}: {field.path})"}


_EVENT_DATA = _object_schema(
    {
        "event": NONEMPTY_TEXT,
        "category": {"enum": [c.value for c in EventCategory]},
        "qemu": {
            "type": "object",
            "description": "QEMU's own data, unchanged; for coalesced events, the data of the last event.",
        },
        "count": {
            "type": "integer",
            "minimum": 2,
            "description": "Number of coalesced events; absent for a single event.",
        },
        "first_timestamp_seconds": {"type": "number", "description": "Time of the first coalesced event."},
        "last_timestamp_seconds": {"type": "number", "description": "Time of the last coalesced event."},
    },
    required=("event", "category", "qemu"),
)

_ALERT_FIELDS: dict[str, Any] = {
    "alert": NONEMPTY_TEXT,
    "state": {"enum": ["firing", "resolved"]},
    "fingerprint": {
        "type": "string",
        "pattern": "^[0-9a-f]{16}$",
        "description": "Identity of the alert, stable across restarts.",
    },
    "since_timestamp_seconds": {"type": "number", "description": "Time at which the alert began to fire."},
    "resolved_by": {
        "type": "string",
        "description": "What resolved the alert: an event such as RESUME, running, run_state, space, level_gone, replaced, repaired, "
        "unplugged, responsive, pool_unused, unmounted, thawed, clock, disabled, time, migration, migrated, located, uuid_unique, "
        "connected, condition, covered (by another alert), subject_gone, silenced, rule_gone or vm_gone.",
    },
}

_THRESHOLD_ALERT_FIELDS = _ALERT_FIELDS | {
    "alert": {"const": "write_threshold"},
    "level": {
        **NONEMPTY_TEXT,
        "description": "The level as in the config; `threshold N` for a threshold of another client.",
    },
    "detected_by": {
        "enum": [detected_by.value for detected_by in DetectedBy],
        "description": "How the agent detected that the level was exceeded.",
    },
    "owner": {
        "enum": ["agent", "other"],
        "description": "Who set the level: the agent's config, or another client of QEMU.",
    },
    "device": NONEMPTY_TEXT,
    "layer": {"enum": ["format", "storage", "backing", "node"]},
    "node": {"type": "string"},
    "path": {"type": "string"},
    "measure": {
        "enum": ["offset", "allocated"],
        "description": "The compared value: the highest written offset, or the allocated size.",
    },
    "limited_by": {
        "enum": [limit.value for limit in LimitedBy],
        "description": "What limits the growth of the disk.",
    },
    "pool": {"type": "string", "description": "Pool of the image."},
    "level_bytes": {"type": "integer"},
    "exceeded_by_bytes": {"type": "integer"},
    "used_bytes": {"type": "integer"},
    "limit_bytes": {"type": "integer"},
    "free_bytes": {"type": "integer"},
    "growth_bytes_per_second": {"type": "number"},
    "time_to_full_seconds": {"type": "number"},
}

_POOL_ALERT_FIELDS = (
    _ALERT_FIELDS
    | {"pool": NONEMPTY_TEXT, "kind": {"enum": [kind.value for kind in PoolKind]}}
    | {
        field.name: {**_JSON_TYPES[field.kind], "description": field.help}
        for field in POOL.fields
        if field.name not in ("key", "responsive", "provisioned_bytes", "commitment_ratio", "images", "exceeded_levels")
    }
)

POOL_ALERTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "pool_filling": (
        {
            "level": {**NONEMPTY_TEXT, "description": "The level as in the config."},
            "measure": {
                "enum": [measure.value for measure in PoolLevelMeasure],
                "description": "The quantity that the level is about.",
            },
        },
        ("level",),
    ),
    "pool_unresponsive": (
        {
            "help": NONEMPTY_TEXT,
            "level": {
                "enum": [GUESTS_STAND_STILL],
                "description": "Present in the critical alert, which also fires if a disk on the pool stalls.",
            },
        },
        (),
    ),
}
"""The fields that only one alert about storage pools has, and the names of the required fields, by alert."""

_DROPPED_RECORDS_FIELDS = {
    "reason": {"enum": [drop.value for drop in DropReason]},
    "queue": NONEMPTY_TEXT,
    "records": {
        "type": "integer",
        "minimum": 1,
        "description": "Number of records dropped since the previous record of this type.",
    },
    "first_timestamp_seconds": {
        "type": "number",
        "description": "Time of the oldest dropped record; absent if unknown.",
    },
    "last_timestamp_seconds": {"type": "number", "description": "Time of the newest dropped record."},
}

_REASON_FIELD = {"reason": {"type": "string"}}
_INCOMING_FIELD = {
    "type": "boolean",
    "description": "True while the process waits for an incoming migration; absent otherwise.",
}
_SESSION_END = (
    _REASON_FIELD
    | {
        "shutdown_reason": {"type": "string", "description": "QEMU's ShutdownCause, if it sent SHUTDOWN."},
        "incoming": _INCOMING_FIELD,
    },
    ("reason",),
)
LIFECYCLE_CHANGES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "attached": (
        {
            "monitor": NONEMPTY_TEXT,
            "qemu_version": NONEMPTY_TEXT,
            "qemu_package": {"type": "string"},
            "pid": {"type": "integer", "description": "Process ID of QEMU; absent if unknown."},
            "reattached": {
                "type": "boolean",
                "description": "Whether this run of the agent was attached to this monitor before.",
            },
            "events_lost_since_timestamp_seconds": {
                "type": "number",
                "description": "Start of the time in which events were lost.",
            },
            "events_dropped": {
                "type": "integer",
                "minimum": 1,
                "description": "Number of events before the attach that were dropped because the buffer was full.",
            },
            "incoming": _INCOMING_FIELD,
            "events_available": {
                "const": False,
                "description": "Present if this monitor delivers no events. If so, only polls detect changes.",
            },
        },
        ("monitor", "qemu_version", "qemu_package", "reattached"),
    ),
    "detached": _SESSION_END,
    "gone": _SESSION_END,
    "migrated_in": (
        {
            "observed": {
                "type": "boolean",
                "description": "Whether the agent observed the arrival; false if it happened before the first poll.",
            }
        },
        ("observed",),
    ),
    "migrated_out": _SESSION_END,
    "busy": (_REASON_FIELD, ("reason",)),
    "stalled": (_REASON_FIELD, ("reason",)),
    "recovered": ({}, ()),
}
