"""The subcommand `qmp-agent tail`."""

import argparse

from agent.cli.endpoint_url_and_credentials import endpoint_credentials, endpoint_url
from agent.cli.event_loop import run_coroutine
from agent.cli.tail import TailOptions, tail_records


def execute(parsed: argparse.Namespace) -> int:
    """Follow the records of the running agent."""
    url, credentials = endpoint_url(parsed), endpoint_credentials(parsed)
    run_coroutine(tail_records(TailOptions(url, parsed.vm, parsed.type, parsed.severity, parsed.json, credentials)))
    return 0
