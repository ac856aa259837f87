"""What the documents say of the code is so."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_each_test_that_a_document_names_is_there() -> None:
    named = [
        (page.name, *found.groups())
        for page in (ROOT / "docs").glob("*.md")
        for found in re.finditer(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text())
    ]
    assert len(named) > 20
    for page, file, test in named:
        assert (ROOT / file).is_file(), f"{page} names {file}"
        assert test is None or re.search(rf"def {test}\(", (ROOT / file).read_text()), f"{page} names {file}::{test}"


def test_all_tests_are_among_those_that_make_test_runs() -> None:
    run = (ROOT / "tests/all").read_text()
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("*/test_*.py")}
    assert {folder for folder in folders if not re.search(rf"\b{folder}\b", run)} == set()
