"""The subcommand `qmp-agent capture`."""

import argparse

from agent.cli.capture.config import load_config_and_configure_logging
from agent.cli.capture.traffic_proxy import capture_traffic
from agent.cli.event_loop import run_coroutine


def execute(parsed: argparse.Namespace) -> int:
    """Capture the QMP traffic of one monitor."""

    async def main() -> None:
        config = load_config_and_configure_logging(parsed)
        print(
            await capture_traffic(
                parsed.monitor, parsed.file, config, seconds=parsed.seconds, max_bytes=parsed.max_size
            )
        )

    run_coroutine(main())
    return 0
