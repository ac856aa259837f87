"""The subcommand `qmp-agent register-schemas`."""

import argparse

from agent.cli.endpoint_url_and_credentials import endpoint_credentials
from agent.cli.event_loop import run_coroutine
from agent.cli.schema_registry import register_schemas


def execute(parsed: argparse.Namespace) -> int:
    """Register the JSON schemas of records in a schema registry."""
    rejected = []

    async def print_registrations() -> None:
        async for registration in register_schemas(parsed.url, endpoint_credentials(parsed)):
            if registration.error:
                rejected.append(registration)
            print(f"{registration.subject}: {registration.error or f'id {registration.id}'}", flush=True)

    run_coroutine(print_registrations())
    return 1 if rejected else 0
