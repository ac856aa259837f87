"""The subcommand `qmp-agent tail`."""

import argparse

from agent.cli.agent_endpoint import credentials_from, endpoint_url
from agent.cli.event_loop import run_loop
from agent.cli.tail import TailOptions, tail_records


def execute(parsed: argparse.Namespace) -> int:
    """Follow the records of the running agent."""
    url, credentials = endpoint_url(parsed), credentials_from(parsed)
    run_loop(tail_records(TailOptions(url, parsed.vm, parsed.type, parsed.severity, parsed.json, credentials)))
    return 0
