"""The subcommand `qmp-agent capture`."""

import argparse

from agent.cli.capture.config import capture_config
from agent.cli.capture.traffic_proxy import capture_traffic
from agent.cli.event_loop import run_coroutine


def execute(parsed: argparse.Namespace) -> int:
    """Capture the QMP traffic of one monitor."""

    async def main() -> None:
        config = capture_config(parsed)
        print(
            await capture_traffic(
                parsed.monitor, parsed.file, config, seconds=parsed.seconds, max_bytes=parsed.max_size
            )
        )

    run_coroutine(main())
    return 0
