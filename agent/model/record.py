"""What flows: one kind of record for everything, a CloudEvents 1.0 event in JSON structured mode.

A `Record` is what a room makes; a `RecordEncoder` gives it its id and turns it into the bytes that are delivered, each record once.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

import orjson


class Severity(IntEnum):
    """How much a record asks for attention; ordered."""

    DEBUG = 0
    INFO = 1
    WARNING = 2
    ERROR = 3
    CRITICAL = 4

    @property
    def label(self) -> str:
        """The word in the record."""
        return _LABELS[self]


_LABELS = [severity.name.lower() for severity in Severity]

_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters, which CloudEvents forbids in attributes, and those that reorder or break a line for a person who reads it."""


def sanitize(text: str, limit: int = 255) -> str:
    """Return text from a guest's QEMU fit for an attribute, a label or a log line: no control characters, bounded."""
    if text.isascii() and text.isprintable() and len(text) <= limit:
        return text
    return _UNFIT.sub("\ufffd", text[:limit])


@dataclass(frozen=True, slots=True)
class Vm:
    """Whom a record is about.

    Attributes:
        host: this host's name.
        uuid: the VM's UUID; the key of its records, so that they stay in order. Empty where a monitor has not told yet.
        name: the VM's name for people; its UUID where it has none.
        monitor: the monitor's address, as the operator would write it. Empty, with no UUID, is the agent itself.
        key: what its records are put in order by.
        head: how each of its records begins: what is the same in all of them, made once.
    """

    host: str
    uuid: str
    name: str
    monitor: str = ""
    key: str = field(init=False, repr=False, compare=False)
    head: bytes = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        key = self.uuid or sanitize(self.monitor) or sanitize(self.host)
        place = f"/vms/{self.uuid}" if self.uuid else f"/monitors/{_uri(self.monitor)}" if self.monitor else ""
        envelope = {
            "specversion": "1.0",
            "source": f"/hosts/{_uri(self.host)}{place}",
            "datacontenttype": "application/json",
        }
        envelope |= {"host": sanitize(self.host), "partitionkey": key}
        if self.uuid:
            envelope |= {"vmuuid": self.uuid, "vmname": sanitize(self.name)}
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "head", orjson.dumps(envelope)[:-1])
        object.__setattr__(self, "_hash", hash((self.host, self.uuid, self.name, self.monitor)))

    def __hash__(self) -> int:
        """Return what was reckoned once: every event and every sample looks its VM up."""
        return self._hash


def _uri(text: str) -> str:
    return re.sub(
        r"[^A-Za-z0-9._~-]", lambda m: "".join(f"%{b:02X}" for b in m[0].encode("utf-8", "replace")), text.strip("/")
    )


class Record(NamedTuple):
    """One thing that was seen.

    Attributes:
        type: `qemu.event.<name>`, `qemu.sample.<family>`, `qemu.alert.<name>`, `qemu.vm.<change>`,
            `qemu.migration.ended` or `qemu.agent.<change>`.
        vm: whom it is about.
        data: flat; field names and units are those of the metrics.
        time_ns: nanoseconds since the epoch: QEMU's own time for an event, the instant before the question for a sample.
        subject: the device, vCPU or job within the VM, or empty.
        severity: how much it asks for attention.
    """

    type: str
    vm: Vm
    data: Mapping[str, Any]
    time_ns: int
    subject: str = ""
    severity: Severity = Severity.INFO

    @property
    def kind(self) -> str:
        """What its type says of whom it is for: `event`, `sample`, `alert`, `vm`, `migration` or `agent`."""
        return _kind(self.type)


@lru_cache(maxsize=1024)
def _kind(kind: str) -> str:
    return kind.split(".", 2)[1]


class EncodedRecord(NamedTuple):
    """A record with its id and its bytes.

    Attributes:
        record: what it was made of.
        id: unique within its source; what consumers deduplicate on.
        body: the CloudEvents JSON, UTF-8.
    """

    record: Record
    id: str
    body: bytes


_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
CONTENT_TYPE = "application/cloudevents+json"


class RecordEncoder:
    """Numbers records and encodes them. One for each run of the agent."""

    def __init__(self, started_ns: int | None = None) -> None:
        millis = (time.time_ns() if started_ns is None else started_ns) // 1_000_000
        self.run = "".join(_BASE32[millis >> shift & 31] for shift in range(45, -1, -5))
        """This run's part of every id: its start in milliseconds, ten Crockford base-32 digits, so that ids sort by time."""
        self._sequence = 0
        self._second = 0, _second(0)

    def _time(self, time_ns: int) -> str:
        """Return the instant to the microsecond as RFC 3339 has it, by whole numbers: a float of today's nanoseconds is 200 ns off."""
        seconds, rest = divmod(time_ns, 1_000_000_000)
        if seconds != self._second[0]:
            self._second = seconds, _second(seconds)
        micros = rest // 1000
        return f"{self._second[1]}.{micros:06d}Z" if micros else f"{self._second[1]}Z"

    def __call__(self, record: Record) -> EncodedRecord:
        """Return the record with the next id. Sequence numbers have no gaps, so that a consumer can see a loss."""
        self._sequence = number = self._sequence + 1
        kind, vm, data, time_ns, about, severity = record
        record_id = f"{self.run}-{number}"
        subject = f',"subject":{orjson.dumps(sanitize(about)).decode()}' if about else ""
        # By hand, for a third of what a dict of it all takes to make and to encode.
        middle = (
            f',"id":"{record_id}","type":{_quoted(kind)},"time":"{self._time(time_ns)}"'
            f',"severity":"{_LABELS[severity]}","sequence":"{number}"{subject},"data":'
        )
        return EncodedRecord(record, record_id, b"".join((vm.head, middle.encode(), _encode(data), b"}")))


@lru_cache(maxsize=1024)
def _quoted(text: str) -> str:
    return orjson.dumps(text).decode()


def _encode(data: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(data)
    except TypeError:
        # QEMU's data can be nested deeper than orjson writes (it reads 1024 levels and writes 254): then it is told without.
        return orjson.dumps({key: value if isinstance(value, str | int | float) else {} for key, value in data.items()})


def _second(seconds: int) -> str:
    """Return a second since the epoch, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()
