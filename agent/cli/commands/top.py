"""The subcommand `qmp-agent top`."""

import argparse
import asyncio

from agent.cli.endpoint_url_and_credentials import endpoint_credentials, endpoint_url
from agent.cli.top import TopError
from agent.cli.top.columns import COLUMNS
from agent.cli.top.screen_state import TopView
from agent.cli.top.terminal import TopOptions, print_once, run_top


def execute(parsed: argparse.Namespace) -> int:
    """Show the VMs of the running agent in the terminal."""
    names = [column.name for column in COLUMNS]
    if parsed.sort.removeprefix("-") not in names:
        raise TopError(f"--sort {parsed.sort}: no such column: choose from {', '.join(names)}")
    if parsed.json and not parsed.once:
        raise TopError("--json needs --once")
    options = TopOptions(
        endpoint_url(parsed),
        parsed.interval,
        parsed.vm,
        TopView(parsed.view),
        parsed.filter,
        parsed.sort,
        parsed.json,
        endpoint_credentials(parsed),
    )
    asyncio.run(print_once(options) if parsed.once else run_top(options))
    return 0
