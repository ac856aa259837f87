"""Runs the coroutine of a subcommand on uvloop, a fast event loop."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import uvloop


def run_coroutine(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine until it ends."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
