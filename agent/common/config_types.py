"""What the config is made of: sections, and the kinds of values in them, with what one is told that it should be."""

import errno
import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from agent.common.units import Seconds


class Section(BaseModel):
    """Keys of the config that belong together; each is an attribute, its default, and under it what it is for."""

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


def _folder(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("should be an absolute path")
    return value


def _topic(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", value) or value in {".", ".."}:
        raise ValueError("should be a Kafka topic: letters, digits, dots, underscores and dashes, at most 249")
    return value


def _secret(value: str) -> str:
    if not value.startswith(("/", "${CREDENTIALS_DIRECTORY}/")):
        raise ValueError("should be an absolute path, or begin with ${CREDENTIALS_DIRECTORY}/")
    return value


Secret = Annotated[str, AfterValidator(_secret)]
"""A file with a secret or a certificate; never the secret itself."""


def expand(path: str) -> Path:
    """Return a path with `${CREDENTIALS_DIRECTORY}`, systemd's folder of secrets (systemd.exec(5)), filled in.

    Raises:
        OSError: it names that folder, and there is none.
    """
    name = "${CREDENTIALS_DIRECTORY}"
    if name not in path:
        return Path(path)
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise FileNotFoundError(
            errno.ENOENT, f"{name} is not set: give the unit LoadCredential=, or a path of its own here"
        )
    return Path(path.replace(name, folder))


Address = Annotated[str, AfterValidator(_address)]
Topic = Annotated[str, AfterValidator(_topic)]
Id = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
    Field(min_length=1),
    WithJsonSchema({"type": ["string", "integer"], "minLength": 1}),
]
"""A user or a group, by name or number."""
Positive = Annotated[Seconds, Field(gt=0)]
DialAddress = Annotated[str, AfterValidator(_dial)]
"""A Unix socket, a pattern of them, or tcp:host:port."""
Folder = Annotated[str, AfterValidator(_folder)]
