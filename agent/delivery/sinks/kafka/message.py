"""Encodes records into Kafka messages, in both content modes of the CloudEvents Kafka binding. Pure.

In structured mode the value is the whole record, and headers repeat the attributes by which consumers filter records without parsing them.
In binary mode the value is the data of the record, and only headers have the attributes.
"""

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from agent.model.record import CONTENT_TYPE, EncodedRecord, Severity, sanitize

Header = tuple[str, bytes]


class ContentMode(StrEnum):
    """Content mode of the CloudEvents Kafka binding: which parts of a record are in the value and in the headers of a message."""

    STRUCTURED = "structured"
    BINARY = "binary"


HEADER_PREFIX = "ce_"
NO_TIMESTAMP = -1
"""Kafka's value for a record without a timestamp. Brokers accept this value regardless of their clocks and limits."""

FILTER_ATTRIBUTES = ("specversion", "severitytext", "severitynumber", "type", "host", "source", "subject", "id")
"""Attributes that are headers in structured mode too. They add 8 % to a compressed batch of samples; all attributes would add 20 %."""

_STRUCTURED_TYPE: Header = ("content-type", f"{CONTENT_TYPE}; charset=utf-8".encode())
_FILTER_HEADERS = [(name, f"{HEADER_PREFIX}{name}") for name in FILTER_ATTRIBUTES]
_DATA_MEMBER = b',"data":'
"""Start of the last member of a record's JSON. Earlier members cannot contain this text, because quotes in JSON strings are escaped."""

_FRAMING_BYTES = 64
"""Upper bound of the bytes that Kafka adds to the key, the value and the headers of a message."""
_HEADER_FRAMING_BYTES = 8
"""Upper bound of the bytes that Kafka adds to the name and the value of a header."""


class KafkaMessage(NamedTuple):
    """A record as a Kafka message, without its timestamp.

    Attributes:
        key: the partition key.
        value: the value; None for a tombstone, which deletes its key from a compacted topic.
        headers: the headers: names and values.
    """

    key: bytes
    value: bytes | None
    headers: list[Header]

    @property
    def max_bytes(self) -> int:
        """Upper bound of the bytes that the message takes in a batch before compression."""
        header_bytes = sum(len(name) + len(value) + _HEADER_FRAMING_BYTES for name, value in self.headers)
        return len(self.key) + len(self.value or b"") + header_bytes + _FRAMING_BYTES


MessageEncoder = Callable[[EncodedRecord], KafkaMessage]
"""Encodes a record into a message in one of the content modes."""


def structured_message(record: EncodedRecord) -> KafkaMessage:
    """Return the message of a record in structured mode."""
    if not record.body:
        return _tombstone_message(record)
    return KafkaMessage(record.key.encode(), record.body, _filter_headers(record))


def _filter_headers(record: EncodedRecord) -> list[Header]:
    """Return the headers of a message in structured mode. Only the body of a record from the journal is parsed, because parsing is slow."""
    if record.vm is None:
        attributes, _ = _split_body(record)
        headers = [(header, str(attributes[name]).encode()) for name, header in _FILTER_HEADERS if name in attributes]
        return [_STRUCTURED_TYPE, *headers]
    return [
        *_type_headers(record.type, record.severity),
        *_source_headers(record.vm.host, record.vm.source),
        *_subject_headers(record.subject),
        ("ce_id", record.id.encode()),
    ]


@lru_cache(maxsize=4096)
def _source_headers(host: str, source: str) -> tuple[Header, ...]:
    return ("ce_host", sanitize(host).encode()), ("ce_source", source.encode())


@lru_cache(maxsize=4096)
def _subject_headers(subject: str) -> tuple[Header, ...]:
    return (("ce_subject", sanitize(subject).encode()),) if subject.strip() else ()


@lru_cache(maxsize=1024)
def _type_headers(record_type: str, severity: Severity) -> tuple[Header, ...]:
    severity_headers: list[Header] = [
        ("ce_severitytext", severity.text.encode()),
        ("ce_severitynumber", str(severity.number).encode()),
    ]
    return _STRUCTURED_TYPE, ("ce_specversion", b"1.0"), *severity_headers, ("ce_type", record_type.encode())


def binary_message(record: EncodedRecord) -> KafkaMessage:
    """Return the message of a record in binary mode."""
    if not record.body:
        return _tombstone_message(record)
    attributes, data = _split_body(record)
    headers = [("content-type", attributes.pop("datacontenttype").encode())]
    headers += [(f"{HEADER_PREFIX}{name}", str(value).encode()) for name, value in attributes.items()]
    return KafkaMessage(record.key.encode(), data, headers)


def _tombstone_message(record: EncodedRecord) -> KafkaMessage:
    """Return the message that deletes the key of a record. It is not a CloudEvent, so it has no headers."""
    return KafkaMessage(record.key.encode(), None, [])


MESSAGE_ENCODERS: dict[ContentMode, MessageEncoder] = {
    ContentMode.STRUCTURED: structured_message,
    ContentMode.BINARY: binary_message,
}


def without_data(record: EncodedRecord) -> EncodedRecord:
    """Return a copy of a record with its attributes but without `data`, for a topic that rejects the record as too large."""
    attributes, _, _ = record.body.partition(_DATA_MEMBER)
    return replace(record, body=attributes + _DATA_MEMBER + b"null}")


def _split_body(record: EncodedRecord) -> tuple[dict[str, Any], bytes]:
    """Return the attributes of a record, and its `data` as JSON bytes."""
    attributes, _, data = record.body.partition(_DATA_MEMBER)
    return orjson.loads(attributes + b"}"), data[:-1]
