"""The subcommand `qmp-agent demo`."""

import argparse

from agent.cli.demo.demo_run import run_demo
from agent.cli.event_loop import run_coroutine


def execute(parsed: argparse.Namespace) -> int:
    """Boot two small guests, watch them and provoke events."""
    run_coroutine(run_demo(parsed.seconds, parsed.output, parsed.alertmanager))
    return 0
