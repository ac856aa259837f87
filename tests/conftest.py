"""Pytest's entry point: the lab's fixtures, and an audit of every command that the agent sends to a monitor during the tests."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.workermanage import WorkerController

from tests.lab import command_audit

pytest_plugins = ["tests.lab.fixtures", "tests.lab.distribution"]

_AUDIT = command_audit.CommandAudit()

# Images of containers set this variable. With it, each agent under test compiles 400 modules at its start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# A shell that runs the tests in the background ignores SIGINT, and the programs that the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A worker of pytest-xdist has these variables of its own. They have precedence over the size of a test's terminal.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def _audited() -> Iterator[None]:
    """Record the commands of this process, and of the agents that the tests start as processes of their own."""
    command_audit.start_recording(_AUDIT)
    with tempfile.TemporaryDirectory(prefix="qmp-wire-") as folder:
        os.environ[command_audit.TRACE] = folder
        yield
        _AUDIT.test = "an agent process that a test started"
        _AUDIT.add_traces(Path(folder))
        del os.environ[command_audit.TRACE]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Attribute the commands that follow to this test."""
    _AUDIT.test = item.nodeid


def pytest_testnodedown(node: WorkerController) -> None:
    """Add the audit of a worker of pytest-xdist."""
    output = getattr(node, "workeroutput", {})  # a worker that crashed has none
    _AUDIT.commands.update(output.get("commands", {}))
    _AUDIT.violations += output.get("violations", ())


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the run if a forbidden command was sent. In a worker, pass the audit to the process that started the worker."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput |= {"commands": dict(_AUDIT.commands), "violations": _AUDIT.violations}
    if _AUDIT.violations and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how often each command was sent, and each violation."""
    if _AUDIT.commands:
        counts = ", ".join(f"{name} {count}" for name, count in _AUDIT.commands.most_common())
        terminalreporter.section("commands sent to monitors and guest agents")
        terminalreporter.line(f"{_AUDIT.commands.total()} requests, {len(_AUDIT.violations)} forbidden: {counts}")
        for violation in _AUDIT.violations[:20]:
            terminalreporter.line(f"FORBIDDEN {violation}", red=True)
