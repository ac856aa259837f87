"""References from the documentation, and from the areas of make mutants, to files that exist."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from agent.config.loader import load_config
from agent.config.model import Config
from agent.config.reload import LIVE_SECTIONS
from tests.lab.markdown import anchors
from tests.mutants import AREAS

ROOT = Path(__file__).parents[3]


def test_each_test_that_a_document_names_exists() -> None:
    references = [
        (page.name, *match.groups())
        for page in (ROOT / "docs").rglob("*.md")
        for match in re.finditer(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text())
    ]
    assert len(references) > 20
    for page, file, test in references:
        assert (ROOT / file).is_file(), f"{page} names {file}"
        assert test is None or re.search(rf"def {test}\(", (ROOT / file).read_text()), f"{page} names {file}::{test}"


def test_the_areas_of_make_mutants_name_files_that_exist() -> None:
    named = [
        f"{folder}/{file}"
        for area in AREAS.values()
        for folder, files in (("agent", area.modules), ("tests/unit", area.tests))
        for file in files
    ]
    assert [file for file in named if not (ROOT / file).is_file()] == []


def test_links_lead_to_existing_files_and_headings() -> None:
    links = [
        (page, match[1], match[2])
        for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
        for match in re.finditer(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text())
    ]
    assert len(links) > 50
    for page, file, anchor in links:
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name} links to {file}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {file}#{anchor}"


def test_the_guide_for_changes_names_only_files_and_definitions_that_exist() -> None:
    files = [path for folder in ("agent", "tests", "deploy", "dashboards") for path in (ROOT / folder).rglob("*.*")]
    paths = [path.relative_to(ROOT).as_posix() for path in files]
    code = "\n".join(path.read_text() for path in files if path.suffix == ".py" and path.is_relative_to(ROOT / "agent"))
    named = re.findall(r"`([\w/.-]+)`", (ROOT / "CONTRIBUTING.md").read_text())
    modules = [name for name in named if name.endswith((".py", ".js")) and "NAME" not in name]
    assert len(modules) > 20
    assert [name for name in modules if not any(f"/{path}".endswith(f"/{name}") for path in paths)] == []
    definitions = [
        name for name in named if re.fullmatch(r"_?[A-Z]\w*[A-Z_]\w*(\.\w+)?", name) and "." + name not in code
    ]
    events = {"NETDEV_VHOST_USER_DISCONNECTED", "NAME"}
    for name in set(definitions) - events:
        owner, _, member = name.partition(".")
        assert re.search(rf"^(class {owner}\b|{owner}\b.* = )", code, re.MULTILINE), name
        assert not member or re.search(rf"\b(def {member}\b|{member}: )", code), name


def test_the_example_of_a_new_metric_adds_a_row_that_the_code_lacks() -> None:
    match = re.search(
        r"`(agent/model/metrics/\w+\.py)`:\n\n```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL
    )
    assert match is not None
    code = (ROOT / match[1]).read_text()
    lines = [(line[0], line[1:].strip()) for line in match[2].splitlines()]
    assert {sign for sign, _ in lines} == {" ", "+"}
    for sign, line in lines:
        name = re.findall(r'"([^"]*)"', line)[1]
        assert (f'"{name}"' in code) is (sign == " "), line


def test_the_sections_that_reload_live_are_those_of_the_code() -> None:
    text = (ROOT / "docs/how-to/operate.md").read_text()
    match = re.search(r"The sections (.*) take effect at once", text)
    assert match is not None
    assert set(re.findall(r"`(\w+)`", match[1])) == LIVE_SECTIONS


def config_examples() -> Iterator[tuple[str, str]]:
    """Yield the page and the text of each example of the agent's config. An example of another program's config has other keys."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text()
        fenced = re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        indented = re.findall(r"\n\n((?: {4,}.*\n)+)", text)
        written = re.findall(r"<<END\n(.*?)^END", text, re.DOTALL | re.MULTILINE)
        for example in (*fenced, *written, *(block for block in indented if re.match(r" +\w+:\n", block))):
            keys = yaml.safe_load(textwrap.dedent(example)).keys()
            if keys <= Config.model_fields.keys():
                needed = "" if "monitors" in keys else "monitors: [{dial: /run/qemu/*.qmp}]\n"
                yield page.name, textwrap.dedent(example) + needed


def test_each_example_of_the_config_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    examples = list(config_examples())
    assert len(examples) > 15
    for page, text in examples:
        file = tmp_path / page
        file.write_text(text)
        load_config(file)
