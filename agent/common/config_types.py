"""Base class and value types of the config, with the error texts of bad values."""

import errno
import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from agent.common.units import Seconds


class Section(BaseModel):
    """A section of the config. Each key is an attribute with its default, followed by its description as a docstring."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, use_attribute_docstrings=True)


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) < 65536:
        raise ValueError('should be host:port, such as "127.0.0.1:9179"')
    return value


def _dial(value: str) -> str:
    if value.startswith("tcp:"):
        return "tcp:" + _address(value.removeprefix("tcp:"))
    if not value.startswith("/"):
        raise ValueError("should be an absolute path, a pattern such as /run/qemu/*.qmp, or tcp:host:port")
    return value


def _directory(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("should be an absolute path")
    return value


def _topic(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", value) or value in {".", ".."}:
        raise ValueError("should be a Kafka topic of at most 249 letters, digits, dots, underscores and dashes")
    return value


def _secret(value: str) -> str:
    if not value.startswith(("/", "${CREDENTIALS_DIRECTORY}/")):
        raise ValueError("should be an absolute path, or begin with ${CREDENTIALS_DIRECTORY}/")
    return value


Secret = Annotated[str, AfterValidator(_secret)]
"""Path of a file with a secret or a certificate; never the secret itself."""


def expand(path: str) -> Path:
    """Expand `${CREDENTIALS_DIRECTORY}`, systemd's directory of secrets (systemd.exec(5)), in a path.

    Raises:
        OSError: the path has the variable, and it is not set.
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


Address = Annotated[str, AfterValidator(_address)]
Topic = Annotated[str, AfterValidator(_topic)]
Id = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
    Field(min_length=1),
    WithJsonSchema({"type": ["string", "integer"], "minLength": 1}),
]
"""A user or a group by name or number."""
Positive = Annotated[Seconds, Field(gt=0)]
DialAddress = Annotated[str, AfterValidator(_dial)]
"""A Unix socket, a pattern of Unix sockets, or tcp:host:port."""
AbsolutePath = Annotated[str, AfterValidator(_directory)]
