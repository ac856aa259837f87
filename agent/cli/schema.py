"""JSON schemas of the records and of the config, generated from the catalogue and the config's types. Pure."""

from typing import Any

from agent.alerts.rules import ALERTS
from agent.alerts.threshold_types import DetectedBy
from agent.config.model import Config
from agent.delivery.drops import DropReason
from agent.model.events import ROWS, Category
from agent.model.family import Family, Field, Kind
from agent.model.metrics import FAMILIES, TRANSITIONS
from agent.model.metrics.block import BLOCK_SPACE
from agent.model.record import Severity

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TEXT = {"type": "string", "minLength": 1}

_TYPES: dict[Kind, dict[str, Any]] = {
    Kind.COUNTER: {"type": "number", "minimum": 0},
    Kind.GAUGE: {"type": "number"},
    Kind.FLAG: {"type": "boolean"},
    Kind.STATE: {"type": "string"},
    Kind.HISTOGRAM: {
        "type": "object",
        "properties": {
            "boundaries_seconds": {"type": "array", "items": {"type": "number", "minimum": 0}},
            "counts": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "sum_seconds": {"type": "number", "minimum": 0},
        },
        "required": ["boundaries_seconds", "counts"],
        "additionalProperties": False,
    },
    Kind.NAME: {"type": "string"},
    Kind.TEXT: {"type": "string"},
    Kind.DETAIL: {},
}


def config_schema() -> dict[str, Any]:
    """Return the schema of the config file."""
    return {"$schema": _DIALECT, "title": "Config of qmp-agent", **Config.model_json_schema()}


def record_schema() -> dict[str, Any]:
    """Return the schema of a record: its CloudEvents attributes and extensions, and the data of each type."""
    known = {f"qemu.event.{row.name.lower()}" for row in ROWS}
    bodies = _bodies()
    return {
        "$schema": _DIALECT,
        "title": "Record of qmp-agent: a CloudEvents 1.0 event in JSON structured mode",
        "type": "object",
        "properties": {
            "specversion": {"const": "1.0"},
            "id": {
                "type": "string",
                "pattern": "^[0-9A-HJKMNP-TV-Z]{10}-[0-9]+$",
                "description": "Unique: deduplicate on it.",
            },
            "source": {
                "type": "string",
                "pattern": "^/hosts/[^/]+(/(vms|monitors)/[^/]+)?$",
                "format": "uri-reference",
            },
            "type": {
                "anyOf": [{"enum": sorted(bodies)}, {"type": "string", "pattern": "^qemu\\.event\\.[a-z][a-z0-9_]*$"}]
            },
            "subject": {**_TEXT, "description": "Device, node, job or other subject within the VM."},
            "time": {"type": "string", "format": "date-time"},
            "datacontenttype": {"const": "application/json"},
            "host": _TEXT,
            "vmuuid": {"type": "string", "format": "uuid"},
            "vmname": _TEXT,
            "severity": {"enum": [severity.label for severity in Severity]},
            "sequence": {
                "type": "string",
                "pattern": "^[0-9]+$",
                "description": "Counter of the records of one run of the agent.",
            },
            "partitionkey": {
                **_TEXT,
                "description": "Kafka message key: the VM's UUID, else its monitor's address; the host for records of the agent itself.",
            },
            "data": {"type": "object"},
        },
        "required": [
            "specversion",
            "id",
            "source",
            "type",
            "time",
            "datacontenttype",
            "host",
            "severity",
            "sequence",
            "partitionkey",
            "data",
        ],
        "additionalProperties": False,
        "allOf": [
            *({"if": _is(name), "then": {"properties": {"data": body}}} for name, body in sorted(bodies.items())),
            {"if": {"properties": {"type": {"enum": sorted(known)}}}, "then": {"properties": {"data": _EVENT}}},
        ],
    }


def _bodies() -> dict[str, dict[str, Any]]:
    """Return the schema of the data of each type except events, whose data have one schema."""
    bodies = {family.type: _sample(family) for family in FAMILIES if family is not BLOCK_SPACE}
    bodies |= {f"qemu.{family.name}": _sample(family) for family in TRANSITIONS}
    bodies |= {
        f"qemu.vm.{change}": _body(change_fields, required=needed)
        for change, (change_fields, needed) in CHANGES.items()
    }
    bodies["qemu.agent.records_dropped"] = _body(_DROPS, required=("reason", "queue", "records"))
    bodies["qemu.alert.write_threshold"] = _body(
        _THRESHOLD, required=("alert", "state", "fingerprint", "device", "level", "detected_by")
    )
    for alert in sorted(ALERTS):
        body = _body(
            _ALERT | {"alert": {"const": alert}, "help": _TEXT, "event": _TEXT},
            required=("alert", "state", "fingerprint"),
        )
        bodies[f"qemu.alert.{alert}"] = body | {"additionalProperties": True}
    return bodies


def _is(name: str) -> dict[str, Any]:
    return {"properties": {"type": {"const": name}}}


def _body(properties: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _sample(family: Family) -> dict[str, Any]:
    properties: dict[str, Any] = dict.fromkeys(family.labels, _TEXT)
    properties |= {field.name: _field(family, field) for field in family.fields}
    return {"description": family.help, **_body(properties, family.labels)}


def _field(family: Family, field: Field) -> dict[str, Any]:
    return {**_TYPES[field.kind], "description": f"{field.help} ({family.source}: {field.path})"}


_EVENT = _body(
    {
        "event": _TEXT,
        "category": {"enum": [c.value for c in Category]},
        "qemu": {
            "type": "object",
            "description": "QEMU's own data, unchanged; for coalesced events, the data of the last one.",
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

_ALERT: dict[str, Any] = {
    "alert": _TEXT,
    "state": {"enum": ["firing", "resolved"]},
    "fingerprint": {
        "type": "string",
        "pattern": "^[0-9a-f]{16}$",
        "description": "Identity of the alert, stable across restarts.",
    },
    "since_timestamp_seconds": {"type": "number", "description": "Time at which the alert began to fire."},
    "resolved_by": {
        "type": "string",
        "description": "What resolved it: an event such as RESUME, running, run_state, space, level_gone, replaced, repaired, "
        "unplugged, time, migration, migrated, located, uuid_unique or vm_gone.",
    },
}

_THRESHOLD = _ALERT | {
    "alert": {"const": "write_threshold"},
    "level": {**_TEXT, "description": "The level as in the config; `threshold N` for a threshold of another client."},
    "detected_by": {
        "enum": [detected_by.value for detected_by in DetectedBy],
        "description": "How the alert was detected.",
    },
    "owner": {"enum": ["agent", "other"], "description": "Owner of the threshold or the level."},
    "device": _TEXT,
    "layer": {"enum": ["format", "storage", "backing", "node"]},
    "node": {"type": "string"},
    "path": {"type": "string"},
    "measure": {
        "enum": ["offset", "allocated"],
        "description": "The compared value: the highest written offset, or the allocated size.",
    },
    "level_bytes": {"type": "integer"},
    "exceeded_by_bytes": {"type": "integer"},
    "used_bytes": {"type": "integer"},
    "limit_bytes": {"type": "integer"},
    "free_bytes": {"type": "integer"},
    "growth_bytes_per_second": {"type": "number"},
    "time_to_full_seconds": {"type": "number"},
}

_DROPS = {
    "reason": {"enum": [drop.value for drop in DropReason]},
    "queue": _TEXT,
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

_REASON = {"reason": {"type": "string"}}
_INCOMING = {
    "type": "boolean",
    "description": "Whether the process waits for an incoming migration; absent otherwise.",
}
_LEFT = (
    _REASON
    | {
        "shutdown_reason": {"type": "string", "description": "QEMU's ShutdownCause, if it sent SHUTDOWN."},
        "incoming": _INCOMING,
    },
    ("reason",),
)
CHANGES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "attached": (
        {
            "monitor": _TEXT,
            "qemu_version": _TEXT,
            "qemu_package": {"type": "string"},
            "pid": {"type": "integer", "description": "Process ID of QEMU; absent if unknown."},
            "reattached": {
                "type": "boolean",
                "description": "Whether the agent watched this monitor before, in the same run.",
            },
            "events_lost_since_timestamp_seconds": {
                "type": "number",
                "description": "Time from which on events were lost.",
            },
            "events_dropped": {
                "type": "integer",
                "minimum": 1,
                "description": "Number of events before the attach that did not fit the buffer and were dropped.",
            },
            "incoming": _INCOMING,
            "events_available": {
                "const": False,
                "description": "Present if this monitor delivers no events, so that only polls report changes.",
            },
        },
        ("monitor", "qemu_version", "qemu_package", "reattached"),
    ),
    "detached": _LEFT,
    "gone": _LEFT,
    "migrated_in": (
        {
            "observed": {
                "type": "boolean",
                "description": "Whether the agent observed the arrival; false if it happened before the first poll.",
            }
        },
        ("observed",),
    ),
    "migrated_out": _LEFT,
    "busy": (_REASON, ("reason",)),
    "stalled": (_REASON, ("reason",)),
    "recovered": ({}, ()),
}
