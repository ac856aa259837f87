"""Imports of the agent at its start: modules that few hosts need are imported on first use, which saves memory."""

import subprocess
import sys
from pathlib import Path

import pytest

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
    "agent.schemas",
)


SLOW = (
    "pydantic.main",
    "aiohttp",
    "aiokafka",
    "uvloop",
    "prometheus_client",
    "yaml",
    "ssl",
    "agent.app",
    "agent.config.model",
)
"""Modules that take most of the time of a start."""


def imported_modules(statement: str) -> list[str]:
    """Return the names of the modules that are loaded after a statement in a new interpreter."""
    script = f"{statement}; import sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return result.stdout.split()


def test_modules_that_few_hosts_need_are_imported_on_first_use() -> None:
    modules = imported_modules("import agent.cli.commands.run")
    assert "agent.app.agent" in modules
    assert not [name for name in modules if name.startswith(LAZY)]


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        ("version", (*SLOW, "agent.model.metrics")),
        ("schema record", SLOW),
        ("schema data", SLOW),
        ("schema config", SLOW),
    ],
)
def test_a_subcommand_imports_only_what_it_needs(arguments: str, absent: tuple[str, ...]) -> None:
    run = (
        f"contextlib.redirect_stdout(io.StringIO()).__enter__(); main({arguments.split()}); sys.stdout = sys.__stdout__"
    )
    modules = imported_modules(f"import contextlib, io, sys; from agent.cli.main import main; {run}")
    assert "agent.cli.main" in modules
    assert not [name for name in modules if name.startswith(absent)]


@pytest.mark.parametrize("name", ["tail", "top", "explain", "rewrite_state"])
def test_a_client_of_the_endpoint_needs_no_http_library(name: str) -> None:
    modules = imported_modules(f"import agent.cli.commands.{name}")
    assert "agent.cli.http_client" in modules
    assert not [name for name in modules if name.startswith(("aiohttp", "pydantic.main", "yaml", "agent.config.model"))]


def test_a_client_of_the_endpoint_reads_only_its_section_of_the_default_config(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("monitors: [{dial: /run/*.qmp}]\nweb: {listen_address: 127.0.0.1:5}\n")
    modules = imported_modules(
        "from argparse import Namespace; from pathlib import Path; from agent.cli import endpoint_url_and_credentials as options;"
        f" options.CONFIG_PATH = Path({str(config)!r});"
        " assert options.endpoint_url(Namespace(url='', config=None)) == 'http://127.0.0.1:5'"
    )
    assert not [name for name in modules if name.startswith(("agent.config.model", "agent.app", "agent.monitors"))]
