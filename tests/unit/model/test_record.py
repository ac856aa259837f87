"""Encoded records: numbered without gaps, exact, and valid for every name of a VM."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model.family import Sample
from agent.model.metrics.block import BLOCK, BLOCK_BACKING
from agent.model.metrics.runstate import RUNSTATE
from agent.model.record import Record, RecordEncoder, Severity, Vm, sanitize
from tests.lab.record_validation import parse_cloudevent, schema_violations

UUID = "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1"
VM = Vm("host1", UUID, "vm1", "/run/vm1.qmp")
HOSTILE = [
    "a\nb",
    "\x00",
    "\x1b[31mred",
    "a\u2028b\u2029",
    "\u202egnp.exe",
    "\u2066x",
    "é日本",
    "x" * 1_000_000,
    " ",
    "%41",
    "../..",
]


def encode_to_dict(record: Record, encoder: RecordEncoder | None = None) -> dict[str, Any]:
    body = (encoder or RecordEncoder())(record).body
    parse_cloudevent(body)
    event: dict[str, Any] = json.loads(body)
    return event


def stop_record(vm: Vm = VM, time_ns: int = 0, subject: str = "", severity: Severity = Severity.INFO) -> Record:
    data = {"event": "STOP", "category": "runstate", "qemu": {}}
    return Record("qemu.event.stop", vm, data, time_ns, subject, severity)


# --- Ids ---


def test_the_numbers_in_ids_increase_by_one_over_all_records_of_a_run() -> None:
    encoder = RecordEncoder()
    other = Vm("host1", "", "", "/run/vm2.qmp")
    events = [encode_to_dict(stop_record(vm), encoder) for vm in (VM, other, VM, VM)]
    assert [event["id"] for event in events] == [f"{encoder.run_id}-{number}" for number in range(1, 5)]


@given(st.integers(0, 2**63), st.integers(1_000_000, 2**62))
def test_the_ids_of_a_later_run_sort_after_those_of_an_earlier_run(start: int, later: int) -> None:
    assert RecordEncoder(start).run_id < RecordEncoder(start + later).run_id
    assert len(RecordEncoder(start).run_id) == 10


# --- Time ---


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_700_000_000_000_001_000, "2023-11-14T22:13:20.000001Z"),
        (1_700_000_000_999_999_999, "2023-11-14T22:13:20.999999Z"),
        (1_795_252_893_123_456_000, "2026-11-21T09:21:33.123456Z"),
        ((1 << 33) * 10**9 - 1000, "2242-03-16T12:56:31.999999Z"),
    ],
)
def test_times_are_in_utc_and_exact_to_the_microsecond(time_ns: int, text: str) -> None:
    assert encode_to_dict(stop_record(time_ns=time_ns))["time"] == text


@given(st.integers(0, (1 << 33) * 10**6))
def test_every_microsecond_survives_encoding(micros: int) -> None:
    read = parse_cloudevent(RecordEncoder()(stop_record(time_ns=micros * 1000)).body).get_time()
    assert read is not None
    since = read - datetime(1970, 1, 1, tzinfo=UTC)
    assert (since.days * 86400 + since.seconds) * 10**6 + since.microseconds == micros


# --- Attributes ---


def test_a_cloudevents_reader_returns_every_attribute_and_the_data() -> None:
    event = parse_cloudevent(
        RecordEncoder(0, clock=lambda: 6 * 10**9)(
            stop_record(time_ns=5 * 10**9, subject="disk0", severity=Severity.ERROR)
        ).body
    )
    assert event.get_attributes() == {
        "specversion": "1.0",
        "id": "0000000000-1",
        "source": f"/hosts/host1/vms/{UUID}",
        "type": "qemu.event.stop",
        "time": datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC),
        "subject": "disk0",
        "host": "host1",
        "vmuuid": UUID,
        "vmname": "vm1",
        "partitionkey": UUID,
        "dataschema": "urn:qmp-agent:qemu.event:1",
        "recordedtime": "1970-01-01T00:00:06Z",
        "severitytext": "ERROR",
        "severitynumber": 17,
        "sequence": "0000000000000000000001",
    }
    assert event.get_data() == {"event": "STOP", "category": "runstate", "qemu": {}}


@pytest.mark.parametrize(
    ("made_ns", "recorded"),
    [
        (5_099_999_999, None),
        (4_900_000_001, None),
        (5_100_000_000, "1970-01-01T00:00:05.100000Z"),
        (5_100_999_999, "1970-01-01T00:00:05.100000Z"),
        (4_900_000_000, "1970-01-01T00:00:04.900000Z"),
    ],
)
def test_a_record_has_the_time_of_its_recording_if_that_differs_from_its_own(
    made_ns: int, recorded: str | None
) -> None:
    encode = RecordEncoder(0, clock=lambda: made_ns)
    event = json.loads(encode(stop_record(time_ns=5 * 10**9)).body)
    assert event.get("recordedtime") == recorded
    (sample,) = encode.encode_samples(VM, [Sample(RUNSTATE, (), {})], 5 * 10**9)
    assert json.loads(sample.body).get("recordedtime") == recorded


def test_optional_attributes_are_absent_without_a_value() -> None:
    optional = {"subject", "previoussequence", "sampledrate", "causationid"}
    assert not optional & encode_to_dict(stop_record()).keys()


@pytest.mark.parametrize(("rate", "shown"), [(1, None), (2, 2), (30, 30)])
@pytest.mark.parametrize("cause", ["", "0000000000-7"])
def test_a_record_has_the_optional_attributes_of_its_cause_and_count(rate: int, shown: int | None, cause: str) -> None:
    record = stop_record()._replace(sample_rate=rate, causation_id=cause)
    event = encode_to_dict(record)
    assert (event.get("sampledrate"), event.get("causationid", "")) == (shown, cause)
    assert schema_violations(RecordEncoder()(record).body) == []


def test_a_monitor_without_a_known_vm_is_identified_by_its_address() -> None:
    vm = Vm("host1", "", "", "/run/vm 1.qmp")
    event = encode_to_dict(Record("qemu.vm.busy", vm, {"reason": "x"}, 0))
    assert event["source"] == "/hosts/host1/monitors/run%2Fvm%201.qmp"
    assert event["partitionkey"] == vm.key == "/run/vm 1.qmp"
    assert not {"vmuuid", "vmname"} & event.keys()


def test_the_agent_itself_is_identified_by_its_host() -> None:
    body = RecordEncoder()(
        Record(
            "qemu.agent.records_dropped",
            Vm("host1", "", ""),
            {"queue": "events", "reason": "queue_full", "records": 1},
            1,
        )
    ).body
    attributes = parse_cloudevent(body).get_attributes()
    assert (attributes["source"], attributes["partitionkey"]) == ("/hosts/host1", "host1")
    assert schema_violations(body) == []


def test_all_records_of_a_vm_have_the_same_key_and_source() -> None:
    records = [stop_record(), Record("qemu.vm.gone", VM, {"reason": "x"}, 0), Record("qemu.sample.balloon", VM, {}, 0)]
    events = [encode_to_dict(record) for record in records]
    assert {(event["partitionkey"], event["source"]) for event in events} == {(VM.key, f"/hosts/host1/vms/{UUID}")}
    assert [record.kind == "sample" for record in records] == [False, False, True]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("known", [UUID, ""])
def test_records_are_valid_for_any_name(name: str, known: str) -> None:
    for vm in (Vm(name, known, name, name), Vm("host1", known, name, name), Vm(name, known, "vm1", "/run/x")):
        body = RecordEncoder()(stop_record(vm, subject=name)).body
        assert schema_violations(body) == []
        assert len(body) < 8192 + 3 * len(name)  # the address comes from the operator and is complete
        parse_cloudevent(body)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_name_results_in_a_source_that_is_a_uri(name: str) -> None:
    if name.strip("/"):
        assert schema_violations(RecordEncoder()(stop_record(Vm(name, "", "", name))).body) == []


def test_sources_of_different_monitors_differ() -> None:
    names = ["/a/b", "/a b", "/a%20b", "/a%2Fb", "/a?b", "/a#b", "/é"]
    assert len({json.loads(Vm("h", "", "", name).json_prefix + b"}")["source"] for name in names}) == len(names)


# --- Sanitizing ---


@given(st.text(), st.integers(1, 50))
def test_sanitized_text_is_short_and_has_no_unsafe_characters(text: str, limit: int) -> None:
    sanitized = sanitize(text, limit)
    assert len(sanitized) <= limit
    assert sanitize(sanitized, limit) == sanitized
    assert not set(sanitized) & set("\n\r\t\x00\x1b\x7f\x85\u2028\u2029\u202e\u2066")


@pytest.mark.parametrize("character", "\x00\t\n\r\x1f\x7f\x85\x9b\u2028\u2029\u202a\u202c\u202e\u2066\u2069")
def test_characters_that_break_or_reverse_a_line_are_replaced(character: str) -> None:
    assert sanitize(f"a{character}b") == "a\ufffdb"


@pytest.mark.parametrize("text", ["vm1", "Über VM", "日本", "a/b:c[0]", "x" * 255])
def test_safe_text_is_unchanged(text: str) -> None:
    assert sanitize(text) == text


def test_severities_are_ordered_and_named() -> None:
    assert [severity.label for severity in sorted(Severity)] == ["debug", "info", "warning", "error", "critical"]
    assert [severity.opentelemetry_text for severity in sorted(Severity)] == ["DEBUG", "INFO", "WARN", "ERROR", "FATAL"]
    assert [severity.opentelemetry_number for severity in sorted(Severity)] == [
        5,
        9,
        13,
        17,
        21,
    ]  # OpenTelemetry's numbers


@pytest.mark.parametrize("number", [2**64, 3 * (2**63 - 1), -(2**63) - 1, 10**30])
def test_integers_beyond_64_bits_become_floats(number: int) -> None:
    data = {"transferred_bytes": number, "qemu": {"list": [number, {"nested": number}], "small": 2**64 - 1}}
    event = encode_to_dict(Record("qemu.migration.ended", VM, data, 0))
    nested = {"list": [float(number), {"nested": float(number)}], "small": 2**64 - 1}
    assert event["data"] == {"transferred_bytes": float(number), "qemu": nested}
    assert isinstance(event["data"]["transferred_bytes"], float)


def test_integers_of_64_bits_stay_integers_beside_a_larger_one() -> None:
    integers = {"lowest": -(2**63), "zero": 0, "one": 1, "highest": 2**64 - 1}
    data = encode_to_dict(Record("qemu.migration.ended", VM, {"qemu": integers, "large": 2**64}, 0))["data"]
    assert data["qemu"] == integers
    assert {type(value) for value in data["qemu"].values()} == {int}


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), float("nan"), "\ud800", {1: 2}, object()])
def test_values_that_json_cannot_hold_never_lose_a_record(value: Any) -> None:
    event = json.loads(
        RecordEncoder()(Record("qemu.event.x", VM, {"event": "X", "value": value, "list": [value]}, 0)).body
    )
    assert event["data"]["event"] == "X"


def test_data_nested_too_deep_to_encode_is_replaced_by_an_empty_object() -> None:
    deep: object = 1
    for _ in range(400):
        deep = [deep]
    event = json.loads(
        RecordEncoder()(Record("qemu.event.x", VM, {"event": "X", "category": "unknown", "qemu": {"a": deep}}, 0)).body
    )
    assert event["data"] == {"event": "X", "category": "unknown", "qemu": {}}


def test_only_states_have_no_previoussequence_because_kafka_deletes_older_states() -> None:
    encode = RecordEncoder(0)
    for record_type, has_previous in (("qemu.event.x", True), ("qemu.state.vm", False), ("qemu.state.host", False)):
        records = [json.loads(encode(Record(record_type, VM, {}, 0)).body) for _ in range(3)]
        assert ["previoussequence" in record for record in records[1:]] == [has_previous, has_previous]
        sequences = [record["sequence"] for record in records]
        assert sequences == sorted(set(sequences))


# --- Samples of one poll ---

_values = st.dictionaries(
    st.sampled_from([field.name for field in BLOCK.fields]), st.integers(0, 2**65) | st.text(max_size=9) | st.booleans()
)
_samples = st.one_of(
    st.builds(lambda device, values: Sample(BLOCK, (device,), values), st.text(max_size=9), _values),
    st.builds(
        lambda device, depth, values: Sample(BLOCK_BACKING, (device, depth), values), st.text(), st.text(), _values
    ),
    st.builds(lambda values: Sample(RUNSTATE, (), values), _values),
)


@given(st.lists(_samples, max_size=5), st.integers(0, 2**62))
def test_samples_encoded_together_have_the_bytes_of_single_records(samples: list[Sample], time_ns: int) -> None:
    together, single = RecordEncoder(0, clock=lambda: 7), RecordEncoder(0, clock=lambda: 7)
    expected = [single(Record(s.family.type, VM, s.data, time_ns, s.subject)) for s in samples]
    assert [asdict(record) for record in together.encode_samples(VM, samples, time_ns)] == [asdict(r) for r in expected]
    assert together(stop_record()).id == single(stop_record()).id
