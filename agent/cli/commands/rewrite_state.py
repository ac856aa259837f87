"""The subcommand `qmp-agent rewrite-state`."""

import argparse

from agent.cli.agent_endpoint import credentials_from, endpoint_url
from agent.cli.event_loop import run_loop
from agent.cli.rewrite_state import request_rewrite


def execute(parsed: argparse.Namespace) -> int:
    """Make the running agent write the whole state topic again."""

    async def main() -> None:
        print(f"{await request_rewrite(endpoint_url(parsed), credentials_from(parsed))} states are written again")

    run_loop(main())
    return 0
