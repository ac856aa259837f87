"""Records: each event, sample, alert and lifecycle change is a CloudEvents 1.0 event in JSON structured mode.

A component creates a `Record`. A `RecordEncoder` gives the record an id, and encodes it into the bytes that sinks deliver.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson

from agent.model.family import Family, Sample
from agent.model.json_encoding import encode_json
from agent.model.persistent_entry import PersistentEntry
from agent.model.schema_versions import dataschema
from agent.model.sequences import SequenceRegistry, TopicFor, format_run_id, run_id_after


class Severity(IntEnum):
    """Severity of a record. Severities can be compared: `DEBUG` is the lowest."""

    DEBUG = 0
    INFO = 1
    WARNING = 2
    ERROR = 3
    CRITICAL = 4

    @property
    def label(self) -> str:
        """The name in lower case, such as `warning`, for labels of metrics and options of commands."""
        return _LABELS[self]

    @property
    def opentelemetry_text(self) -> str:
        """OpenTelemetry's short name, such as `WARN`, for the attribute `severitytext`."""
        return _TEXTS[self]

    @property
    def opentelemetry_number(self) -> int:
        """OpenTelemetry's number, from 5 to 21, for the attribute `severitynumber`."""
        return 5 + 4 * self


_LABELS = [severity.name.lower() for severity in Severity]
_TEXTS = ["DEBUG", "INFO", "WARN", "ERROR", "FATAL"]
_SEVERITY_ATTRIBUTES = [
    f'"severitytext":"{severity.opentelemetry_text}","severitynumber":{severity.opentelemetry_number}'
    for severity in Severity
]

_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
_UNSAFE = re.compile(rf"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff{_NONCHARACTERS}]")
"""Matches characters that CloudEvents forbids in attributes (control characters, surrogates and noncharacters), and characters that
reorder or break a line on a terminal."""


def sanitize(text: str, limit: int = 255) -> str:
    """Make text from QEMU safe for attributes, labels and log lines.

    Args:
        text: the text. Unsafe characters are replaced by U+FFFD.
        limit: maximum number of characters; a longer text is cut off.
    """
    if text.isascii() and text.isprintable() and len(text) <= limit:
        return text
    return _UNSAFE.sub("\ufffd", text[:limit])


@dataclass(frozen=True, slots=True)
class Vm:
    """The source of a record: a VM, a monitor whose VM is not known yet, or the agent itself.

    Attributes:
        host: the name of this host.
        uuid: the VM's UUID; empty until the monitor reports the UUID.
        name: the VM's name; if the VM has no name, its UUID.
        monitor: the monitor's address, as in the config; empty if the source is the agent itself.
        namespace: the VM's namespace in Kubernetes; empty for other VMs.
        source: the attribute `source`.
        key: the partition key: the VM's UUID. If the UUID is unknown, the monitor's address. For the agent itself, the host's name. Records
            with the same key stay in order.
        json_prefix: the start of the JSON of each record of the source, with the attributes that all of the source's records share.
    """

    host: str
    uuid: str
    name: str
    monitor: str = ""
    namespace: str = field(default="", compare=False)
    source: str = field(init=False, repr=False, compare=False)
    key: str = field(init=False, repr=False, compare=False)
    json_prefix: bytes = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        key = self.uuid or sanitize(self.monitor) or sanitize(self.host)
        path = (
            f"/vms/{self.uuid}" if self.uuid else f"/monitors/{_percent_encode(self.monitor)}" if self.monitor else ""
        )
        source = f"/hosts/{_percent_encode(self.host)}{path}"
        envelope = {"specversion": "1.0", "source": source, "host": sanitize(self.host), "partitionkey": key}
        if self.uuid:
            envelope |= {"vmuuid": self.uuid, "vmname": sanitize(self.name)}
        if self.namespace:
            envelope["vmnamespace"] = sanitize(self.namespace)
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "json_prefix", orjson.dumps(envelope)[:-1])
        object.__setattr__(self, "_hash", hash((self.host, self.uuid, self.name, self.monitor)))

    @property
    def has_tcp_monitor(self) -> bool:
        """True if the VM may run on another host, because its monitor is on TCP."""
        return self.monitor.startswith("tcp:")

    def __hash__(self) -> int:
        """Return the stored hash. Each event and each sample looks up its VM, so the hash is computed only once."""
        return self._hash


def _percent_encode(text: str) -> str:
    return re.sub(
        r"[^A-Za-z0-9._~-]", lambda m: "".join(f"%{b:02X}" for b in m[0].encode("utf-8", "replace")), text.strip("/")
    )


class Record(NamedTuple):
    """An event, a sample, an alert or a lifecycle change, before it is encoded.

    Attributes:
        type: `qemu.event.<name>`, `qemu.sample.<family>`, `qemu.alert.<name>`, `qemu.vm.<change>`,
            `qemu.migration.ended`, `qemu.agent.<change>` or `qemu.state.<name>`.
        vm: the source.
        data: the fields by name, with the names and units of the metrics. The field `qemu` of an event has the data from QEMU.
        time_ns: nanoseconds since the epoch: QEMU's timestamp of an event, or the time just before a sample's query was sent.
        subject: the device, vCPU or job within the VM; empty for the VM as a whole.
        severity: the severity.
        sample_rate: number of events in the record; more than 1 if events were coalesced.
        causation_id: id of the record that caused this record; empty if unknown.
    """

    type: str
    vm: Vm
    data: Mapping[str, Any]
    time_ns: int
    subject: str = ""
    severity: Severity = Severity.INFO
    sample_rate: int = 1
    causation_id: str = ""

    @property
    def kind(self) -> str:
        """The second part of the type: `event`, `sample`, `alert`, `vm`, `migration`, `agent` or `state`."""
        return kind_of_record_type(self.type)


@lru_cache(maxsize=1024)
def kind_of_record_type(record_type: str) -> str:
    """Return the second part of a record type: `event`, `sample`, `alert`, `vm`, `migration`, `agent` or `state`."""
    return record_type.split(".", 2)[1]


class RecordDeliveryState(IntEnum):
    """The delivery state of a record."""

    QUEUED = 0
    """The record is in memory only."""
    WRITING = 1
    """The record is in memory, and the journal is writing it."""
    JOURNALED = 2
    """The record is in the journal."""
    DONE_WHILE_WRITING = 3
    """The record was delivered or dropped, but the journal is still writing it."""
    DONE = 4
    """The record was delivered or dropped."""


_FIRST_DONE_STATE: Final = RecordDeliveryState.DONE_WHILE_WRITING
"""The first state of a delivered or dropped record. The constant saves a lookup of an enum member (0.1 us in Python 3.11)."""

MIN_RECORDEDTIME_GAP_NS = 100_000_000
"""A record has the attribute `recordedtime` if its time and the time of its encoding differ by at least this many nanoseconds."""

RECORD_OVERHEAD_BYTES = 200
"""Approximate bytes that a record takes in addition to its body, in memory or in the journal."""


@dataclass(slots=True, eq=False)
class EncodedRecord:
    """A record with its id and its encoded body. Delivery and the live record stream use records in this form.

    Attributes:
        id: identifies the record within its source. Consumers recognise duplicates by the id.
        key: the partition key, `Vm.key`.
        type: the record's type.
        time_ns: the record's time, nanoseconds since the epoch.
        body: the record as CloudEvents JSON in UTF-8.
        vm: the record's source; None if the record was read from the journal.
        subject: the record's subject, before control characters are replaced; empty if the record was read from the journal.
        severity: the record's severity; INFO if the record was read from the journal.
        persistent_entry: a persistent entry that the journal stores in one transaction with the record, before the record is sent;
            usually None.
        row: the record's row in the journal; None while the record is not in the journal.
        delivery_state: the delivery state; `agent.delivery.record_state_machine` has the transitions.
    """

    id: str
    key: str
    type: str
    time_ns: int
    body: bytes
    vm: Vm | None = None
    subject: str = ""
    severity: Severity = Severity.INFO
    persistent_entry: PersistentEntry | None = None
    row: int | None = None
    delivery_state: RecordDeliveryState = RecordDeliveryState.QUEUED

    @property
    def kind(self) -> str:
        """The second part of the type, as in `Record.kind`."""
        return kind_of_record_type(self.type)

    @property
    def is_delivered_or_dropped(self) -> bool:
        """True if the record was delivered or dropped."""
        return self.delivery_state >= _FIRST_DONE_STATE

    @property
    def bytes_with_overhead(self) -> int:
        """Approximate bytes that the record takes in a queue, with overhead."""
        return len(self.body) + RECORD_OVERHEAD_BYTES


CONTENT_TYPE = "application/cloudevents+json"


class RecordEncoder:
    """Gives records their ids and encodes them. Each run of the agent has one encoder."""

    def __init__(
        self,
        started_ns: int | None = None,
        topic_of: TopicFor = kind_of_record_type,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Set up an encoder.

        Args:
            started_ns: when this run of the agent started, nanoseconds since the epoch; None for now.
            topic_of: returns the topic of a record type; by default, each kind has a topic.
            clock: returns nanoseconds since the epoch.
        """
        self.run_id = format_run_id((clock() if started_ns is None else started_ns) // 1_000_000)
        """First part of each id and each sequence of this run. The run ids of later runs sort after this run id."""
        self._count = 0
        self.sequences = SequenceRegistry(self.run_id)
        """The newest sequence of each source, by topic."""
        self._topic_of = lru_cache(maxsize=1024)(topic_of)
        self._sequence_topic_and_type = lru_cache(maxsize=1024)(
            lambda name: (_sequence_topic(name, topic_of), _encode_type(name))
        )
        self._clock = clock

    def ensure_run_id_after(self, run_id: str) -> None:
        """Make this run's id sort after the previous run's id, even if the clock was set back between the runs.

        Args:
            run_id: run id of the previous run.
        """
        if run_id >= self.run_id and (following := run_id_after(run_id)) is not None:
            self.run_id = following
            self.sequences = SequenceRegistry(following)

    def _encode_time_and_severity(self, time_ns: int, severity: Severity) -> str:
        """Return the JSON members for time and severity, which are the same for all samples of a poll."""
        now_ns = self._clock()
        if abs(now_ns - time_ns) < MIN_RECORDEDTIME_GAP_NS:
            return f'"time":"{_format_time(time_ns)}",{_SEVERITY_ATTRIBUTES[severity]}'
        recorded = _format_millisecond(now_ns // 1_000_000)
        return f'"time":"{_format_time(time_ns)}","recordedtime":"{recorded}",{_SEVERITY_ATTRIBUTES[severity]}'

    def __call__(self, record: Record, entry: PersistentEntry | None = None) -> EncodedRecord:
        """Encode a record.

        Args:
            record: the record, which gets the next id. The numbers in ids have no gaps, so that consumers can detect a loss.
            entry: a persistent entry that the journal stores together with the record.
        """
        self._count = number = self._count + 1
        record_type, vm, data, time_ns, subject, severity, rate, cause = record
        record_id = f"{self.run_id}-{number}"
        sequence_topic, type_members = self._sequence_topic_and_type(record_type)
        sequence = self.sequences.next_attributes(vm.source, sequence_topic)
        optional = _encode_optional_attributes(rate, cause) if cause or rate > 1 else ""
        # The JSON is concatenated as text, because building and encoding a dict takes three times as long.
        middle = (
            f',"id":"{record_id}",{sequence},{self._encode_time_and_severity(time_ns, severity)}'
            f'{optional}{type_members}{_encode_subject(subject) if subject else ""},"data":'
        )
        body = b"".join((vm.json_prefix, middle.encode(), encode_json(data), b"}"))
        return EncodedRecord(record_id, vm.key, record_type, time_ns, body, vm, subject, severity, entry)

    def encode_samples(self, vm: Vm, samples: Iterable[Sample], time_ns: int) -> list[EncodedRecord]:
        """Encode the samples of one poll of a VM as records with the next ids, and return the records.

        The result is the same as for one `Record` per sample, in a third of the time.

        Args:
            vm: the VM.
            samples: the samples.
            time_ns: time of the poll, nanoseconds since the epoch.
        """
        run_id, json_prefix, key, number, topic_of = self.run_id, vm.json_prefix, vm.key, self._count, self._topic_of
        next_attributes = self.sequences.get_or_create(vm.source).next_attributes
        severity = Severity.INFO
        time_and_severity = self._encode_time_and_severity(time_ns, severity)
        encoded = []
        for family, labels, values in samples:
            number += 1
            record_id, record_type = f"{run_id}-{number}", family.type
            attributes = f',"id":"{record_id}",{next_attributes(topic_of(record_type))},{time_and_severity}'
            type_and_labels, data = _encode_type_and_labels(family, labels), encode_json(values)
            separator = b"," if labels and len(data) > len("{}") else b""
            body = b"".join((json_prefix, attributes.encode(), type_and_labels, separator, data[1:], b"}"))
            subject = labels[0] if labels else ""
            encoded.append(EncodedRecord(record_id, key, record_type, time_ns, body, vm, subject, severity))
        self._count = number
        return encoded


def _sequence_topic(record_type: str, topic_of: TopicFor) -> str | None:
    """Return the topic for `previoussequence`. Return None for a state record, because Kafka deletes old state records."""
    return None if kind_of_record_type(record_type) == "state" else topic_of(record_type)


def _encode_optional_attributes(sample_rate: int, causation_id: str) -> str:
    """Return the JSON members of the optional attributes; empty for most records."""
    text = f',"sampledrate":{sample_rate}' if sample_rate > 1 else ""
    return f'{text},"causationid":{_to_json_string(causation_id)}' if causation_id else text


def _encode_subject(subject: str) -> str:
    """Return the JSON member of a subject; empty for a blank subject, because CloudEvents' SDK for Go rejects blank subjects."""
    # A fast path for most names, which takes a third of the time.
    if subject.isalnum() and subject.isascii() and len(subject) < 256:
        return f',"subject":"{subject}"'
    return f',"subject":{orjson.dumps(sanitize(subject)).decode()}' if subject.strip() else ""


@lru_cache(maxsize=1024)
def _encode_type(record_type: str) -> str:
    return f',"type":{_to_json_string(record_type)},"dataschema":{_to_json_string(dataschema(record_type))}'


@lru_cache(maxsize=16384)
def _encode_type_and_labels(family: Family, labels: tuple[str, ...]) -> bytes:
    """Return the part of a sample's JSON from its type to the last label in its data.

    Most VMs use the same names of disks, vCPUs and interfaces, so a small cache is enough for all VMs.
    """
    data = encode_json(dict(zip(family.labels, labels, strict=True)))[:-1]
    subject = _encode_subject(labels[0] if labels else "")
    return f'{_encode_type(family.type)}{subject},"data":'.encode() + data


@lru_cache(maxsize=1024)
def _to_json_string(text: str) -> str:
    return orjson.dumps(text).decode()


def _format_time(time_ns: int) -> str:
    """Return an RFC 3339 timestamp with microseconds.

    The computation uses integers, because a float of the current time has an error of 200 ns.
    """
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    micros = nanos // 1000
    return f"{_format_second(seconds)}.{micros:06d}Z" if micros else f"{_format_second(seconds)}Z"


@lru_cache(maxsize=4)
def _format_millisecond(milliseconds: int) -> str:
    """Return an RFC 3339 timestamp of a number of milliseconds since the epoch.

    Many events of a flood arrive in the same millisecond, so the cache saves most of the work.
    """
    return _format_time(milliseconds * 1_000_000)


@lru_cache(maxsize=4)
def _format_second(seconds: int) -> str:
    """Return the UTC date and time of a number of seconds since the epoch, in ISO 8601 without an offset."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()
