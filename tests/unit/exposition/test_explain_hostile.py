"""Explanations of a hostile QEMU: whatever values its samples have, the explanation is JSON of bounded size."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.exposition.explain.cause_table import CAUSES, MAX_FINDINGS, MAX_SENTENCE, find_causes
from agent.exposition.explain.evidence import Evidence
from agent.model.family import Family, FieldKind, FieldValues
from agent.model.json_encoding import encode_json
from agent.model.metrics import FAMILIES
from tests.lab.snapshots import OneVmSource

NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2**63, 2**64 - 1, -(2**63), 0.0, 1e308, -1e308]), st.integers(-100, 10_000_000)
)
TEXTS = st.one_of(
    st.sampled_from(["active", "paused", "io-error", "disk-sleep", "postcopy-active", "running", "none"]),
    st.text(max_size=8),
    st.just("x" * 4096),
)
BY_KIND: dict[FieldKind, st.SearchStrategy[Any]] = {
    FieldKind.COUNTER: NUMBERS,
    FieldKind.GAUGE: NUMBERS,
    FieldKind.FLAG: st.booleans(),
    FieldKind.STATE: TEXTS,
    FieldKind.NAME: TEXTS,
    FieldKind.TEXT: TEXTS,
}
FAMILIES_OF_VMS = [family for family in FAMILIES if not family.per_host]


def values_of(family: Family) -> st.SearchStrategy[FieldValues]:
    known = {field.name: BY_KIND[field.kind] for field in family.fields if field.kind in BY_KIND}
    return st.fixed_dictionaries({}, optional=known)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_values_of_a_vm_have_a_bounded_explanation(data: st.DataObject) -> None:
    source = OneVmSource()
    for family in data.draw(st.lists(st.sampled_from(FAMILIES_OF_VMS), min_size=4, max_size=10, unique=True)):
        labels = tuple("a" for _ in family.labels)
        for at in (10, 20):
            source.put(family, at, (labels, data.draw(values_of(family))))
    ((_, view),) = source.snapshot.one_view_per_uuid()
    causes = find_causes(Evidence.from_samples(source.snapshot, view, (), 21.0))
    assert len(causes) <= MAX_FINDINGS * len(CAUSES)
    assert all(len(cause["sentence"]) <= MAX_SENTENCE for cause in causes)
    encode_json({"causes": causes})
