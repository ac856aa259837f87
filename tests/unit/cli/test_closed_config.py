"""Subcommands of a user who may not read the directory of the default config."""

import argparse
import os
from pathlib import Path

import pytest

from agent.cli import agent_endpoint
from agent.common.paths import may_exist


class ClosedPath(type(Path())):  # type: ignore[misc]  # the class of paths on this system
    """A path below a directory that this user may not enter."""

    def stat(self, *, follow_symlinks: bool = True) -> None:
        raise PermissionError(13, "Permission denied", str(self), follow_symlinks)


def test_a_client_of_the_endpoint_uses_the_default_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_endpoint, "CONFIG_PATH", tmp_path / "agent.yaml")
    monkeypatch.setattr(os, "access", lambda *_: False)
    parsed = argparse.Namespace(url=None, config=None)
    assert agent_endpoint.endpoint_url(parsed) == "http://127.0.0.1:9179"


def test_a_file_in_a_closed_directory_may_exist(tmp_path: Path) -> None:
    assert may_exist(ClosedPath(tmp_path / "agent.yaml"))
    assert not may_exist(tmp_path / "agent.yaml")
    assert may_exist(tmp_path)
