"""Files that are made from the code, and the config that explains every key, say what the code says."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agent import schema
from agent.config import Config
from agent.config_file import load, sections
from dashboards import host

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("file", "made"),
    [
        ("config/agent.schema.json", schema.config_schema),
        ("config/record.schema.json", schema.record_schema),
        ("dashboards/host.json", lambda: json.loads(host.build())),
    ],
)
def test_a_generated_file_is_what_the_code_makes_today(file: str, made: Any) -> None:
    assert json.loads((ROOT / file).read_text()) == json.loads(json.dumps(made())), "run `make generate`"


def keys(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        for inner in sections(field.annotation):
            yield from keys(inner)


def test_the_shipped_config_is_good_and_is_the_default_but_for_its_monitors() -> None:
    shipped = load(ROOT / "config/agent.yaml")
    assert shipped == Config(monitors=shipped.monitors, host=shipped.host)


@pytest.mark.parametrize("key", sorted(set(keys(Config))))
def test_the_shipped_config_explains_every_key(key: str) -> None:
    text = (ROOT / "config/agent.yaml").read_text()
    assert re.search(rf"(^|[\s{{#-]){key}:", text, re.MULTILINE)


def test_every_key_has_a_description_for_the_schema() -> None:
    def check(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            for inner in sections(field.annotation):
                check(inner)

    check(Config)
