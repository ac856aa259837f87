"""Records: every event, sample, alert and lifecycle change as a CloudEvents 1.0 event in JSON structured mode.

A component makes a `Record`. A `RecordEncoder` gives it an id and encodes it once, into the bytes that are delivered.
"""

import itertools
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from agent.model.family import Family, Sample


class Severity(IntEnum):
    """Severity of a record, ordered."""

    DEBUG = 0
    INFO = 1
    WARNING = 2
    ERROR = 3
    CRITICAL = 4

    @property
    def label(self) -> str:
        """The severity as records write it."""
        return _LABELS[self]


_LABELS = [severity.name.lower() for severity in Severity]

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters, which CloudEvents forbids in attributes, and characters that reorder or break a line on a terminal."""


def sanitize(text: str, limit: int = 255) -> str:
    """Return text from QEMU without control characters, cut to `limit` characters: safe in attributes, labels and log lines."""
    if text.isascii() and text.isprintable() and len(text) <= limit:
        return text
    return _UNSAFE.sub("\ufffd", text[:limit])


@dataclass(frozen=True, slots=True)
class Vm:
    """The source of a record: a VM, a monitor whose VM is not known yet, or the agent itself.

    Attributes:
        host: this host's name.
        uuid: the VM's UUID; the key of its records, which keeps them in order. Empty if the monitor has not reported it yet.
        name: the VM's name; its UUID if it has none.
        monitor: the monitor's address, as in the config. An empty address with an empty UUID is the agent itself.
        key: the partition key, which keeps the source's records in order.
        json_head: the encoded attributes that all of the source's records begin with.
    """

    host: str
    uuid: str
    name: str
    monitor: str = ""
    key: str = field(init=False, repr=False, compare=False)
    json_head: bytes = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        key = self.uuid or sanitize(self.monitor) or sanitize(self.host)
        path = f"/vms/{self.uuid}" if self.uuid else f"/monitors/{_uri(self.monitor)}" if self.monitor else ""
        envelope = {
            "specversion": "1.0",
            "source": f"/hosts/{_uri(self.host)}{path}",
            "datacontenttype": "application/json",
        }
        envelope |= {"host": sanitize(self.host), "partitionkey": key}
        if self.uuid:
            envelope |= {"vmuuid": self.uuid, "vmname": sanitize(self.name)}
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "json_head", orjson.dumps(envelope)[:-1])
        object.__setattr__(self, "_hash", hash((self.host, self.uuid, self.name, self.monitor)))

    def __hash__(self) -> int:
        """Return the hash computed at construction: every event and every sample looks up its VM."""
        return self._hash


def _uri(text: str) -> str:
    return re.sub(
        r"[^A-Za-z0-9._~-]", lambda m: "".join(f"%{b:02X}" for b in m[0].encode("utf-8", "replace")), text.strip("/")
    )


class Record(NamedTuple):
    """One observation.

    Attributes:
        type: `qemu.event.<name>`, `qemu.sample.<family>`, `qemu.alert.<name>`, `qemu.vm.<change>`,
            `qemu.migration.ended` or `qemu.agent.<change>`.
        vm: the source.
        data: flat; field names and units are those of the metrics.
        time_ns: nanoseconds since the epoch: for an event, QEMU's time of it; for a sample, the instant before the query was sent.
        subject: the device, vCPU or job within the VM, or empty.
        severity: the severity.
    """

    type: str
    vm: Vm
    data: Mapping[str, Any]
    time_ns: int
    subject: str = ""
    severity: Severity = Severity.INFO

    @property
    def kind(self) -> str:
        """The second part of its type: `event`, `sample`, `alert`, `vm`, `migration` or `agent`."""
        return _kind(self.type)


@lru_cache(maxsize=1024)
def _kind(record_type: str) -> str:
    return record_type.split(".", 2)[1]


class RecordState(IntEnum):
    """The state of a record's delivery."""

    QUEUED = 0
    """In memory only."""
    WRITING = 1
    """In memory; the journal is writing it."""
    JOURNALED = 2
    """On disk."""
    DONE_WHILE_WRITING = 3
    """Delivered or dropped while the journal is writing it."""
    DONE = 4
    """Delivered or dropped."""


OVERHEAD_BYTES = 200
"""Approximate bytes that Python or SQLite uses for a record in addition to its body."""


_note_versions = itertools.count(1)


@dataclass(frozen=True, slots=True)
class StateNote:
    """A small named value that survives a restart of the agent. If two notes have the same name, the higher version counts.

    Attributes:
        name: the note's name.
        value: a JSON value; None deletes the note.
        version: higher than that of every earlier note of this run.
    """

    name: str
    value: Any
    version: int = field(default_factory=lambda: next(_note_versions))


@dataclass(slots=True, eq=False)
class EncodedRecord:
    """A record with its id and its bytes, as the record stream and delivery use it.

    Attributes:
        id: unique within its source; consumers deduplicate on it.
        key: the VM's key, which keeps the records of one VM in order.
        type: the record's type.
        time_ns: when it was observed, nanoseconds since the epoch.
        body: the CloudEvents JSON, UTF-8.
        vm: the VM it is about; None for a record that was read from the journal.
        severity: how urgent it is; INFO for a record that was read from the journal.
        note: the note that the journal stores in one transaction with the record, before the record is sent.
        row: its row in the journal; None while it is not in the journal.
        state: the state of its delivery; `agent.delivery.transitions` has the transitions.
    """

    id: str
    key: str
    type: str
    time_ns: int
    body: bytes
    vm: Vm | None = None
    severity: Severity = Severity.INFO
    note: StateNote | None = None
    row: int | None = None
    state: RecordState = RecordState.QUEUED

    @property
    def kind(self) -> str:
        """The second word of the type: `event`, `sample`, `alert`, `vm`, `migration` or `agent`."""
        return _kind(self.type)

    @property
    def done(self) -> bool:
        """True if it is delivered or dropped."""
        return self.state >= RecordState.DONE_WHILE_WRITING

    @property
    def size(self) -> int:
        """The bytes that it counts against a limit."""
        return len(self.body) + OVERHEAD_BYTES


_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
CONTENT_TYPE = "application/cloudevents+json"


class RecordEncoder:
    """Numbers and encodes records. Each run of the agent has one encoder."""

    def __init__(self, started_ns: int | None = None) -> None:
        millis = (time.time_ns() if started_ns is None else started_ns) // 1_000_000
        self.run = "".join(_BASE32[millis >> shift & 31] for shift in range(45, -1, -5))
        """First part of every id of this run: its start in milliseconds as ten Crockford base-32 digits. So ids sort by time."""
        self._sequence = 0
        self._second = 0, _second(0)

    def _time(self, time_ns: int) -> str:
        """Return an RFC 3339 timestamp in microseconds. It uses integers only: a float has an error of 200 ns at today's time."""
        seconds, nanos = divmod(time_ns, 1_000_000_000)
        if seconds != self._second[0]:
            self._second = seconds, _second(seconds)
        micros = nanos // 1000
        return f"{self._second[1]}.{micros:06d}Z" if micros else f"{self._second[1]}Z"

    def __call__(self, record: Record, note: StateNote | None = None) -> EncodedRecord:
        """Return the record encoded with the next id. Sequence numbers have no gaps, so that consumers can detect a loss."""
        self._sequence = number = self._sequence + 1
        record_type, vm, data, time_ns, device, severity = record
        record_id = f"{self.run}-{number}"
        subject = f',"subject":{orjson.dumps(sanitize(device)).decode()}' if device else ""
        # Concatenated by hand: a dict would take three times as long to build and encode.
        middle = (
            f',"id":"{record_id}","type":{_quoted(record_type)},"time":"{self._time(time_ns)}"'
            f',"severity":"{_LABELS[severity]}","sequence":"{number}"{subject},"data":'
        )
        body = b"".join((vm.json_head, middle.encode(), encode_json(data), b"}"))
        return EncodedRecord(record_id, vm.key, record_type, time_ns, body, vm, severity, note)

    def encode_samples(self, vm: Vm, samples: Iterable[Sample], time_ns: int) -> list[EncodedRecord]:
        """Return the records of a VM's samples of one poll, encoded with the next ids.

        The bytes are those that `Record`s of these samples would get; it takes a third of the time.

        Args:
            vm: the VM.
            samples: the samples.
            time_ns: time of the poll, nanoseconds since the epoch.
        """
        run, head, key, number = self.run, vm.json_head, vm.key, self._sequence
        severity = Severity.INFO
        time_and_severity = f'","time":"{self._time(time_ns)}","severity":"{_LABELS[severity]}","sequence":"'
        encoded = []
        for family, labels, values in samples:
            number += 1
            record_id = f"{run}-{number}"
            attributes = f',"id":"{record_id}","type":"{family.type}{time_and_severity}{number}"'
            subject_and_labels, data = _subject_and_labels(family, labels), encode_json(values)
            separator = b"," if labels and len(data) > len("{}") else b""
            body = b"".join((head, attributes.encode(), subject_and_labels, separator, data[1:], b"}"))
            encoded.append(EncodedRecord(record_id, key, family.type, time_ns, body, vm, severity))
        self._sequence = number
        return encoded


@lru_cache(maxsize=16384)
def _subject_and_labels(family: Family, labels: tuple[str, ...]) -> bytes:
    """Return the part of a sample's JSON from its subject to the last label in its data.

    VMs share the names of most disks, vCPUs and interfaces. So few entries of the cache serve all VMs.
    """
    subject = f',"subject":{orjson.dumps(sanitize(labels[0])).decode()}' if labels and labels[0] else ""
    data = encode_json(dict(zip(family.labels, labels, strict=True)))[:-1]
    return f'{subject},"data":'.encode() + data


@lru_cache(maxsize=1024)
def _quoted(text: str) -> str:
    return orjson.dumps(text).decode()


def encode_json(data: Mapping[str, Any]) -> bytes:
    """Return JSON of untrusted values. A value that JSON cannot hold is replaced, so that the others are not lost."""
    try:
        return orjson.dumps(data)
    except TypeError:
        return orjson.dumps({key: _encodable(value) for key, value in data.items()})


def _encodable(value: Any) -> Any:
    """Return the closest value that JSON can hold; an empty object if the value is nested too deep or has another type."""
    try:
        value = _large_integers_as_floats(value)
        orjson.dumps(value)
    except (TypeError, RecursionError):  # orjson reads 1024 levels and writes 254
        return {}
    return value


def _large_integers_as_floats(value: Any) -> Any:
    """Return the value with each integer beyond 64 bits as a float: a sum of counters can exceed them."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        try:
            return float(value)
        except OverflowError:
            return None
    if isinstance(value, Mapping):
        return {key: _large_integers_as_floats(inner) for key, inner in value.items()}
    return [_large_integers_as_floats(inner) for inner in value] if isinstance(value, list | tuple) else value


def _second(seconds: int) -> str:
    """Return the UTC date and time of a second since the epoch, in ISO 8601 without an offset."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()
