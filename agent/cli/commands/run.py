"""The subcommand `qmp-agent run`."""

import argparse
import faulthandler
import os
import threading
from collections.abc import Coroutine
from functools import partial
from typing import Any

from agent.app.agent import run
from agent.cli.event_loop import run_coroutine
from agent.common.default_paths import CONFIG_PATH
from agent.config.loader import load_config
from agent.runtime.logging import configure_logging

THREAD_EXIT_SECONDS = 2.0
"""Maximum seconds that the process waits for its threads before it exits."""


def execute(parsed: argparse.Namespace) -> int:
    """Watch the VMs of this host until SIGTERM."""
    read = partial(load_config, parsed.config or CONFIG_PATH)
    config = read()
    configure_logging(config.log.level, config.log.format)
    faulthandler.enable()  # logs where the process hangs if systemd's watchdog sends SIGABRT
    run_coroutine(_exit_after(run(config, read)))
    return 0


async def _exit_after(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine. The process exits within THREAD_EXIT_SECONDS after the coroutine's end, even if a hung disk blocks a thread."""
    status = 1
    try:
        await main
        status = 0
    finally:
        timer = threading.Timer(THREAD_EXIT_SECONDS, os._exit, (status,))
        timer.daemon = True  # the timer does not keep the process alive
        timer.start()
