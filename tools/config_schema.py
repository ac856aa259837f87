"""Generator of the JSON schema of the config file, from the types of its sections.

`python -m tools.config_schema` writes the schema to standard output.
"""

import ast
import inspect
import itertools
import json
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from agent.config.loader import section_models_in
from agent.config.model import Config


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of the config file."""
    schema = Config.model_json_schema()
    for section in sections_of(Config):
        definition = schema if section is Config else schema["$defs"][section.__name__]
        properties, descriptions = definition["properties"], key_descriptions(section)
        for key in properties:
            properties[key] = dict(sorted((properties[key] | {"description": descriptions[key]}).items()))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Config of qmp-agent",
        **schema,
    }


def sections_of(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield a section and all sections in it."""
    seen = [model]
    for section in seen:
        yield section
        inner = (each for field in section.model_fields.values() for each in section_models_in(field.annotation))
        seen += [each for each in dict.fromkeys(inner) if each not in seen]


def key_descriptions(section: type[BaseModel]) -> dict[str, str]:
    """Return the text below each key of a section. pydantic would read these texts at each import of the agent."""
    descriptions: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(tree, ast.ClassDef)
            descriptions |= dict(_documented_keys(tree.body))
    return descriptions


def _documented_keys(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for statement, following in itertools.pairwise(body):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as text)):
                yield name, inspect.cleandoc(text)


if __name__ == "__main__":
    sys.stdout.write(f"{json.dumps(config_schema(), indent=2)}\n")
