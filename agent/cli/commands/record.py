"""The subcommand `qmp-agent record`."""

import argparse

from agent.cli.capture.config import capture_config
from agent.cli.capture.record import record_traffic
from agent.cli.event_loop import run_loop


def execute(parsed: argparse.Namespace) -> int:
    """Record the QMP traffic of one monitor."""

    async def main() -> None:
        config = capture_config(parsed)
        print(
            await record_traffic(parsed.monitor, parsed.file, config, seconds=parsed.seconds, max_bytes=parsed.max_size)
        )

    run_loop(main())
    return 0
