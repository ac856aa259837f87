"""What a running agent has in memory: nothing that few hosts have a use for, until it is used."""

import subprocess
import sys

SELDOM = (
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


def test_what_few_hosts_have_a_use_for_is_imported_when_it_is_used() -> None:
    script = "import agent.cli.main, sys; print(*sys.modules)"
    there = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert "agent.app.agent" in there
    assert not [name for name in there if name.startswith(SELDOM)]
