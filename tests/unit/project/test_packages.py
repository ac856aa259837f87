"""The docstring of each package says where a new reader starts, and names existing modules."""

import ast
import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[3]
PACKAGES: Final = sorted(path.parent for path in (ROOT / "agent").rglob("__init__.py"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: str(package.relative_to(ROOT)))
def test_a_package_says_where_to_start(package: Path) -> None:
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    start = re.search(r"Start at (.*?)\.(?:\s|$)", text, re.DOTALL)
    if start is None:
        assert "Each module stands alone" in text
        return
    modules = [name.replace(".", "/") for name in re.findall(r"`([a-z_.]+)`", start[1])]
    assert modules
    assert [name for name in modules if not (package / f"{name}.py").is_file() and not (package / name).is_dir()] == []
