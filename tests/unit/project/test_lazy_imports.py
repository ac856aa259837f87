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
    "agent.cli.schema",
)


def test_modules_that_few_hosts_need_are_imported_on_first_use() -> None:
    script = "import agent.cli.main, sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert "agent.app.agent" in modules
    assert not [name for name in modules if name.startswith(LAZY)]
