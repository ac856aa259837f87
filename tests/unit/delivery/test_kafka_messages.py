"""Kafka messages of records: an independent CloudEvents reader reads the same event in both content modes."""

import json

import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from cloudevents.core.bindings.kafka import KafkaMessage as SdkMessage
from cloudevents.core.bindings.kafka import from_binary_event, from_structured_event
from hypothesis import given
from hypothesis import strategies as st

from agent.delivery.sinks.kafka.message import (
    ContentMode,
    HeaderAttribute,
    KafkaMessage,
    StructuredMessageEncoder,
    binary_message,
    build_message_encoder,
    message_bytes_upper_bound,
)
from agent.model.record import EncodedRecord, Record, RecordEncoder, Vm
from tests.lab.record_validation import parse_cloudevent

UUID = "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1"
RECORD = RecordEncoder(0, clock=lambda: 7 * 10**9)(
    Record("qemu.event.stop", Vm("host1", UUID, "größe"), {"event": "STOP"}, 5 * 10**9, "disk0", causation_id="x-7")
)
_names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300) | st.sampled_from(
    [',"data":', '{"data":{', '\\",\\"data\\":', "a\n", "é" * 255]
)


def encode_named(host: str, name: str, subject: str) -> EncodedRecord:
    vm = Vm(host, UUID, name)
    data = {"data": {"data": name}}
    return RecordEncoder()(Record("qemu.event.x", vm, data, 0, subject, sample_rate=3))


def read(mode: ContentMode, message: KafkaMessage) -> dict[str, object]:
    """Return the attributes and the data that the SDK reads. It reads an integer in a header as text, so these are converted."""
    reader = from_structured_event if mode is ContentMode.STRUCTURED else from_binary_event
    key, value, headers = message
    event = reader(SdkMessage(dict(headers), key, value or b""))
    numbers = {name: int(str(event.get_extension(name))) for name in ("severitynumber", "sampledrate")}
    return {"datacontenttype": "application/json", **event.get_attributes(), **numbers, "data": event.get_data()}


def test_structured_messages_have_the_whole_record_and_headers_for_filters() -> None:
    key, value, headers = StructuredMessageEncoder()(RECORD)
    assert (key, value) == (UUID.encode(), RECORD.body)
    assert dict(headers) == {
        "content-type": b"application/cloudevents+json",
        "ce_type": b"qemu.event.stop",
    }


def test_the_headers_of_structured_messages_are_those_that_the_config_chooses() -> None:
    _, value, headers = StructuredMessageEncoder(HeaderAttribute)(RECORD)
    assert value == RECORD.body
    assert dict(headers) == {
        "content-type": b"application/cloudevents+json",
        "ce_severitytext": b"INFO",
        "ce_severitynumber": b"9",
        "ce_host": b"host1",
        "ce_source": f"/hosts/host1/vms/{UUID}".encode(),
        "ce_vmuuid": UUID.encode(),
        "ce_vmname": "größe".encode(),
        "ce_type": b"qemu.event.stop",
        "ce_subject": b"disk0",
        "ce_id": b"0000000000-1",
    }
    _, _, headers = StructuredMessageEncoder([])(RECORD)
    assert headers == [("content-type", b"application/cloudevents+json")]


@given(_names, _names, _names)
def test_a_record_from_the_journal_has_the_same_message(host: str, name: str, subject: str) -> None:
    record = encode_named(host, name, subject)
    restored = EncodedRecord(record.id, record.key, record.type, record.time_ns, record.body)
    for encode in (StructuredMessageEncoder(), StructuredMessageEncoder(HeaderAttribute)):
        assert encode(restored) == encode(record)


def test_the_body_of_a_record_from_the_journal_is_not_parsed_for_the_default_header() -> None:
    record = EncodedRecord("1", "vm1", "qemu.event.stop", 0, b"not JSON")
    encode = StructuredMessageEncoder()
    assert encode(record) == (b"vm1", record.body, encode(RECORD)[2])


def test_binary_messages_have_the_data_and_all_attributes_as_headers() -> None:
    key, value, headers = binary_message(RECORD)
    attributes = json.loads(RECORD.body)
    assert (key, json.loads(value or b"")) == (UUID.encode(), attributes.pop("data"))
    expected = {f"ce_{name}": str(value).encode() for name, value in attributes.items()}
    assert dict(headers) == {"content-type": b"application/json", **expected}
    assert expected["ce_recordedtime"] == b"1970-01-01T00:00:07Z"


@pytest.mark.parametrize("mode", ContentMode)
@given(_names, _names, _names)
def test_a_reader_gets_the_same_event_in_either_mode(mode: ContentMode, host: str, name: str, subject: str) -> None:
    record = encode_named(host, name, subject)
    message = build_message_encoder(mode, HeaderAttribute)(record)
    event = parse_cloudevent(record.body)
    expected = {**event.get_attributes(), "data": event.get_data()}
    assert read(mode, message) == {"datacontenttype": "application/json"} | expected
    key, _, message_headers = message
    assert key.decode() == expected["partitionkey"]
    headers = {name.removeprefix("ce_"): value.decode() for name, value in message_headers}
    assert all(headers[name] == str(expected[name]) for name in HeaderAttribute if name in expected)


@pytest.mark.parametrize("mode", ContentMode)
@given(_names, _names, _names)
def test_a_message_takes_no_more_bytes_than_stated(mode: ContentMode, host: str, name: str, subject: str) -> None:
    batch = BatchBuilder(1 << 20, 0)
    empty = batch.size()
    message = build_message_encoder(mode, HeaderAttribute)(encode_named(host, name, subject))
    key, value, headers = message
    batch.append(timestamp=1 << 60, key=key, value=value, headers=headers)
    assert batch.size() - empty <= message_bytes_upper_bound(message) < batch.size() - empty + 256


def test_headers_and_key_take_less_than_three_times_the_body() -> None:
    """A sink need not encode the message of a record to know that it is smaller than four times the record's body."""
    for vm in (Vm("é" * 255, UUID, "日" * 255), Vm("日" * 255, "", "", "/" + "日" * 2000)):
        record = RecordEncoder()(Record("qemu.vm.busy", vm, {}, 0, "日" * 255))
        for encode in (StructuredMessageEncoder(HeaderAttribute), binary_message):
            assert message_bytes_upper_bound(encode(record)) < 3 * len(record.body) + 300
