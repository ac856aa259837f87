"""Generated files are up to date, and the shipped config documents every key."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from agent.config.loader import load_config, section_models_in
from agent.config.model import Config
from agent.model.event_table import EVENT_DEFINITIONS
from agent.model.metrics import FAMILIES
from agent.schemas.record import record_schema
from dashboards import DASHBOARDS
from deploy.prometheus import alert_rules
from tests.lab.record_checks import validate_record, validator
from tools import alerts_reference, reference, schemas, user_reference
from tools.config_schema import config_schema, key_descriptions, sections_of

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("file", "generate"),
    [
        ("agent/config/agent.schema.json", config_schema),
        ("config/record.schema.json", record_schema),
        *((f"dashboards/{each.uid}.json", lambda each=each: json.loads(each.json())) for each in DASHBOARDS),
    ],
)
def test_a_generated_json_file_is_up_to_date(file: str, generate: Any) -> None:
    assert json.loads((ROOT / file).read_text()) == json.loads(json.dumps(generate())), "run `make generate`"


def test_the_schema_files_of_the_record_types_are_up_to_date() -> None:
    files = {path: path.read_text() for path in schemas.DIRECTORY.glob("*.json") if path != schemas.RELEASED}
    assert files == schemas.schema_files(), "run `make generate`"


@pytest.mark.parametrize(
    ("file", "generate"),
    [
        ("docs/reference/metrics.md", reference.metrics_document),
        ("docs/reference/records.md", lambda: reference.records_document(reference.EXAMPLES.read_text().splitlines())),
        ("docs/reference/qmp-commands.md", reference.queries_document),
        ("docs/reference/alerts.md", alerts_reference.alerts_document),
        ("docs/reference/commands.md", user_reference.commands_document),
        ("docs/reference/config.md", user_reference.config_document),
        ("deploy/prometheus/alerts.yml", lambda: alert_rules.rules_file("rules")),
        ("deploy/prometheus/agent-alerts.yml", lambda: alert_rules.rules_file("forward")),
    ],
)
def test_a_generated_document_is_up_to_date(file: str, generate: Callable[[], str]) -> None:
    assert (ROOT / file).read_text() == generate(), "run `make generate`"


def test_the_documents_have_every_series_and_every_type_of_record() -> None:
    metrics, records = (
        (ROOT / "docs/reference/metrics.md").read_text(),
        (ROOT / "docs/reference/records.md").read_text(),
    )
    assert [
        s
        for family in FAMILIES
        for field in family.exported_fields()
        if f"| `{(s := family.metric_name(field))}` |" not in metrics
    ] == []
    types = record_schema()["properties"]["type"]["anyOf"][0]["enum"]
    assert [name for name in types if f"### {name}\n" not in records] == []
    assert [row.name for row in EVENT_DEFINITIONS if f"| `qemu.event.{row.name.lower()}` |" not in records] == []


def test_every_example_record_is_valid() -> None:
    record_validator = validator(record_schema())
    examples = reference.EXAMPLES.read_text().splitlines()
    types = [validate_record(line, record_validator).get_type() for line in examples]
    assert types == sorted(set(types))
    assert len(types) > 30


def keys(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Yield the path of every key that a section may have."""
    for name, field in model.model_fields.items():
        yield f"{above}{name}"
        for inner in section_models_in(field.annotation):
            yield from keys(inner, f"{above}{name}.")


def paths(value: Any, above: str = "") -> Iterator[str]:
    """Yield the path of every key in a value."""
    for inner in value if isinstance(value, list) else ():
        yield from paths(inner, above)
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield f"{above}{name}"
        yield from paths(inner, f"{above}{name}.")


def test_the_shipped_config_has_the_defaults_except_for_its_monitors() -> None:
    shipped = load_config(ROOT / "config/agent.yaml")
    assert shipped == Config(monitors=shipped.monitors, host=shipped.host)


def test_the_shipped_config_documents_every_key() -> None:
    text = (ROOT / "config/agent.yaml").read_text()
    uncommented = re.sub(r"^( *)# ( *(- )?([a-z_]+:|\{))", r"\1\2", text, flags=re.MULTILINE)
    uncommented = re.sub(r"^( *(?:overrides|channels|custom):) \[\]", r"\1", uncommented, flags=re.MULTILINE)
    assert set(keys(Config)) - set(paths(yaml.safe_load(uncommented))) == set()


def test_the_code_reads_every_key() -> None:
    code = "".join(path.read_text() for path in (ROOT / "agent").rglob("*.py"))
    names = {key.rpartition(".")[2] for key in keys(Config)}
    assert {name for name in names if not re.search(rf"\.{name}\b", code)} == set()


def test_every_key_has_a_description_for_the_schema() -> None:
    sections = list(sections_of(Config))
    assert len(sections) > 20
    missing = [
        f"{section.__name__}.{key}"
        for section in sections
        for key in section.model_fields
        if not key_descriptions(section).get(key)
    ]
    assert missing == []
