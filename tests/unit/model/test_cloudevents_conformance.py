"""Records follow CloudEvents 1.0.3 and its extensions: a check for each rule of the specification, over records with any names."""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model.family import Sample
from agent.model.metrics.block import BLOCK
from agent.model.record import Record, RecordEncoder, Severity, Vm
from tools.reference import EXAMPLES

Attributes = Mapping[str, Any]
Rule = Callable[[Attributes], bool]

INTEGERS: Final = frozenset({"severitynumber", "sampledrate"})
TIMES: Final = frozenset({"time", "recordedtime"})
_RFC_3339: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_URI: Final = re.compile(r"[a-z][a-z0-9+.-]*:[A-Za-z0-9._~:/?@!$&'()*+,;=%-]+")
_URI_REFERENCE: Final = re.compile(r"(?:[A-Za-z0-9._~:/?#@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")
_SEVERITIES: Final = {"DEBUG": 5, "INFO": 9, "WARN": 13, "ERROR": 17, "FATAL": 21}


def is_string(value: object) -> bool:
    """Return whether a value is a String of CloudEvents: no control character, no noncharacter, no lone surrogate."""
    return isinstance(value, str) and not any(
        unicodedata.category(character) in {"Cc", "Cs"}
        or 0xFDD0 <= ord(character) <= 0xFDEF
        or ord(character) & 0xFFFE == 0xFFFE
        for character in value
    )


def is_integer(value: object) -> bool:
    return type(value) is int and -(2**31) <= value < 2**31


def is_timestamp(value: object) -> bool:
    return isinstance(value, str) and _RFC_3339.fullmatch(value) is not None and bool(datetime.fromisoformat(value))


RULES: Final[dict[str, Rule]] = {
    "Naming conventions: lower-case letters and digits, 20 characters": lambda event: all(
        re.fullmatch("[a-z0-9]{1,20}", name) for name in event
    ),
    "Type system: an attribute is a String, an Integer of 32 bits or a Timestamp": lambda event: all(
        is_integer(value) if name in INTEGERS else is_timestamp(value) if name in TIMES else is_string(value)
        for name, value in event.items()
    ),
    "Required attributes: id, source, specversion and type are not empty": lambda event: all(
        event[name] for name in ("id", "source", "specversion", "type")
    ),
    "specversion: 1.0": lambda event: event["specversion"] == "1.0",
    "source: a URI-reference": lambda event: _URI_REFERENCE.fullmatch(event["source"]) is not None,
    "datacontenttype: JSON, by default": lambda event: (
        event.get("datacontenttype", "application/json") == "application/json"
    ),
    "dataschema: an absolute URI": lambda event: _URI.fullmatch(event["dataschema"]) is not None,
    "subject: not empty": lambda event: event.get("subject", "x").strip() != "",
    "Sequence: not empty": lambda event: event["sequence"] != "",
    "Severity: upper case, and one number for each text": lambda event: (
        _SEVERITIES[event["severitytext"]] == event["severitynumber"]
    ),
    "Sampled rate: greater than zero": lambda event: event.get("sampledrate", 1) > 0,
    "Correlation: not empty": lambda event: event.get("causationid", "x") != "",
    "Partitioning: not empty": lambda event: event["partitionkey"] != "",
}
"""A check of the attributes for each rule, by the section of the specification."""

_names = st.text(max_size=40) | st.sampled_from(
    ["\ufffe", "\U0010ffff", "\ufdd0", "\ud800", " ", "\x00", "\x9f", "é" * 300]
)
_vms = st.builds(
    Vm,
    _names.filter(lambda name: name.strip("/ ")),
    st.sampled_from(["", "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1"]),
    _names,
    _names.filter(lambda name: name.strip("/")),
)
_records = st.builds(
    Record,
    st.sampled_from(["qemu.event.stop", "qemu.alert.disk_full", "qemu.vm.gone"]),
    _vms,
    st.just({}),
    st.integers(0, (1 << 33) * 10**9),
    _names,
    st.sampled_from(Severity),
    st.integers(1, 2**31 - 1),
    st.sampled_from(["", "01M7ZEJTQH-7"]),
)


def attributes_of(body: bytes) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(body)
    assert isinstance(event.pop("data"), dict)  # the JSON format: data of this content type is a JSON value
    return event


def broken_rules(event: Attributes) -> list[str]:
    return [text for text, rule in RULES.items() if not rule(event)]


@given(_records)
def test_a_record_with_any_names_follows_every_rule(record: Record) -> None:
    assert broken_rules(attributes_of(RecordEncoder()(record).body)) == []


@given(_vms, _names)
def test_a_sample_with_any_names_follows_every_rule(vm: Vm, device: str) -> None:
    (encoded,) = RecordEncoder().encode_samples(vm, [Sample(BLOCK, (device,), {})], 0)
    assert broken_rules(attributes_of(encoded.body)) == []


def test_a_real_record_of_each_type_follows_every_rule() -> None:
    for line in EXAMPLES.read_bytes().splitlines():
        assert broken_rules(attributes_of(line)) == [], line


@given(st.lists(_records, max_size=12))
def test_source_and_id_are_unique_and_sequences_in_order(records: Sequence[Record]) -> None:
    encode = RecordEncoder()
    events = [attributes_of(encode(record).body) for record in records]
    assert len({(event["source"], event["id"]) for event in events}) == len(events)
    for source in {event["source"] for event in events}:
        sequences = [event["sequence"] for event in events if event["source"] == source]
        assert sequences == sorted(set(sequences))


@pytest.mark.parametrize(
    "broken",
    [
        {"Type": "x"},
        {"host": "a\n"},
        {"vmname": "\ufdd0"},
        {"severitynumber": 2**31},
        {"severitynumber": 13},
        {"recordedtime": "yesterday"},
        {"id": ""},
        {"specversion": "1.1"},
        {"source": "/a b"},
        {"datacontenttype": "text/plain"},
        {"dataschema": "schemas/1"},
        {"subject": " "},
        {"sequence": ""},
        {"sampledrate": 0},
        {"causationid": ""},
        {"partitionkey": ""},
    ],
)
def test_each_rule_finds_what_breaks_it(broken: dict[str, Any]) -> None:
    record = Record("qemu.event.stop", Vm("host1", "", "", "/run/x"), {}, 0)
    event = attributes_of(RecordEncoder()(record).body)
    assert broken_rules(event) == []
    assert broken_rules({**event, **broken}) != []
