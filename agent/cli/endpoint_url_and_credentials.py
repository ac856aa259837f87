"""URL and credentials of the agent's endpoint, from the options of a subcommand."""

import argparse
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.http_client import EndpointCredentials
from agent.common.default_paths import CONFIG_PATH

if TYPE_CHECKING:
    from agent.config.web import WebSectionConfig


def endpoint_url(parsed: argparse.Namespace) -> str:
    """Return the URL of the agent's endpoint: from the option --url, or else from the config, or else the default."""
    if parsed.url:
        return str(parsed.url).rstrip("/")
    return configured_endpoint_url(_web_section(parsed.config))


def configured_endpoint_url(web: "WebSectionConfig") -> str:
    """Return the URL of the endpoint for a client on this host, from the section `web` of the config."""
    scheme = "https" if web.config_file is not None and _has_tls(web.config_file) else "http"
    host, _, port = web.listen_address.rpartition(":")
    return f"{scheme}://{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{port}"  # noqa: S104 - compared, not bound


def _web_section(path: Path | None) -> "WebSectionConfig":
    """Return the section `web` of the config. The other sections of the default config file are not validated.

    Raises:
        ConfigError: the file cannot be read or has problems.
    """
    from agent.config.web import WebSectionConfig, read_web_section  # noqa: PLC0415 - not needed with --url

    if path is None:
        if not os.access(CONFIG_PATH, os.R_OK):  # an ordinary user may read neither the file nor its directory
            return WebSectionConfig()
        if (web := read_web_section(CONFIG_PATH)) is not None:
            return web
    from agent.config.loader import load_config  # noqa: PLC0415 - imports the types of all sections

    return load_config(path or CONFIG_PATH).web


def _has_tls(config_file: str) -> bool:
    """Return whether the endpoint uses TLS; False if this user may not read the web config."""
    from agent.common.config_types import expand_credentials_directory  # noqa: PLC0415 - few hosts have a web config
    from agent.http.web_config import EndpointSetupError, LoadedWebConfig  # noqa: PLC0415 - few hosts have a web config

    with contextlib.suppress(EndpointSetupError, OSError):
        return LoadedWebConfig.read(expand_credentials_directory(config_file)).tls is not None
    return False


def endpoint_credentials(parsed: argparse.Namespace) -> EndpointCredentials:
    """Return the credentials for the endpoint, from the options of a subcommand."""
    return EndpointCredentials(parsed.ca, parsed.cert, parsed.user, parsed.password_file)
