"""The official CloudEvents SDKs read a record of each type, in both content modes of Kafka, as it was sent."""

import json
from datetime import datetime
from typing import Any

import pytest

from agent.cli.demo.images import MissingDependencyError
from agent.delivery.sinks.kafka.message import ContentMode, HeaderAttribute, build_message_encoder
from agent.model.record import EncodedRecord, Record, RecordEncoder, Vm
from tests.lab.cloudevents_sdks import READERS, Event
from tests.unit.model.test_record import HOSTILE
from tools.reference import EXAMPLES

UUID = "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1"


def records_of_each_type() -> list[EncodedRecord]:
    """Return the records of docs/reference/records.md, and records with hostile names and all optional attributes."""
    examples = [
        EncodedRecord(
            record["id"], record["partitionkey"], record["type"], 0, json.dumps(record, separators=(",", ":")).encode()
        )
        for record in map(json.loads, EXAMPLES.read_text("utf-8").splitlines())
    ]
    encode = RecordEncoder()
    data = {"event": "X", "category": "unknown", "qemu": {"größe": [1, 2.5, None, "\u2028"]}}
    hostile = [
        encode(
            Record("qemu.event.x", Vm(name[:99], UUID, name), data, 1, name[:99], sample_rate=30)._replace(
                causation_id="a-1"
            )
        )
        for name in HOSTILE
    ]
    return examples + hostile


def normalized(event: Event) -> dict[str, Any]:
    """Return attributes and data for a comparison: times in milliseconds, which is all that JavaScript has, and integers as texts."""
    attributes = {name: str(value) for name, value in event["attributes"].items()}
    for name in {"time", "recordedtime"} & attributes.keys():
        attributes[name] = datetime.fromisoformat(attributes[name]).isoformat(timespec="milliseconds")
    if attributes.get("datacontenttype", "").partition(";")[0] in ("", "application/json"):
        attributes["datacontenttype"] = "application/json"  # the default
    return attributes | {"data": event["data"]}


@pytest.mark.parametrize("mode", ContentMode)
@pytest.mark.parametrize("language", READERS)
def test_an_official_sdk_reads_a_record_of_each_type(language: str, mode: ContentMode) -> None:
    records = records_of_each_type()
    try:
        events = READERS[language](mode, list(map(build_message_encoder(mode, HeaderAttribute), records)))
    except MissingDependencyError as error:
        pytest.skip(str(error))
    assert len(events) == len(records) > 80
    for record, event in zip(records, events, strict=True):
        attributes = json.loads(record.body)
        expected = {"data": attributes.pop("data"), "attributes": attributes}
        assert normalized(event) == normalized(expected)
