"""The section `web` of the config file. Clients of the agent's endpoint read only this section."""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field

from agent.common.config_types import Bytes, ConfigSection, HostPort, SecretPath


class WebSectionConfig(ConfigSection):
    """The HTTP endpoint: /metrics, /healthz, /readyz and the page."""

    listen_address: HostPort = "127.0.0.1:9179"
    """Address to listen on. Without `config_file`, every client that reaches this address can read the guests' names, disks and events."""
    history_memory: Annotated[Bytes, Field(le=1 << 30)] = 16 << 20
    """Memory for the graphs of all VMs. The default holds six hours of 900 VMs, or fewer hours of more VMs. With 0, there are no graphs."""
    config_file: SecretPath | None = None
    """TLS, client certificates and users: a web configuration file in the format of Prometheus' exporter-toolkit."""


def read_web_section(path: Path) -> WebSectionConfig | None:
    """Return the section `web` of a config file; None if the section cannot be read. `agent.config.loader` reports the file's problems."""
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
        return WebSectionConfig.model_validate(values.get("web", {}))
    except (OSError, yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, ValueError):
        return None
