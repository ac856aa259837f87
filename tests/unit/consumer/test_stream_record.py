"""Parsing of Kafka messages that an independent CloudEvents library wrote, and of messages that are not records."""

from datetime import UTC, datetime
from typing import Any, Final

import orjson
import pytest
from cloudevents.core.bindings.kafka import to_binary, to_structured
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from agent.consumer.stream_record import MessageFormatError, MessagePosition, StreamRecord
from agent.delivery.sinks.kafka.message import ContentMode, build_message_encoder
from agent.model.record import CONTENT_TYPE, Record, RecordEncoder, Severity, Vm

POSITION: Final = MessagePosition("qemu.events", 3, 7)
ATTRIBUTES: Final = {
    "id": "01M7ZEJTQH-79",
    "source": "/hosts/hv7/vms/c0d1d0eb-c6e8-4c17-a33c-e83e9edad935",
    "type": "qemu.event.stop",
    "specversion": "1.0",
    "time": datetime(2026, 11, 21, 16, 21, 13, 321515, UTC),
    "subject": "größe",
    "host": "hv7",
    "vmuuid": "c0d1d0eb-c6e8-4c17-a33c-e83e9edad935",
    "vmname": "web-1",
    "severitytext": "WARN",
    "sequence": "01M7ZEJTQH000000000079",
    "previoussequence": "01M7ZEJTQH000000000070",
    "datacontenttype": "application/json",
    "partitionkey": "c0d1d0eb-c6e8-4c17-a33c-e83e9edad935",
}
DATA: Final = {"reason": "größe", "bytes": 1 << 60}


@pytest.fixture(params=[to_structured, to_binary])
def record(request: pytest.FixtureRequest) -> StreamRecord:
    message = request.param(CloudEvent(dict(ATTRIBUTES), DATA), JSONFormat())
    value = message.value if isinstance(message.value, bytes) else message.value.encode()
    return StreamRecord.parse(POSITION, value, [*message.headers.items()])


def test_both_content_modes_give_the_same_record(record: StreamRecord) -> None:
    assert (record.id, record.source, record.type) == tuple(ATTRIBUTES[name] for name in ("id", "source", "type"))
    assert (record.host, record.vm_uuid, record.vm_name) == ("hv7", ATTRIBUTES["vmuuid"], "web-1")
    assert (record.sequence, record.previous_sequence) == (ATTRIBUTES["sequence"], ATTRIBUTES["previoussequence"])
    assert (record.time, record.severity, record.subject) == (ATTRIBUTES["time"], "WARN", "größe")
    assert record.data == DATA
    assert record.position == POSITION


@pytest.mark.parametrize("mode", ContentMode)
def test_the_agents_own_messages_are_read_in_both_content_modes(mode: ContentMode) -> None:
    encode = RecordEncoder(0)
    vm = Vm("hv7", ATTRIBUTES["vmuuid"], "größe")  # type: ignore[arg-type]  # the table has a timestamp too
    first, second = (
        encode(Record("qemu.event.stop", vm, {"n": n}, 5 * 10**9, "disk0", Severity.ERROR)) for n in (1, 2)
    )
    before, record = (
        StreamRecord.parse(POSITION, value, headers)
        for _, value, headers in map(build_message_encoder(mode), (first, second))
    )
    assert (record.id, record.previous_sequence, record.data) == (second.id, before.sequence, {"n": 2})
    assert (record.vm_name, record.severity, record.subject) == ("größe", "ERROR", "disk0")
    assert record.time == datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC)
    assert record.attribute("datacontenttype") == "application/json"


def test_an_absent_attribute_is_empty() -> None:
    value: dict[str, object] = {"specversion": "1.0", "id": "a", "source": "/hosts/h", "type": "qemu.agent.started"}
    value |= {"time": "2026-11-21T16:21:13Z", "data": {}}
    record = StreamRecord.parse(POSITION, orjson.dumps(value), [])
    assert (record.previous_sequence, record.vm_uuid, record.subject) == ("", "", "")


def test_structured_mode_wins_over_copies_in_headers() -> None:
    value = {name: str(attribute) for name, attribute in ATTRIBUTES.items()} | {"data": DATA}
    headers = [("content-type", CONTENT_TYPE.encode()), ("ce_id", b"another"), ("ce_type", b"another")]
    assert StreamRecord.parse(POSITION, orjson.dumps(value), headers).id == ATTRIBUTES["id"]


@pytest.mark.parametrize(
    ("value", "headers", "cause"),
    [
        (None, [], "tombstone"),
        (b"{", [], "not JSON"),
        (b"[1]", [], "not a JSON object"),
        (b"{}", [], "data is not a JSON object"),
        (b'{"data":{}}', [], "the attribute id is missing"),
        (b'{"data":{},"id":"a","source":"b","type":"c","time":"now","specversion":"1.0"}', [], "not a timestamp"),
        (b'{"data":{},"id":"a","source":"b","type":"c","time":"now","specversion":"0.3"}', [], "specversion"),
        (b'{"data":{},"id":1,"source":"b","type":"c","time":"now","specversion":"1.0"}', [], "the attribute id"),
        (b"{}", [("ce_id", b"\xff")], "not UTF-8"),
        (b"{}", [("ce_id", b"a")], "the attribute source"),
        (b"{}", [("ce_id", None)], "the attribute id"),
    ],
)
def test_a_message_that_is_no_record_is_refused(
    value: bytes | None, headers: list[tuple[str, Any]], cause: str
) -> None:
    with pytest.raises(MessageFormatError, match=cause):
        StreamRecord.parse(POSITION, value, headers)
