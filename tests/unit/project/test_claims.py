"""Each claim in the documentation names the tests that show it.

A paragraph, an item of a list and a row of a table are a claim each. In the pages on guarantees a claim has a footnote with its
tests; in the tables of docs/explanation/reliability.md the last column has them. Each alert is named in a test.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from agent.alerts.catalogue import ALERT_CATALOGUE
from agent.alerts.failure_rules import RUN_STATE_RULES

DOCS: Final = Path(__file__).parents[3] / "docs" / "explanation"
TEST: Final = re.compile(r"`(?:tests/[\w/]+\.py(?:::\w+)?|tests/\w+)`|the same \|$")
FOOTNOTE: Final = re.compile(r"\[\^(\w+)\](?!:)")
WITHOUT_CLAIMS: Final[dict[str, set[str]]] = {
    "guarantees.md": {"Delivery guarantees"},
    "reliability.md": {"Failures and the agent's reaction"},
    "state-topic.md": set(),
}
"""Sections that introduce a page."""
INTRODUCTION: Final = "A healthy VM, polled every 100 ms, runs beside each of these."


def claims(text: str, excluded: set[str]) -> Iterator[str]:
    """Yield the paragraphs, items of lists and rows of tables of a page, without those of the excluded sections."""
    section = ""
    for block in re.split(r"\n\s*\n", text):
        heading = re.match(r"#+ (.*)", block)
        if heading:
            section = heading[1]
            continue
        if section in excluded or block.startswith(("[^", "    ", "!", INTRODUCTION)):
            continue
        if block.startswith("|"):
            yield from block.splitlines()[2:]
        elif block.startswith("- "):
            yield from re.split(r"\n(?=- )", block)
        else:
            yield block


@pytest.mark.parametrize("page", sorted(WITHOUT_CLAIMS))
def test_each_claim_of_a_page_names_its_tests(page: str) -> None:
    text = (DOCS / page).read_text()
    bare = [
        claim for claim in claims(text, WITHOUT_CLAIMS[page]) if not TEST.search(claim) and not FOOTNOTE.search(claim)
    ]
    assert bare == []


@pytest.mark.parametrize("page", ["guarantees.md", "state-topic.md"])
def test_each_footnote_is_defined_once_has_a_test_and_is_used(page: str) -> None:
    text = (DOCS / page).read_text()
    defined = re.findall(r"^\[\^(\w+)\]: (.*)$", text, re.MULTILINE)
    assert len(defined) == len(dict(defined))
    assert all(TEST.search(tests) for _, tests in defined)
    assert set(FOOTNOTE.findall(text)) == {name for name, _ in defined}


def test_each_alert_is_named_in_a_test() -> None:
    tests = "\n".join(path.read_text() for path in (DOCS.parents[1] / "tests").rglob("test_*.py"))
    # test_run_states.py walks the whole table of run states; test_rules.py checks that promtool tests each Prometheus rule.
    named = ALERT_CATALOGUE.keys() - {rule.alert for rule in RUN_STATE_RULES}
    assert len(named) > 30
    assert [name for name in sorted(named) if f'"{name}"' not in tests] == []
