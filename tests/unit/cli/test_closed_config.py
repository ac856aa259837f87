"""Subcommands of a user who may not read the directory of the default config."""

import argparse
import errno
import os
from pathlib import Path

import pytest

from agent.cli import endpoint_url_and_credentials
from agent.cli.commands import doctor
from agent.config.errors import ConfigError


def test_a_client_of_the_endpoint_uses_the_default_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_url_and_credentials, "CONFIG_PATH", tmp_path / "agent.yaml")
    monkeypatch.setattr(os, "access", lambda *_: False)
    parsed = argparse.Namespace(url=None, config=None)
    assert endpoint_url_and_credentials.endpoint_url(parsed) == "http://127.0.0.1:9179"


def test_doctor_reports_a_config_that_it_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **_options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(doctor, "CONFIG_PATH", tmp_path / "agent.yaml")
    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        doctor.execute(argparse.Namespace(config=None, user=None))
