"""The kinds of values that the config has: what one may be, and what it is told that it should be."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from agent.alerts.ladder import parse_level
from agent.host.libvirt import PATH
from agent.units import Seconds


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


def _libvirt(value: str) -> str:
    if not re.fullmatch(r"qemu(\+[a-z]+)?://\S*", value):
        raise ValueError("should be libvirt's name of a QEMU host, such as qemu:///system")
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


def _level(value: str) -> str:
    return parse_level(value).text


LevelText = Annotated[str, AfterValidator(_level)]
"""A level of a ladder."""
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
LibvirtUri = Annotated[str, AfterValidator(_libvirt)]


TAKEN = frozenset({"vm", "vm_uuid", "qemu_version", "qemu_package", "monitor", "machine", "accelerator", "pid"})
"""Labels that qemu_vm_info has of itself."""


def _label(value: str) -> str:
    if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", value) or value.startswith("__"):
        raise ValueError("should be a label's name: letters, digits and underscores, and no two of them in front")
    if value in TAKEN:
        raise ValueError(f"is a label that qemu_vm_info has already; those are {', '.join(sorted(TAKEN))}")
    return value


def _path(value: str) -> str:
    if not PATH.fullmatch(value):
        raise ValueError(
            "should be elements below <domain> and at most one attribute, such as metadata/instance/flavor@name"
        )
    return value


Label = Annotated[str, AfterValidator(_label)]
XmlPath = Annotated[str, AfterValidator(_path)]
