"""A name in backticks in a docstring or a comment exists somewhere in the code, so a rename leaves no false text."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[3]
_CODE: Final = ("agent", "tests", "tools", "deploy", "dashboards")
_NAME: Final = re.compile(r"`([A-Za-z_][\w.]*)(?:\(\))?`")
_NOT_OURS: Final = frozenset({"_ns", "_created", "VM10", "virConnect", "wmem_default"})
"""A suffix of field names, a suffix of prometheus_client, an example, a type of libvirt, a setting of the kernel."""


def tokens(path: Path) -> Iterator[tokenize.TokenInfo]:
    """Yield the tokens of a Python file."""
    return tokenize.generate_tokens(io.StringIO(path.read_text()).readline)


def is_text(token: tokenize.TokenInfo) -> bool:
    """Return whether a token is a docstring or a comment."""
    return token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.string.startswith('"""'))


@pytest.fixture(scope="module")
def known_names() -> frozenset[str]:
    """Every identifier, and every word in a string that is no docstring, such as a key of QEMU's replies."""
    names = set(_NOT_OURS)
    for folder in _CODE:
        for path in (ROOT / folder).rglob("*.py"):
            for token in tokens(path):
                if token.type != tokenize.COMMENT and not is_text(token):
                    names.update(re.findall(r"\w+", token.string))
    return frozenset(names)


def test_names_in_docstrings_and_comments_exist(known_names: frozenset[str]) -> None:
    unknown = [
        f"{path.relative_to(ROOT)}:{token.start[0]}: {match[0]}"
        for path in sorted((ROOT / "agent").rglob("*.py"))
        for token in tokens(path)
        if is_text(token)
        for match in _NAME.finditer(token.string)
        if not known_names.issuperset(filter(None, match[1].split(".")))
    ]
    assert unknown == []
