"""The table of questions: all of QEMU's are there, and what it says becomes of each is what the code does."""

import re

import pytest

from agent.collectors import ALL, ALL_FEATURES
from agent.qmp.commands import READS
from agent.qmp.queries import ROWS, QueryPolicy, query_of
from agent.session import host_process, identity
from tests.lab import golden_files
from tools import reference

QEMU = golden_files.load("queries.json")
COLLECTED = {ask.name for collector in ALL for ask in collector.commands(ALL_FEATURES)}
ATTACH = {ask.name for ask in (*identity.IDENTITY, *identity.FEATURES, *host_process.COMMANDS)}


@pytest.mark.parametrize("version", QEMU)
def test_what_becomes_of_every_question_of_a_qemu_is_told(version: str) -> None:
    assert len(QEMU[version]) > 50
    assert [name for name in QEMU[version] if query_of(name) is None] == []


def test_a_question_nobody_has_heard_of_has_no_row() -> None:
    assert query_of("query-something-new") is None
    assert query_of("x-query-something-new") is query_of("x-query-jit")


def test_questions_stand_once_in_order_and_the_reason_is_a_sentence() -> None:
    names = [row.name for row in ROWS]
    assert names == sorted(set(names))
    for row in ROWS:
        assert re.fullmatch(r"[A-Z][^\n]*\.", row.reason), row.name


def test_what_is_not_refused_is_what_may_be_sent_and_is_asked() -> None:
    allowed = {row.name for row in ROWS if row.policy is not QueryPolicy.REFUSED}
    assert allowed | {"qom-get", "qom-list"} == READS
    assert all(re.fullmatch(r"query-[a-z0-9-]+", name) for name in allowed), "each is allowed by its whole name"
    asked = COLLECTED | ATTACH | {identity.LIST_COMMANDS.name, "query-yank"}
    assert {name for name in asked if name.startswith("query-")} == allowed


def test_what_is_said_to_be_asked_after_an_event_is_named_by_one() -> None:
    by_event = {row.name for row in ROWS if reference.events_of(row.name)}
    polled = {row.name for row in ROWS if row.policy is QueryPolicy.POLLED}
    assert {row.name for row in ROWS if row.policy is QueryPolicy.EVENT} == by_event - polled
