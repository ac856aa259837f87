"""The subcommand `qmp-agent rewrite-state`."""

import argparse

from agent.cli.endpoint_url_and_credentials import endpoint_credentials, endpoint_url
from agent.cli.event_loop import run_coroutine
from agent.cli.rewrite_state_topic import request_state_rewrite


def execute(parsed: argparse.Namespace) -> int:
    """Make the running agent write the whole state topic again."""

    async def main() -> None:
        print(
            f"{await request_state_rewrite(endpoint_url(parsed), endpoint_credentials(parsed))} states are written again"
        )

    run_coroutine(main())
    return 0
