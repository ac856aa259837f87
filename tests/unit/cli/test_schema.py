"""The published schemas accept the agent's records and reject others."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from agent.model.event_table import EVENT_DEFINITIONS
from agent.model.record import Record, RecordEncoder, Vm
from agent.schemas.record import record_schema
from tests.lab import golden_files
from tests.lab.fake_qemu import FakeQemu
from tests.lab.record_validation import parse_cloudevent, schema_violations
from tests.lab.recording_observer import RecordingObserver, quick_context, supervised
from tests.unit.collectors.test_collectors import BY_NAME, CASES, decode_replies
from tools.config_schema import config_schema

VM = Vm("host1", "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1", "vm1", "/run/vm1.qmp")
ENCODE = RecordEncoder()
STOP = Record("qemu.event.stop", VM, {"event": "STOP", "category": "runstate", "qemu": {}}, 0)


def body(kind: str, data: dict[str, Any]) -> bytes:
    return ENCODE(Record(kind, VM, data, 1_700_000_000_000_000_000)).body


def changed(**attributes: Any) -> list[str]:
    """Return the schema violations of a valid record after some attributes were changed. None removes an attribute."""
    event = {**json.loads(ENCODE(STOP).body), **attributes}
    return schema_violations(json.dumps({key: value for key, value in event.items() if value is not None}).encode())


@pytest.mark.parametrize("name", BY_NAME)
def test_every_sample_of_the_golden_files_is_valid(name: str) -> None:
    for case in CASES[name]:
        for sample in BY_NAME[name].collect(decode_replies(name, case["replies"])):
            encoded = body(f"qemu.sample.{sample.family.name}", sample.data)
            assert schema_violations(encoded) == [], case["case"]
            assert parse_cloudevent(encoded).get_data() == json.loads(json.dumps(sample.data))


async def test_every_lifecycle_and_event_record_is_valid(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path, context=quick_context(response_seconds=0.5)):
        await observer.wait_for_polls()
        for row in EVENT_DEFINITIONS:
            fake.emit(row.name, {"x": 1})
        fake.emit("NEVER_HEARD_OF")
        fake.emit("not a name")
        await observer.wait_until(lambda: observer.records("event.unknown"))
        fake.hang("query-blockstats")
        await observer.wait_until(lambda: observer.records("vm.stalled"))
        fake.release("query-blockstats")
        await observer.wait_for_polls(2)
        fake.emit("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
        fake.drop()
        await observer.wait_until(lambda: len(observer.records("vm.attached")) == 2)
    kinds = set(observer.types("vm"))
    assert kinds == {"vm.attached", "vm.stalled", "vm.recovered", "vm.gone", "vm.detached"}
    assert len(observer.types("event")) >= len(EVENT_DEFINITIONS) + 3
    for record in observer.records():
        assert schema_violations(ENCODE(record).body) == [], record.type
        parse_cloudevent(ENCODE(record).body)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("qemu.event.stop", {"event": "STOP"}),
        ("qemu.event.stop", {"event": "STOP", "category": "nonsense", "qemu": {}}),
        ("qemu.event.stop", {"event": "STOP", "category": "runstate", "qemu": {}, "more": 1}),
        ("qemu.sample.block", {"reads_total": 1}),
        ("qemu.sample.block", {"device": "d", "reads_total": -1}),
        ("qemu.sample.block", {"device": "d", "reads_total": "1"}),
        ("qemu.sample.block", {"device": "", "reads_total": 1}),
        ("qemu.sample.block", {"device": "d", "read_total": 1}),
        ("qemu.sample.nonsense", {}),
        ("qemu.vm.gone", {}),
        ("qemu.vm.recovered", {"reason": "x"}),
        ("qemu.alert.write_threshold", {"alert": "write_threshold"}),
        ("com.example.other", {}),
    ],
)
def test_other_records_are_rejected(kind: str, data: dict[str, Any]) -> None:
    assert schema_violations(body(kind, data))


@pytest.mark.parametrize(
    "attributes",
    [
        {"id": None},
        {"id": "7"},
        {"source": None},
        {"source": "host1"},
        {"source": "/hosts/a b/vms/x"},
        {"time": "2023-11-14 22:13:20"},
        {"time": "2023-13-14T22:13:20Z"},
        {"vmuuid": "5bd1a5a4"},
        {"severitytext": "CRITICAL"},
        {"severitynumber": "9"},
        {"severity": "info"},
        {"sequence": "7"},
        {"sequence": None},
        {"previoussequence": "7"},
        {"recordedtime": "now"},
        {"datacontenttype": "application/json"},
        {"sampledrate": 1},
        {"causationid": ""},
        {"correlationid": "x"},
        {"partitionkey": ""},
        {"data": []},
        {"dataschema": "x"},
        {"dataschema": None},
    ],
)
def test_a_record_with_a_wrong_attribute_is_rejected(attributes: dict[str, Any]) -> None:
    assert changed() == []
    assert changed(**attributes)


@pytest.mark.parametrize("name", ["record", "config"])
def test_the_published_files_match_the_code(name: str) -> None:
    generated = record_schema() if name == "record" else config_schema()
    Draft202012Validator.check_schema(generated)
    root = Path(golden_files.FOLDER).parents[1]
    file = root / ("agent/config/agent.schema.json" if name == "config" else "config/record.schema.json")
    assert json.loads(file.read_text("utf-8")) == json.loads(json.dumps(generated))
