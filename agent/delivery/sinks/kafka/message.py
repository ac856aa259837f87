"""Encodes records into Kafka messages, in both content modes of the CloudEvents Kafka binding. Pure.

In structured mode the value is the whole record, and headers repeat the attributes that consumers filter by without parsing the value.
In binary mode the value is the record's data, and only the headers have the attributes.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import StrEnum
from functools import lru_cache
from typing import Any

import orjson

from agent.model.record import CONTENT_TYPE, EncodedRecord, Severity, Vm, sanitize

Header = tuple[str, bytes]


class ContentMode(StrEnum):
    """Content mode of the CloudEvents Kafka binding: which parts of a record are in a message's value, and which in its headers."""

    STRUCTURED = "structured"
    BINARY = "binary"


HEADER_PREFIX = "ce_"
NO_TIMESTAMP = -1
"""Kafka's value for a message without a timestamp. Brokers accept this value regardless of their clocks and limits."""


class HeaderAttribute(StrEnum):
    """Attribute that structured mode can repeat as a header, so that consumers filter records without parsing them."""

    TYPE = "type"
    SEVERITYNUMBER = "severitynumber"
    SEVERITYTEXT = "severitytext"
    HOST = "host"
    SOURCE = "source"
    VMUUID = "vmuuid"
    VMNAME = "vmname"
    VMNAMESPACE = "vmnamespace"
    SUBJECT = "subject"
    ID = "id"


DEFAULT_HEADER_ATTRIBUTES = (HeaderAttribute.TYPE,)
"""Attributes that are headers by default. The message key identifies the VM already."""

_TYPE_HEADER_ATTRIBUTES = frozenset(
    {HeaderAttribute.TYPE, HeaderAttribute.SEVERITYNUMBER, HeaderAttribute.SEVERITYTEXT}
)
"""Attributes that depend only on the type and the severity of a record."""

_STRUCTURED_TYPE: Header = ("content-type", CONTENT_TYPE.encode())
DATA_CONTENT_TYPE = b"application/json"
"""Content type of every record's data. Structured mode omits this attribute, because `application/json` is the default of CloudEvents."""
_DATA_MEMBER = b',"data":'
"""Start of the last member of a record's JSON. Earlier members cannot contain this text, because quotes in JSON strings are escaped."""

_FRAMING_BYTES = 64
"""Upper bound of the bytes that Kafka adds to the key, the value and the headers of a message."""
_HEADER_FRAMING_BYTES = 8
"""Upper bound of the bytes that Kafka adds to the name and the value of a header."""


KafkaMessage = tuple[bytes, bytes | None, list[Header]]
"""A record as a Kafka message, without its timestamp: the key, the value and the headers. A message without a value is a tombstone, which
deletes its key from a compacted topic. The type is a plain tuple, because a named tuple takes longer to create than an event's headers."""


def message_bytes_upper_bound(message: KafkaMessage) -> int:
    """Return an upper bound of the bytes that a message takes in a batch before compression."""
    key, value, headers = message
    header_bytes = sum(len(name) + len(text) + _HEADER_FRAMING_BYTES for name, text in headers)
    return len(key) + len(value or b"") + header_bytes + _FRAMING_BYTES


MessageEncoder = Callable[[EncodedRecord], KafkaMessage]
"""Encodes a record into a message in one of the content modes."""


class StructuredMessageEncoder:
    """Encodes records into messages in structured mode. All messages have the same attributes as headers."""

    def __init__(self, filters: Iterable[HeaderAttribute] = DEFAULT_HEADER_ATTRIBUTES) -> None:
        """Set up an encoder.

        Args:
            filters: record attributes to send as message headers. The headers are in the order of `HeaderAttribute`.
        """
        self._filters = [name for name in HeaderAttribute if name in set(filters)]
        self._own_filters = [name for name in self._filters if name not in _TYPE_HEADER_ATTRIBUTES]
        self._needs_only_type = self._filters in ([], [HeaderAttribute.TYPE])
        # Returns the headers of a record type, a list for each severity. Messages share these lists, because most have no other headers.
        self._type_headers = lru_cache(maxsize=1024)(self._make_type_headers)

    def __call__(self, record: EncodedRecord) -> KafkaMessage:
        """Return the message of a record."""
        if not record.body:
            return _tombstone_message(record)
        if record.vm is None and not self._needs_only_type:
            return record.key.encode(), record.body, self._parse_headers(record)
        headers = self._type_headers(record.type)[record.severity]
        if self._own_filters and record.vm is not None:
            headers = headers + self._make_own_headers(record, record.vm)
        return record.key.encode(), record.body, headers

    def _parse_headers(self, record: EncodedRecord) -> list[Header]:
        """Return the headers of a record from the journal. The values come from the body, because the journal does not store them apart."""
        attributes, _ = _split_body(record)
        names = [name for name in self._filters if name in attributes]
        return [_STRUCTURED_TYPE, *((f"{HEADER_PREFIX}{name}", str(attributes[name]).encode()) for name in names)]

    def _make_type_headers(self, record_type: str) -> list[list[Header]]:
        """Return the headers for a record type, a list for each severity."""
        headers = []
        for severity in Severity:
            values = {
                HeaderAttribute.TYPE: record_type,
                HeaderAttribute.SEVERITYNUMBER: str(severity.opentelemetry_number),
                HeaderAttribute.SEVERITYTEXT: severity.opentelemetry_text,
            }
            filters = [name for name in self._filters if name in values]
            headers.append([_STRUCTURED_TYPE, *((f"{HEADER_PREFIX}{name}", values[name].encode()) for name in filters)])
        return headers

    def _make_own_headers(self, record: EncodedRecord, vm: Vm) -> list[Header]:
        """Return the headers whose values depend on the record, and not only on its type and severity."""
        values = {
            HeaderAttribute.HOST: sanitize(vm.host),
            HeaderAttribute.SOURCE: vm.source,
            HeaderAttribute.VMUUID: vm.uuid,
            HeaderAttribute.VMNAME: sanitize(vm.name) if vm.uuid else "",
            HeaderAttribute.VMNAMESPACE: sanitize(vm.namespace),
            HeaderAttribute.SUBJECT: sanitize(record.subject) if record.subject.strip() else "",
            HeaderAttribute.ID: record.id,
        }
        return [(f"{HEADER_PREFIX}{name}", values[name].encode()) for name in self._own_filters if values[name]]


def binary_message(record: EncodedRecord) -> KafkaMessage:
    """Return the message of a record in binary mode."""
    if not record.body:
        return _tombstone_message(record)
    attributes, data = _split_body(record)
    headers = [("content-type", DATA_CONTENT_TYPE)]
    headers += [(f"{HEADER_PREFIX}{name}", str(value).encode()) for name, value in attributes.items()]
    return record.key.encode(), data, headers


def _tombstone_message(record: EncodedRecord) -> KafkaMessage:
    """Return the message that deletes the key of a record. A tombstone is not a CloudEvent, so it has no headers."""
    return record.key.encode(), None, []


def build_message_encoder(
    mode: ContentMode, filters: Iterable[HeaderAttribute] = DEFAULT_HEADER_ATTRIBUTES
) -> MessageEncoder:
    """Return the encoder of a content mode.

    Args:
        mode: the content mode.
        filters: attributes that are headers in structured mode. In binary mode, all attributes are headers.
    """
    return binary_message if mode is ContentMode.BINARY else StructuredMessageEncoder(filters)


def remove_record_data(record: EncodedRecord) -> EncodedRecord:
    """Return a copy of a record with its attributes but with null as `data`, for a topic that rejects the record as too large."""
    attributes, _, _ = record.body.partition(_DATA_MEMBER)
    return replace(record, body=attributes + _DATA_MEMBER + b"null}")


def _split_body(record: EncodedRecord) -> tuple[dict[str, Any], bytes]:
    """Return the attributes of a record, and its `data` as JSON bytes."""
    attributes, _, data = record.body.partition(_DATA_MEMBER)
    return orjson.loads(attributes + b"}"), data[:-1]
