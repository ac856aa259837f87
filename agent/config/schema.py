"""The JSON schema of the config file, generated from the types of its sections. Pure."""

from typing import Any

from agent.config.model import Config


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of the config file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Config of qmp-agent",
        **Config.model_json_schema(),
    }
