"""Sequences: ordered as text over all runs, without gaps, and a lost record shows in the next one of its source and topic."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model.family import Sample
from agent.model.metrics.runstate import RUNSTATE
from agent.model.record import Record, RecordEncoder, Vm
from agent.model.sequences import SequenceRegistry, SourceSequence

VMS = [Vm("host1", f"00000000-0000-4000-8000-00000000000{n}", f"vm{n}") for n in range(3)]
TYPES = ["qemu.event.stop", "qemu.alert.disk_full", "qemu.sample.runstate", "qemu.vm.gone"]
_steps = st.lists(st.tuples(st.sampled_from(VMS), st.sampled_from(TYPES)), max_size=40)


def encode_all(encoder: RecordEncoder, steps: list[tuple[Vm, str]]) -> list[dict[str, Any]]:
    """Return the records of these sources and types as JSON objects. Samples are encoded as samples of a poll."""
    bodies = []
    for vm, record_type in steps:
        if record_type == RUNSTATE.type:
            bodies += [record.body for record in encoder.encode_samples(vm, [Sample(RUNSTATE, (), {})] * 2, 0)]
        else:
            bodies.append(encoder(Record(record_type, vm, {}, 0)).body)
    return list(map(json.loads, bodies))


@given(_steps)
def test_a_source_has_a_sequence_without_gaps(steps: list[tuple[Vm, str]]) -> None:
    records = encode_all(RecordEncoder(), steps)
    for vm in VMS:
        numbers = [int(record["sequence"][10:]) for record in records if record["source"] == vm.source]
        assert numbers == list(range(1, len(numbers) + 1))


@given(_steps, _steps, st.integers(0, 2**60), st.integers(1_000_000, 2**50))
def test_sequences_are_in_order_as_text_over_restarts(
    before: list[tuple[Vm, str]], after: list[tuple[Vm, str]], start_ns: int, uptime_ns: int
) -> None:
    records = encode_all(RecordEncoder(start_ns), before) + encode_all(RecordEncoder(start_ns + uptime_ns), after)
    for vm in VMS:
        sequences = [record["sequence"] for record in records if record["source"] == vm.source]
        assert sequences == sorted(set(sequences))


@given(_steps, st.data())
def test_a_lost_record_shows_in_the_next_record_of_its_source_and_topic(
    steps: list[tuple[Vm, str]], data: st.DataObject
) -> None:
    """A consumer of one topic keeps the last sequence of each source, and compares it with `previoussequence`."""
    topic_of = {"qemu.alert.disk_full": "alerts", "qemu.sample.runstate": "samples"}
    records = encode_all(RecordEncoder(topic_of=lambda record_type: topic_of.get(record_type, "events")), steps)
    delivered = [record for record in records if topic_of.get(record["type"], "events") == "events"]
    lost = data.draw(st.sets(st.integers(0, max(0, len(delivered) - 1))))
    last: dict[str, str] = {}
    for number, record in enumerate(delivered):
        source = record["source"]
        if number in lost:
            last[source] = f"lost after {last.get(source)}"
            continue
        assert (record.get("previoussequence") == last.get(source)) == ("lost" not in last.get(source, ""))
        last[source] = record["sequence"]


@given(st.lists(st.sampled_from("abcde"), max_size=30), st.integers(1, 4))
def test_a_source_whose_state_was_discarded_keeps_its_order(sources: list[str], max_sources: int) -> None:
    registry, last = SequenceRegistry("0000000000", max_sources), dict[str, str]()
    for source in sources:
        attributes = json.loads(f"{{{registry.next_attributes(source, '')}}}")
        assert attributes["sequence"] > last.get(source, "")
        assert attributes.get("previoussequence") in {None, last.get(source)}
        last[source] = attributes["sequence"]


@given(st.integers(0, 2**50 - 2), st.integers(0, 2**50 - 2))
def test_a_run_after_the_clock_was_set_back_sorts_after_the_run_before(before_ms: int, now_ms: int) -> None:
    before, now = RecordEncoder(before_ms * 1_000_000), RecordEncoder(now_ms * 1_000_000)
    unchanged = now.run_id
    now.ensure_run_id_after(before.run_id)
    assert now.run_id > before.run_id
    assert now.run_id == unchanged or before_ms >= now_ms
    (first,) = encode_all(before, [(VMS[0], TYPES[0])])
    (second,) = encode_all(now, [(VMS[0], TYPES[0])])
    assert (second["sequence"], second["id"]) > (first["sequence"], first["id"])


@pytest.mark.parametrize("run_id", ["", "01M7ZEJTQ", "01M7ZEJTQU", "ZZZZZZZZZZ", "é" * 10])
def test_a_text_that_is_no_run_id_changes_nothing(run_id: str) -> None:
    encoder = RecordEncoder(32_000_000)
    encoder.ensure_run_id_after(run_id)
    assert encoder.run_id == "0000000010"


def test_the_source_that_was_silent_for_longest_is_discarded_first() -> None:
    registry = SequenceRegistry("0000000000", max_sources=2)
    for source in ("a", "b", "a", "c"):
        registry.next_attributes(source, "")
    assert "previoussequence" in registry.next_attributes("a", "")
    assert "previoussequence" not in registry.next_attributes("b", "")


def test_of_restored_sources_the_one_with_the_oldest_record_is_discarded_first() -> None:
    registry = SequenceRegistry("0000000002", max_sources=2)
    registry.restore([("t", "a", "3"), ("t", "b", "1"), ("t", "c", "2")])
    assert set(registry.newest_sequences({"t"})) == {("t", "a", "3"), ("t", "c", "2")}


def test_the_stored_sequences_of_a_discarded_source_are_deleted() -> None:
    registry = SequenceRegistry("0000000000", max_sources=1)
    for source in ("a", "b", "a"):
        registry.next_attributes(source, "t")
        registry.next_attributes(source, "u")
    newest = "0000000000000000000005"  # the numbers of `a` continue after those of the sources before
    assert set(registry.pop_changes(without={"u"})) == {("t", "b", None), ("t", "a", newest)}
    assert set(registry.pop_changes(without={"u"})) == set()


def test_all_sequences_can_be_stored_again() -> None:
    registry = SequenceRegistry("0000000000")
    for source in ("a", "b"):
        registry.next_attributes(source, "t")
    stored = set(registry.pop_changes(without=set()))
    registry.mark_all_changed()
    assert set(registry.pop_changes(without=set())) == stored == set(registry.newest_sequences({"t"}))
    assert set(registry.newest_sequences({"u"})) == set()


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["t", "u"])), max_size=30), st.integers(1, 3))
def test_stored_changes_continue_the_chain_of_each_source_and_topic(steps: list[tuple[str, str]], at: int) -> None:
    """A run stores the changes after each few records, and ends after the last ones are stored."""
    before, stored = SequenceRegistry("0000000001", max_sources=3), dict[tuple[str, str], str | None]()
    newest: dict[tuple[str, str], str] = {}
    for number, (source, topic) in enumerate(steps, 1):
        newest[topic, source] = json.loads(f"{{{before.next_attributes(source, topic)}}}")["sequence"]
        if number % at == 0 or number == len(steps):
            stored |= {(of, name): sequence for of, name, sequence in before.pop_changes(without={"u"})}
    after = SequenceRegistry("0000000002")
    after.restore((topic, source, sequence) for (topic, source), sequence in stored.items() if sequence is not None)
    sources = {source for source, _ in steps}
    for source in sources:
        previous = json.loads(f"{{{after.next_attributes(source, 't')}}}").get("previoussequence")
        assert previous in {None, newest.get(("t", source))}
        if len(sources) <= 3:  # no state was discarded
            assert previous == newest.get(("t", source))
        assert "previoussequence" not in after.next_attributes(source, "u")


@pytest.mark.parametrize("start", [0, 8, 98, 10**11 - 2, 10**12 - 2])
def test_numbers_are_padded_to_one_length_when_they_get_more_digits(start: int) -> None:
    sequence = SourceSequence("a", "0000000000", start)
    for number in range(start + 1, start + 5):
        assert json.loads(f"{{{sequence.next_attributes('')}}}")["sequence"] == f"0000000000{number:012d}"
