"""The Python example in docs/how-to/consumers.md: it compiles, and the names that it uses exist."""

import ast
import builtins
import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "consumers.md"


def test_the_example_uses_names_that_exist() -> None:
    match = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert match is not None
    tree = ast.parse(match[1])
    compile(tree, str(PAGE), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, object] = {}
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    exec(compile(ast.Module([*imports], []), str(PAGE), "exec"), names)
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assigned = {node.id for node in used if isinstance(node.ctx, ast.Store)}
    loaded = {node.id for node in used if isinstance(node.ctx, ast.Load)}
    assert loaded - assigned - names.keys() - vars(builtins).keys() == set()
    assert {imported.name for node in imports for imported in node.names} <= loaded
