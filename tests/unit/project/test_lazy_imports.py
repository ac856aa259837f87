"""Imports of the agent at its start: modules that few hosts need are imported on first use, which saves memory."""

import subprocess
import sys

LAZY = (
    "aiokafka",
    "bcrypt",
    "xml",
    "defusedxml",
    "agent.monitors.libvirt.discovery",
    "agent.cli.check",
    "agent.cli.demo",
    "agent.cli.doctor",
    "agent.cli.top",
    "agent.config.schema",
    "agent.schemas",
)


SLOW = ("pydantic.main", "aiohttp", "uvloop", "prometheus_client", "agent.app", "agent.config")
"""Modules that take most of the time of a start."""


def imported_modules(statement: str) -> list[str]:
    """Return the names of the modules that are loaded after a statement in a new interpreter."""
    script = f"{statement}; import sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return result.stdout.split()


def test_modules_that_few_hosts_need_are_imported_on_first_use() -> None:
    modules = imported_modules("import agent.cli.subcommands")
    assert "agent.app.agent" in modules
    assert not [name for name in modules if name.startswith(LAZY)]


def test_the_command_line_is_parsed_without_the_agent() -> None:
    modules = imported_modules("from agent.cli.main import main; main(['version'])")
    assert "agent.cli.main" in modules
    assert not [name for name in modules if name.startswith(SLOW)]
