"""The command's own line: each subcommand is explained, in its help and in the documents."""

import argparse
import re
from pathlib import Path

import pytest

from agent.cli.main import _parser, main
from agent.common.errors import CommandFailedError

ROOT = Path(__file__).parents[3]
(COMMANDS,) = (one.choices for one in _parser()._actions if isinstance(one, argparse._SubParsersAction))

NEED_NO_PAGE = {"demo", "schema", "version"}
"""What `make` runs, and what says all by its name."""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_subcommand_says_what_it_is_for_and_so_do_the_documents(name: str) -> None:
    assert re.fullmatch(r"[A-Z][^\n]*\.", COMMANDS[name].description)
    pages = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    assert name in NEED_NO_PAGE or any(re.search(rf"qmp-agent {name}\b", page.read_text()) for page in pages)


def test_whatever_a_subcommand_cannot_do_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class NewError(CommandFailedError):
        pass

    def fails(_: object) -> int:
        raise NewError("it rains")

    monkeypatch.setattr("agent.cli.main._version", fails)
    assert main(["version"]) == 1
    assert capsys.readouterr().err == "qmp-agent: it rains\n"
