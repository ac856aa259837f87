"""The subcommand `qmp-agent schema`."""

import argparse
import json
from pathlib import Path
from typing import Any, cast

from agent import config

CONFIG_SCHEMA = Path(config.__path__[0]) / "agent.schema.json"
"""File with the schema of the config. Generating the schema at each call would import the types of all sections."""


def execute(parsed: argparse.Namespace) -> int:
    """Print the JSON schema of records or of the config."""
    print(json.dumps(_schema(parsed.of), indent=2))
    return 0


def _schema(of: str) -> dict[str, Any]:
    """Return the JSON schema of the config, of a record, or of the data of each record type. Import only the necessary modules."""
    match of:
        case "config":
            return cast("dict[str, Any]", json.loads(CONFIG_SCHEMA.read_text("utf-8")))
        case "record":
            from agent.schemas.record import record_schema  # noqa: PLC0415 - as above

            return record_schema()
    from agent.schemas.data import published_data_schemas  # noqa: PLC0415 - as above

    return published_data_schemas()
