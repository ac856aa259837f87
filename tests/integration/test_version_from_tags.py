"""The version of a build in each kind of tree: at a tag, after it, in clones without tags or history, and without git."""

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
FILES: Final = ("pyproject.toml", "README.md", "LICENSE", ".git_archival.txt", ".gitattributes")


def git(tree: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=tree, check=True, capture_output=True, timeout=60)


def version(tree: Path) -> str:
    """Return the version that a build in this tree would have."""
    command = [sys.executable, "-m", "hatchling", "version"]
    return subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True, timeout=120).stdout.strip()


@pytest.fixture
def untagged(tmp_path: Path) -> Path:
    """A git tree of two commits without a tag."""
    tree = tmp_path / "tree"
    (tree / "agent").mkdir(parents=True)
    (tree / "agent/__init__.py").touch()
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    git(tree, "init", "-q")
    git(tree, "add", ".")
    git(tree, "commit", "-q", "-m", "1")
    git(tree, "commit", "-q", "--allow-empty", "-m", "2")
    return tree


@pytest.fixture
def tagged(untagged: Path) -> Path:
    """A git tree whose last commit has a tag."""
    git(untagged, "tag", "-a", "v1.2.3", "-m", "1.2.3")
    return untagged


def test_a_build_at_a_tag_has_its_version(tagged: Path) -> None:
    assert version(tagged) == "1.2.3"


def test_a_build_after_a_tag_counts_the_commits(tagged: Path) -> None:
    git(tagged, "commit", "-q", "--allow-empty", "-m", "3")
    assert re.fullmatch(r"1\.2\.4\.dev1\+g[0-9a-f]+", version(tagged))


def test_a_build_without_tags_has_a_version_before_all_others(untagged: Path) -> None:
    assert re.fullmatch(r"0\.0\.0\.dev\d+\+g[0-9a-f]+", version(untagged))


def test_a_build_in_a_shallow_clone_has_a_version(tagged: Path, tmp_path: Path) -> None:
    git(tagged, "commit", "-q", "--allow-empty", "-m", "3")
    git(tmp_path, "clone", "-q", "--depth=1", "--no-tags", tagged.as_uri(), "shallow")
    assert re.fullmatch(r"0\.0\.0\.dev\d+\+g[0-9a-f]+", version(tmp_path / "shallow"))


def test_a_build_without_git_has_the_fallback(tagged: Path) -> None:
    shutil.rmtree(tagged / ".git")
    assert version(tagged) == "0.0.0.dev0"


def test_a_build_in_a_directory_of_another_repository_has_the_fallback(tagged: Path) -> None:
    shutil.rmtree(tagged / ".git")
    git(tagged.parent, "init", "-q")
    assert version(tagged) == "0.0.0.dev0"


def test_a_build_of_an_archive_of_git_has_the_version_of_its_tag(tagged: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar"
    git(tagged, "archive", "-o", str(archive), "v1.2.3")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "unpacked", filter="data")
    assert version(tmp_path / "unpacked") == "1.2.3"


def test_a_build_of_an_sdist_has_the_version_of_the_sdist(tagged: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=tagged, check=True, capture_output=True, timeout=120)
    with tarfile.open(tmp_path / "qmp_agent-1.2.3.tar.gz") as opened:
        opened.extractall(tmp_path, filter="data")
    assert version(tmp_path / "qmp_agent-1.2.3") == "1.2.3"
