"""What pytest reads first: the lab's fixtures, and a judge of all that the agent says to monitors while the tests run."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import command_audit

pytest_plugins = ["tests.lab.fixtures"]

_WIRE = command_audit.Wire()


@pytest.fixture(scope="session", autouse=True)
def _traced() -> Iterator[None]:
    """Write down what is said, by agents that are processes of their own too."""
    command_audit.tap(_WIRE)
    with tempfile.TemporaryDirectory(prefix="qmp-wire-") as folder:
        os.environ[command_audit.TRACE] = folder
        yield
        _WIRE.test = "an agent that was started by a test"
        _WIRE.read(Path(folder))
        del os.environ[command_audit.TRACE]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Know whose words they are."""
    _WIRE.test = item.nodeid


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail where anything was said that may not be."""
    if _WIRE.faults and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was said."""
    if _WIRE.commands:
        most = ", ".join(f"{name} {count}" for name, count in _WIRE.commands.most_common())
        terminalreporter.section("said to monitors")
        terminalreporter.line(f"{_WIRE.commands.total()} requests, {len(_WIRE.faults)} that may not be said: {most}")
        for wrong in _WIRE.faults[:20]:
            terminalreporter.line(f"FAULT {wrong}", red=True)
