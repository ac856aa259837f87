"""Sizes of files, functions and classes: what exceeds a limit is hard to read at once."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[3]
MODULES: Final = sorted((ROOT / "agent").rglob("*.py"))
OTHERS: Final = sorted(
    path for folder in ("dashboards", "deploy", "tests", "tools") for path in (ROOT / folder).rglob("*.py")
)

MAX_FILE_LINES: Final = 400
MAX_FUNCTION_LINES: Final = 50
MAX_PUBLIC_METHODS: Final = 15


def large_functions(tree: ast.AST) -> Iterator[str]:
    """Yield the name of each function that is too long."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{node.name}: {lines} lines"


def large_classes(tree: ast.AST, lines: list[str]) -> Iterator[str]:
    """Yield the name of each class with too many public methods, unless a comment above it gives the number and the reason."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            methods = [child.name for child in node.body if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)]
            count = len({name for name in methods if not name.startswith("_")})
            above = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 2
            if count > MAX_PUBLIC_METHODS and not lines[above].startswith(f"# {count} public methods:"):
                yield f"{node.name}: {count} public methods"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_functions_and_classes_are_small(path: Path) -> None:
    text = path.read_text()
    lines, tree = text.splitlines(), ast.parse(text)
    problems = [*large_functions(tree), *large_classes(tree, lines)]
    if len(lines) > MAX_FILE_LINES:
        problems.append(f"{len(lines)} lines")
    assert problems == []


def test_no_file_outside_the_agent_is_long() -> None:
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in OTHERS}
    assert {path: count for path, count in lines.items() if count > MAX_FILE_LINES} == {}
