"""The subcommand `qmp-agent check`."""

import argparse

from agent.cli.check import check_config
from agent.cli.event_loop import run_loop
from agent.common.paths import CONFIG_PATH
from agent.config.loader import load_config


def execute(parsed: argparse.Namespace) -> int:
    """Check the config, and the monitors, the journal, the endpoint and the sink that it names."""
    path = parsed.config or CONFIG_PATH
    config = load_config(path)
    print(f"{path}: the config is valid")
    if parsed.syntax:
        return 0
    failures = []

    async def print_findings() -> None:
        async for finding in check_config(config):
            print(f"{'ok' if finding.ok else 'FAIL':4}  {finding.text}", flush=True)
            if not finding.ok:
                failures.append(finding)

    run_loop(print_findings())
    return 1 if failures else 0
