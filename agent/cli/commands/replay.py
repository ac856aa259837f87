"""The subcommand `qmp-agent replay`."""

import argparse

from agent.cli.capture.config import capture_config
from agent.cli.capture.replay import replay_capture
from agent.cli.event_loop import run_coroutine


def execute(parsed: argparse.Namespace) -> int:
    """Replay recorded QMP traffic to an agent."""
    run_coroutine(replay_capture(parsed.file, capture_config(parsed), listen=parsed.listen, speed=parsed.speed))
    return 0
