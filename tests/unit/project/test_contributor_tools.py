"""The tools of contributors agree: the forge's workflow, the hooks of git, the changelog's files and the versions in the manifests."""

import re
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT: Final = Path(__file__).parents[3]
WORKFLOWS: Final = sorted((ROOT / ".github/workflows").glob("*.yml"))
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKE_CALL: Final = re.compile(r"(?m)(?:^|\|\| )(make [a-z-]+)")


def steps(workflow: Path) -> list[dict[str, Any]]:
    """Return the steps of all jobs of a workflow."""
    return [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]


def test_the_forge_runs_the_targets_of_the_ci_script_in_its_order() -> None:
    script = re.sub(r"(?m)^#.*", "", (ROOT / ".ci/run").read_text())
    commands = "\n".join(step.get("run", "") for step in steps(ROOT / ".github/workflows/check.yml"))
    assert MAKE_CALL.findall(commands) == MAKE_CALL.findall(script)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_each_action_is_pinned_by_its_commit(workflow: Path) -> None:
    actions = re.findall(r"uses: (.*)", workflow.read_text())
    assert actions
    assert [action for action in actions if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)] == []


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_can_only_read_the_project(workflow: Path) -> None:
    assert yaml.safe_load(workflow.read_text())["permissions"] == {"contents": "read"}


def test_the_hooks_run_the_commands_of_make_check() -> None:
    makefile = (ROOT / "Makefile").read_text().replace("$(MKDOCS)", "env NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs")
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    in_make = {line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in recipe[1].splitlines()}
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert {hook["entry"] for hook in repository["hooks"]} == in_make


def test_each_file_of_the_changelog_has_a_known_type() -> None:
    types = {kind["directory"] for kind in PROJECT["tool"]["towncrier"]["type"]}
    names = [path.name for path in (ROOT / "changelog.d").iterdir() if path.name != ".gitignore"]
    pattern = rf"\+[a-z0-9-]+\.(?:{'|'.join(sorted(types))})\.md"
    assert [name for name in names if not re.fullmatch(pattern, name)] == []


def test_the_manifests_have_the_same_version() -> None:
    chart = yaml.safe_load((ROOT / "deploy/kubernetes/helm/Chart.yaml").read_text())
    images = re.findall(r"image: qmp-agent:(\S+)", (ROOT / "deploy/kubernetes/base/qmp-agent.yaml").read_text())
    assert {chart["version"], chart["appVersion"], *images} == {chart["version"]}
    assert images
