"""The query table: complete, and in agreement with the commands that the agent sends."""

import re

import pytest

from agent.collectors import ALL_COLLECTORS, FACTS_WITH_ALL_FEATURES
from agent.monitors.libvirt.domain_connection import QUERY_VERSION
from agent.qmp.commands import QMP_READS
from agent.qmp.queries import QUERIES, QueryTrigger, find_query
from agent.session import host_process, identity_and_features
from tests.lab import golden_files
from tools import reference

QEMU = golden_files.load("queries.json")
COLLECTED = {command.name for collector in ALL_COLLECTORS for command in collector.commands(FACTS_WITH_ALL_FEATURES)}
ATTACH = {
    command.name
    for command in (
        *identity_and_features.IDENTITY_COMMANDS,
        *identity_and_features.FEATURE_COMMANDS,
        *host_process.PROCESS_COMMANDS,
    )
}


@pytest.mark.parametrize("version", QEMU)
def test_the_table_has_every_query_of_a_qemu_version(version: str) -> None:
    assert len(QEMU[version]) > 50
    assert [name for name in QEMU[version] if find_query(name) is None] == []


def test_an_unknown_query_has_no_row() -> None:
    assert find_query("query-something-new") is None
    assert find_query("x-query-something-new") is find_query("x-query-jit")


def test_rows_are_unique_and_sorted_and_the_reason_is_a_sentence() -> None:
    names = [row.name for row in QUERIES]
    assert names == sorted(set(names))
    for row in QUERIES:
        assert re.fullmatch(r"[A-Z][^\n]*\.", row.reason), row.name


def test_the_permitted_queries_are_exactly_those_that_the_agent_sends() -> None:
    allowed = {row.name for row in QUERIES if row.trigger not in (QueryTrigger.REFUSED, QueryTrigger.ALLOWED)}
    assert allowed | {"qom-get", "qom-list"} == QMP_READS
    assert all(re.fullmatch(r"query-[a-z0-9-]+", name) for name in allowed), "each is permitted by its full name"
    sent = COLLECTED | ATTACH | {identity_and_features.QUERY_COMMANDS.name, "query-yank", QUERY_VERSION.name}
    assert {name for name in sent if name.startswith("query-")} == allowed


def test_an_unstable_query_is_sent_only_if_the_config_allows_it() -> None:
    unstable = {row.name for row in QUERIES if row.trigger is QueryTrigger.ALLOWED}
    assert unstable == {name for name in COLLECTED if name.startswith("x-")}
    assert unstable.isdisjoint(QMP_READS)


def test_queries_sent_after_an_event_are_invalidated_by_one() -> None:
    by_event = {row.name for row in QUERIES if reference.events_of(row.name)}
    polled = {row.name for row in QUERIES if row.trigger is QueryTrigger.POLLED}
    assert {row.name for row in QUERIES if row.trigger is QueryTrigger.EVENT} == by_event - polled
