"""The subcommand `qmp-agent replay`."""

import argparse

from agent.cli.capture.config import load_config_and_configure_logging
from agent.cli.capture.replay import replay_capture
from agent.cli.event_loop import run_coroutine


def execute(parsed: argparse.Namespace) -> int:
    """Replay recorded QMP traffic to an agent."""
    run_coroutine(
        replay_capture(parsed.file, load_config_and_configure_logging(parsed), listen=parsed.listen, speed=parsed.speed)
    )
    return 0
