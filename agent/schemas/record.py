"""The JSON schema of a record: CloudEvents attributes, extensions, and the data of each record type. Pure."""

from typing import Any

from agent.model.record import Severity
from agent.model.schema_versions import EVENT_SCHEMA, schema_uri
from agent.model.sequences import SEQUENCE_DIGITS
from agent.schemas.data import DIALECT, NONEMPTY_TEXT, data_schemas

_EVENT_PATTERN = r"^qemu\.event\.[a-z][a-z0-9_]*$"
_SEQUENCE_PATTERN = f"^[0-9A-HJKMNP-TV-Z]{{10}}[0-9]{{{SEQUENCE_DIGITS}}}$"


_IDENTITY: dict[str, Any] = {
    "specversion": {"const": "1.0"},
    "id": {
        "type": "string",
        "pattern": "^[0-9A-HJKMNP-TV-Z]{10}-[0-9]+$",
        "description": "Unique id of the record, for deduplication.",
    },
    "source": {
        "type": "string",
        "pattern": "^/hosts/[^/]+(/(vms|monitors)/[^/]+|/state(/(vms|alerts)/[^/]+)?)?$",
        "format": "uri-reference",
    },
}
"""Schemas of the attributes that identify a record, by attribute."""

_ATTRIBUTES: dict[str, Any] = {
    "subject": {**NONEMPTY_TEXT, "description": "Device, node, job or other subject within the VM."},
    "time": {"type": "string", "format": "date-time"},
    "host": NONEMPTY_TEXT,
    "vmuuid": {"type": "string", "format": "uuid"},
    "vmname": NONEMPTY_TEXT,
    "vmnamespace": {**NONEMPTY_TEXT, "description": "The VM's namespace in Kubernetes; absent for other VMs."},
    "dataschema": {
        "type": "string",
        "pattern": "^urn:qmp-agent:[a-z][a-z0-9_.]*:[1-9][0-9]*$",
        "format": "uri",
    },
    "severitytext": {"enum": [severity.opentelemetry_text for severity in Severity]},
    "severitynumber": {"enum": [severity.opentelemetry_number for severity in Severity]},
    "sequence": {
        "type": "string",
        "pattern": _SEQUENCE_PATTERN,
        "description": "Position among the records of the source, over all runs of the agent. Compare sequences as text.",
    },
    "previoussequence": {
        "type": "string",
        "pattern": _SEQUENCE_PATTERN,
        "description": "The sequence of the source's previous record in this topic. Absent if that sequence is unknown. Also absent "
        "in states, because Kafka deletes older states.",
    },
    "recordedtime": {
        "type": "string",
        "format": "date-time",
        "description": "When the agent created the record. Absent if this time differs from `time` by less than 100 ms.",
    },
    "sampledrate": {
        "type": "integer",
        "minimum": 2,
        "description": "Number of events that were coalesced into the record; absent for a single event.",
    },
    "causationid": {
        **NONEMPTY_TEXT,
        "description": "The id of the record of the event or sample that caused this record; absent if unknown.",
    },
    "partitionkey": {
        **NONEMPTY_TEXT,
        "description": "Kafka key: the VM's UUID, or the monitor's address if the UUID is unknown. In the agent's own records, the host's "
        "name; in states, the source.",
    },
}
"""Schemas of the attributes that describe a record, by attribute."""

_REQUIRED = [
    "specversion",
    "id",
    "source",
    "type",
    "time",
    "host",
    "dataschema",
    "severitytext",
    "severitynumber",
    "sequence",
    "partitionkey",
    "data",
]
"""Names of the members that every record has."""


def record_schema() -> dict[str, Any]:
    """Return the JSON schema of a record: CloudEvents attributes, extensions, and the data of each record type."""
    by_type = data_schemas()
    event_data = by_type.pop(EVENT_SCHEMA)
    types = {"anyOf": [{"enum": sorted(by_type)}, {"type": "string", "pattern": _EVENT_PATTERN}]}
    return {
        "$schema": DIALECT,
        "title": "Record of qmp-agent: a CloudEvents 1.0 event in JSON structured mode",
        "type": "object",
        "properties": {**_IDENTITY, "type": types, **_ATTRIBUTES, "data": {"type": "object"}},
        "required": _REQUIRED,
        "additionalProperties": False,
        "allOf": [
            *(_data_rule({"const": name}, name, body) for name, body in sorted(by_type.items())),
            _data_rule({"pattern": _EVENT_PATTERN}, EVENT_SCHEMA, event_data),
        ],
    }


def _data_rule(types: dict[str, Any], name: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON schema rule that records of some types have data with this schema.

    Args:
        types: the JSON schema of these types.
        name: the name of the schema.
        body: the schema.
    """
    then = {"dataschema": {"const": schema_uri(name)}, "data": body}
    return {"if": {"properties": {"type": types}}, "then": {"properties": then}}
