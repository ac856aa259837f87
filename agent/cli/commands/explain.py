"""The subcommand `qmp-agent explain`."""

import argparse
import json

from agent.cli.endpoint_url_and_credentials import endpoint_credentials, endpoint_url
from agent.cli.event_loop import run_coroutine
from agent.cli.explain import explanation_lines, request_slow_vm_explanation


def execute(parsed: argparse.Namespace) -> int:
    """Print why a VM is slow or hangs."""

    async def main() -> None:
        explanation = await request_slow_vm_explanation(endpoint_url(parsed), endpoint_credentials(parsed), parsed.vm)
        if parsed.json:
            print(json.dumps(explanation, indent=2))
        else:
            print(*explanation_lines(explanation), sep="\n")

    run_coroutine(main())
    return 0
