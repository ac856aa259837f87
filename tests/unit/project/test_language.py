"""Plain language and clear names: banned words in texts that people read, the length of test names, and names used twice.

The word list holds words that a reader whose second language is English has to read twice, and invented words for things that have
a usual name: it is a safety net, not the style guide.
"""

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[3]

BANNED: Final = (
    r"anew",
    r"as ever",
    r"be it",
    r"no more(?= (?:of|is|are|so)\b|[.,;:)]|$)",
    r"for want of",
    r"of which",
    r"of whom",
    r"whoever",
    r"whomever",
    r"it is to be hoped",
    r"by a hair",
    r"somebody",
    r"nobody(?![:)'])",  # the user's name is a word for itself
    r"tells?",
    r"told",
    r"hears?",
    r"heard",
    r"heeds?",
    r"heeded",
    r"mends?",
    r"mended",
    r"bury",
    r"buried",
    r"sees? to",
    r"lets? go",
    r"gives? back",
    r"looks? on",
    r"onlookers?",
    r"makes? way",
    r"it befalls?",
    r"befell",
    r"hence",
    r"thereof",
)

_BANNED_RX: Final = re.compile(r"(?<![\w-])(?:" + "|".join(BANNED) + r")(?![\w-])", re.IGNORECASE)

_INVERTED_RX: Final = re.compile(r'(?:^|(?<=[.] )|(?<="""))(?:Of|What|Who|Whose|Whom|Whether) [a-z]')
"""A sentence that begins with a subordinate clause instead of its subject."""

_CODE: Final = ("agent", "tools", "dashboards", "deploy", "tests")
_PROSE: Final = (
    "*.md",
    "changelog.d/*.md",
    ".github/**/*.*",
    "Makefile",
    "config/agent.yaml",
    "docs/**/*.md",
    "deploy/**/*.y*ml",
    "deploy/systemd/*",
    "deploy/storage/qmp-agent*",
    "tests/lab/install",
)
_GENERATED: Final = frozenset({"records.md"})  # has records of a real run
_EXEMPT: Final = frozenset({Path(__file__)})  # has the words themselves
_MAX_TEST_NAME: Final = 80
_REPEATABLE: Final = frozenset({"__init__.py", "__main__.py", "conftest.py"})


def python_files() -> list[Path]:
    """Return the Python files whose texts people read."""
    return sorted(path for folder in _CODE for path in (ROOT / folder).rglob("*.py") if path not in _EXEMPT)


def prose_files() -> list[Path]:
    """Return the files of prose, scripts and commented configuration."""
    return sorted(path for pattern in _PROSE for path in ROOT.glob(pattern) if path.name not in _GENERATED)


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of each comment and each string with a space in a Python file, with their numbers.

    A test's short strings are data, such as expected output of other programs, so they are left out.
    """
    is_test = path.is_relative_to(ROOT / "tests")
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        is_text = token.type == tokenize.STRING and (token.string.startswith('"""') if is_test else " " in token.string)
        if token.type == tokenize.COMMENT or is_text:
            for number, line in enumerate(token.string.splitlines()):
                yield token.start[0] + number, line


def problems(path: Path) -> list[str]:
    """Return each line of a file with a banned word or an inverted sentence."""
    lines = texts(path) if path.suffix == ".py" else enumerate(path.read_text().splitlines(), 1)
    matches = []
    for number, line in lines:
        place = f"{path.relative_to(ROOT)}:{number}"
        if match := _BANNED_RX.search(line):
            matches.append(f"{place}: {match[0]!r} in {line.strip()[:120]}")
        elif path.suffix == ".py" and (match := _INVERTED_RX.search(line.strip())):
            matches.append(f"{place}: begins with {match[0]!r}: {line.strip()[:120]}")
    return matches


@pytest.mark.parametrize("path", [*python_files(), *prose_files()], ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_use_plain_words(path: Path) -> None:
    assert problems(path) == []


def definitions(folder: str, *kinds: type[ast.AST]) -> Iterator[tuple[str, Path]]:
    """Yield the name and file of each function or top-level class in a folder."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, kinds):
                yield getattr(node, "name", ""), path.relative_to(ROOT)


def test_test_names_are_short() -> None:
    tests = [*definitions("tests", ast.FunctionDef, ast.AsyncFunctionDef)]
    assert len(tests) > 500
    assert [f"{path}: {name}" for name, path in tests if name.startswith("test_") and len(name) > _MAX_TEST_NAME] == []


def test_a_class_name_stands_for_one_thing() -> None:
    places = defaultdict(set)
    for name, path in definitions("agent", ast.ClassDef):
        places[name].add(str(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_a_file_name_in_the_tests_stands_for_one_file() -> None:
    places = defaultdict(set)
    for path in (ROOT / "tests").rglob("*.py"):
        if path.name not in _REPEATABLE:
            places[path.name].add(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}
