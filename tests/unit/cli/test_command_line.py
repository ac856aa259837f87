"""The command line: each subcommand has a description in its help and in the documentation."""

import argparse
import re
from pathlib import Path

import pytest

from agent.cli.commands import check
from agent.cli.main import _build_parser, main
from agent.common.errors import SubcommandError

ROOT = Path(__file__).parents[3]
(COMMANDS,) = (action.choices for action in _build_parser()._actions if isinstance(action, argparse._SubParsersAction))

UNDOCUMENTED = {"demo", "schema", "version"}
"""Subcommands that `make` runs, or whose names explain them."""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_subcommand_has_a_description_and_documentation(name: str) -> None:
    assert re.fullmatch(r"[A-Z][^\n]*\.", COMMANDS[name].description)
    pages = (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    assert name in UNDOCUMENTED or any(re.search(rf"qmp-agent {name}\b", page.read_text()) for page in pages)


def test_a_failing_subcommand_prints_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class NewError(SubcommandError):
        pass

    def fails(_: object) -> int:
        raise NewError("out of memory")

    monkeypatch.setattr(check, "execute", fails)
    assert main(["check"]) == 1
    assert capsys.readouterr().err == "qmp-agent: out of memory\n"
