"""Base class of config sections, and types that validate config values. Each error text addresses the author of the config."""

import errno
import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from agent.common.durations_and_sizes import parse_bytes, parse_seconds

# Without this variable, pydantic reads the metadata of all installed packages to look for plugins.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


class ConfigSection(BaseModel):
    """A section of the config. Each attribute is a key, and the string literal below the attribute is the key's description."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, defer_build=True)


Seconds = Annotated[
    float,
    BeforeValidator(parse_seconds),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": r"^\d+(\.\d+)?\s*(us|ms|s|m|h|d)$"}, {"type": "number", "minimum": 0}]}
    ),
]
"""A duration in the config, such as `10s`; parsed to seconds."""

Bytes = Annotated[
    int,
    BeforeValidator(parse_bytes),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": r"^\d+(\.\d+)?\s*([KMGT]iB|kB|[MGT]B|B|)$"},
                {"type": "integer", "minimum": 0},
            ]
        }
    ),
]
"""A size in the config, such as `1GiB`; parsed to bytes."""


def _check_host_port(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) < 65536:
        raise ValueError('should be host:port, such as "192.0.2.1:9092"')
    return value


def _check_dial_address(value: str) -> str:
    if value.startswith("tcp:"):
        return "tcp:" + _check_host_port(value.removeprefix("tcp:"))
    if not value.startswith("/"):
        raise ValueError("should be an absolute path, a pattern such as /run/qemu/*.qmp, or tcp:host:port")
    return value


def _check_absolute_path(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("should be an absolute path")
    return value


def _check_topic(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", value) or value in {".", ".."}:
        raise ValueError("should be a Kafka topic of at most 249 letters, digits, dots, underscores and dashes")
    return value


def _check_secret_path(value: str) -> str:
    if not value.startswith(("/", "${CREDENTIALS_DIRECTORY}/")):
        raise ValueError("should be an absolute path, or begin with ${CREDENTIALS_DIRECTORY}/")
    return value


SecretPath = Annotated[str, AfterValidator(_check_secret_path)]
"""Path of a file with a secret or a certificate: an absolute path, or a path that begins with `${CREDENTIALS_DIRECTORY}/`."""


def expand_credentials_directory(path: str) -> Path:
    """Replace `${CREDENTIALS_DIRECTORY}` in a path by systemd's directory of secrets (systemd.exec(5)).

    Raises:
        OSError: the path contains the variable, but the environment does not define it.
    """
    name = "${CREDENTIALS_DIRECTORY}"
    if name not in path:
        return Path(path)
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise FileNotFoundError(
            errno.ENOENT, f"{name} is not set: add LoadCredential= to the systemd unit, or use an absolute path"
        )
    return Path(path.replace(name, directory))


HostPort = Annotated[str, AfterValidator(_check_host_port)]
"""An address `host:port`."""
Topic = Annotated[str, AfterValidator(_check_topic)]
"""The name of a Kafka topic."""
UserOrGroup = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
    Field(min_length=1),
    WithJsonSchema({"type": ["string", "integer"], "minLength": 1}),
]
"""The name or the number of a user or a group."""
PositiveSeconds = Annotated[Seconds, Field(gt=0)]
"""A duration of more than 0 s."""
DialAddress = Annotated[str, AfterValidator(_check_dial_address)]
"""Where the agent connects to monitors: the path of a Unix socket, a pattern of such paths, or `tcp:host:port`."""
AbsolutePath = Annotated[str, AfterValidator(_check_absolute_path)]
"""A path that begins with a slash."""
