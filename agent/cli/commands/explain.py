"""The subcommand `qmp-agent explain`."""

import argparse
import json

from agent.cli.agent_endpoint import credentials_from, endpoint_url
from agent.cli.event_loop import run_loop
from agent.cli.explain import explanation_lines, request_explanation


def execute(parsed: argparse.Namespace) -> int:
    """Print why a VM is slow or hangs."""

    async def main() -> None:
        explanation = await request_explanation(endpoint_url(parsed), credentials_from(parsed), parsed.vm)
        if parsed.json:
            print(json.dumps(explanation, indent=2))
        else:
            print(*explanation_lines(explanation), sep="\n")

    run_loop(main())
    return 0
