"""The `dataschema` of records: a URI with the schema's name and version for each record type.

The version of a schema rises only with an incompatible change. Consumers of the old version cannot read data of the new version.
A new optional field is a compatible change.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

EVENT_SCHEMA: Final = "qemu.event"
"""Name of the schema for the data of all events. QEMU defines the contents of the schema's field `qemu`."""

SCHEMA_VERSIONS: Final[Mapping[str, int]] = {}
"""Versions of the schemas by name. A schema that is not in the table has version 1."""


def schema_name(record_type: str) -> str:
    """Return the name of the schema for a record type: the type itself, but one common name for all events."""
    return EVENT_SCHEMA if record_type.startswith(f"{EVENT_SCHEMA}.") else record_type


def schema_uri(name: str) -> str:
    """Return the URI of the current version of a schema, such as `urn:qmp-agent:qemu.sample.block:1`."""
    return f"urn:qmp-agent:{name}:{SCHEMA_VERSIONS.get(name, 1)}"


@lru_cache(maxsize=1024)
def dataschema(record_type: str) -> str:
    """Return the attribute `dataschema` of the records of a type."""
    return schema_uri(schema_name(record_type))
