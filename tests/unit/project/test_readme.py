"""The README's config and examples are valid, and its figures are those of the measurements."""

import json
import re
from pathlib import Path
from typing import Final

import jsonschema

from agent.config.loader import load_config
from agent.schemas.data import published_data_schemas

ROOT: Final = Path(__file__).parents[3]
README: Final = (ROOT / "README.md").read_text()


def section(heading: str) -> str:
    """Return the text below a heading of the second level."""
    match = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert match is not None, heading
    return match[1]


def test_the_config_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    assert load_config(path).alerts.alertmanager is not None
    assert len(text.splitlines()) <= 12


def test_the_figures_are_those_of_the_measurements() -> None:
    measured = "".join(page.read_text() for page in (ROOT / "docs/explanation").glob("performance*.md"))
    figures = re.findall(r"\d[\d.,]* (?:ms|us|s|%|[KM]i?B)\b", section("Why not a libvirt exporter"))
    assert len(figures) >= 4
    assert [figure for figure in figures if f" {figure} " not in measured] == []


def test_the_series_are_in_the_reference() -> None:
    (page,) = (ROOT / "docs").rglob("metrics.md")
    names = re.findall(r"^(\w+)\{", section("What comes out"), re.MULTILINE)
    assert len(names) == 4
    assert [name for name in names if f"`{name}`" not in page.read_text()] == []


def test_the_record_and_the_alert_are_valid() -> None:
    record, alert = map(json.loads, re.findall(r"```json\n(.*?)```", section("What comes out"), re.DOTALL))
    jsonschema.validate(record, json.loads((ROOT / "config/record.schema.json").read_text()))
    jsonschema.validate(alert, published_data_schemas()[f"qemu.alert.{alert['alert']}"])
