"""A record as a consumer receives it: parses Kafka messages in the structured and the binary mode of CloudEvents. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Self

import orjson

from agent.model.record import CONTENT_TYPE

_HEADER_PREFIX: Final = "ce_"


class MessageFormatError(ValueError):
    """A Kafka message is not a record of the agent. The error text says why."""


@dataclass(frozen=True, slots=True)
class MessagePosition:
    """Position of a message in Kafka.

    Attributes:
        topic: the topic.
        partition: the number of the partition.
        offset: the offset in the partition.
    """

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """A record that the agent sent to Kafka.

    Attributes:
        position: position of the message in Kafka.
        attributes: all attributes of the CloudEvent, by name, without `data`.
        data: the fields of the record. docs/reference/records.md lists the fields of each type.
        time: when the event happened, or when the sample was polled.
    """

    position: MessagePosition
    attributes: Mapping[str, Any]
    data: Mapping[str, Any]
    time: datetime

    @property
    def id(self) -> str:
        """Id of the record. A duplicate has the same id and the same source."""
        return str(self.attributes["id"])

    @property
    def source(self) -> str:
        """URI reference of the VM, the monitor or the host that the record is about."""
        return str(self.attributes["source"])

    @property
    def type(self) -> str:
        """Type of the record, such as `qemu.alert.disk_full`."""
        return str(self.attributes["type"])

    @property
    def subject(self) -> str:
        """The device, vCPU or job that the record is about; empty for the VM as a whole."""
        return self.attribute("subject")

    @property
    def host(self) -> str:
        """Name of the host on which the agent runs."""
        return self.attribute("host")

    @property
    def vm_uuid(self) -> str:
        """UUID of the VM; empty for a record of a host or of a monitor."""
        return self.attribute("vmuuid")

    @property
    def vm_name(self) -> str:
        """Name of the VM; empty for a record of a host or of a monitor."""
        return self.attribute("vmname")

    @property
    def severity(self) -> str:
        """Severity in capitals, such as `WARN`; empty if the record has none."""
        return self.attribute("severitytext")

    @property
    def sequence(self) -> str:
        """Text that orders the records of one source. Compare sequences as text."""
        return self.attribute("sequence")

    @property
    def previous_sequence(self) -> str:
        """`sequence` of the previous record of the same source in the topic; empty if the agent does not know that record."""
        return self.attribute("previoussequence")

    def attribute(self, name: str) -> str:
        """Return an attribute as text; empty if the record does not have the attribute."""
        value = self.attributes.get(name)
        return "" if value is None else str(value)

    @classmethod
    def parse(cls, position: MessagePosition, value: bytes | None, headers: Iterable[tuple[str, bytes | None]]) -> Self:
        """Parse a Kafka message, in structured or in binary mode.

        Args:
            position: position of the message in Kafka.
            value: the message's value; None for a tombstone.
            headers: the message's headers.

        Raises:
            MessageFormatError: the message is not a record of the agent.
        """
        if value is None:
            raise MessageFormatError("the message is a tombstone")
        text_headers = {name.lower(): header or b"" for name, header in headers}
        content_type = _decode_header(text_headers.get("content-type", b""))
        try:
            decoded = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise MessageFormatError(f"the value is not JSON: {error}") from error
        if content_type.startswith(CONTENT_TYPE) or f"{_HEADER_PREFIX}id" not in text_headers:
            if not isinstance(decoded, dict):
                raise MessageFormatError("the value is not a JSON object")
            data = decoded.pop("data", None)
            attributes = decoded
            attributes.setdefault("datacontenttype", "application/json")  # the default of CloudEvents' JSON format
        else:
            data = decoded
            attributes = {
                name.removeprefix(_HEADER_PREFIX): _decode_header(header)
                for name, header in text_headers.items()
                if name.startswith(_HEADER_PREFIX)
            }
            attributes["datacontenttype"] = content_type
        return cls(position, attributes, _check_data(data), _check_attributes(attributes))


def _decode_header(header: bytes) -> str:
    try:
        return header.decode()
    except UnicodeDecodeError as error:
        raise MessageFormatError(f"a header is not UTF-8: {error}") from error


def _check_data(data: object) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise MessageFormatError("data is not a JSON object")
    return data


def _check_attributes(attributes: Mapping[str, Any]) -> datetime:
    """Check the required attributes of a record, and return its time."""
    for name in ("id", "source", "type", "time"):
        if not isinstance(attributes.get(name), str) or not attributes[name]:
            raise MessageFormatError(f"the attribute {name} is missing or is not text")
    if attributes.get("specversion") != "1.0":
        raise MessageFormatError("specversion is not 1.0")
    try:
        return datetime.fromisoformat(attributes["time"])
    except ValueError as error:
        raise MessageFormatError(f"time is not a timestamp: {error}") from error
