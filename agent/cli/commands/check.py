"""The subcommand `qmp-agent check`."""

import argparse
import logging
import os

from agent.cli.check import run_all_checks
from agent.cli.endpoint_url_and_credentials import configured_endpoint_url
from agent.cli.event_loop import run_coroutine
from agent.cli.http_client import AgentRequestError, EndpointCredentials, request_json
from agent.common.default_paths import CONFIG_PATH
from agent.config.loader import load_config


def execute(parsed: argparse.Namespace) -> int:
    """Check the config, and the monitors, the journal, the endpoint and the sink that the config names."""
    path = parsed.config or CONFIG_PATH
    config = load_config(path)
    print(f"{path}: the config is valid")
    if parsed.syntax:
        return 0
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # `run_all_checks` reports the error
    failures = []

    async def print_results() -> None:
        async for result in run_all_checks(config, await _watched_monitors(configured_endpoint_url(config.web))):
            print(f"{'ok' if result.ok else 'FAIL':4}  {result.text}", flush=True)
            if not result.ok:
                failures.append(result)

    run_coroutine(print_results())
    if os.geteuid() == 0:
        print("note  root has more permissions than the agent's user; for an exact result, run check as that user")
    return 1 if failures else 0


async def _watched_monitors(url: str) -> set[str]:
    """Return the names of the monitors to which the running agent is connected; empty if the agent does not answer without credentials."""
    try:
        overview = await request_json(EndpointCredentials(), "GET", url, "/overview")
    except AgentRequestError:
        return set()
    monitors = overview.get("monitors")
    return {
        str(monitor.get("monitor"))
        for monitor in (monitors if isinstance(monitors, list) else ())
        if isinstance(monitor, dict) and monitor.get("state") == "up"
    }
