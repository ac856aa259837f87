"""`make release` refuses a tree from which the release could not be built again."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
MANIFESTS: Final = ("deploy/kubernetes/helm/Chart.yaml", "deploy/kubernetes/base/qmp-agent.yaml", "CHANGELOG.md")


def git(tree: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=tree, check=True, capture_output=True, timeout=60)


def refusal(tree: Path) -> str:
    """Return the error of deploy/release in a tree."""
    result = subprocess.run(["deploy/release"], cwd=tree, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert not (tree / "dist").exists()
    return result.stderr.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A git tree with the script and with manifests of the version 1.2.3."""
    for name in MANIFESTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("version: 1.2.3\n")
    shutil.copy(ROOT / "deploy/release", tmp_path / "deploy")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "1")
    return tmp_path


def test_a_commit_without_a_tag_is_refused(tree: Path) -> None:
    assert refusal(tree) == "deploy/release: this commit has no tag such as v1.2.3"


def test_a_tree_with_changes_is_refused(tree: Path) -> None:
    git(tree, "tag", "v1.2.3")
    (tree / "new").touch()
    assert refusal(tree) == "deploy/release: the tree has changes that are not committed"


@pytest.mark.parametrize("name", MANIFESTS)
def test_another_version_in_a_manifest_is_refused(tree: Path, name: str) -> None:
    (tree / name).write_text("version: 1.2.2\n")
    git(tree, "commit", "-q", "-a", "-m", "2")
    git(tree, "tag", "v1.2.3")
    assert refusal(tree) == f"deploy/release: {name} does not have the version 1.2.3: run make prepare-release"
