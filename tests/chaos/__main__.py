"""The command that runs chaos tests with random faults: `python -m tests.chaos --minutes 10 --seed 7`."""

import argparse
import asyncio
import logging
import random
import shutil
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.chaos import faults
from tests.chaos.run import Plan, Result, run
from tests.lab.kafka import KafkaCluster


def _print_line(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def _run(folder: Path, options: argparse.Namespace) -> Result:
    scripts = {"short": faults.short_script, "damage": faults.damage_script}
    script = scripts.get(options.script) or partial(faults.long_script, seconds=options.minutes * 60)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # so that no mount stays behind
    async with KafkaCluster(folder / "kafka", 3) as cluster:
        return await run(folder / "run", cluster, Plan(script, options.seed, options.rate, report=_print_line))


def main() -> int:
    """Run a script, and return 0 only if every delivery guarantee holds."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Injects faults, and checks the delivery guarantees."
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--rate", type=float, default=2500.0, help="events a second")
    parser.add_argument("--script", choices=("long", "short", "damage"), default="long", help="which faults to inject")
    parser.add_argument("--keep", action="store_true", help="keep the logs of a run without problems")
    options = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(
        logging.CRITICAL
    )  # the judge's clients connect to brokers that have just restarted
    folder = Path(tempfile.mkdtemp(prefix="qmp-chaos-"))
    _print_line(f"seed {options.seed}, in {folder}")
    problems = ["the run did not finish"]
    try:
        result = asyncio.run(_run(folder, options))
        problems = result.problems
        _print_line(f"\n{result.table}\n")
    finally:
        if problems:
            _print_line("\n".join(["FAILED:", *problems, f"seed {options.seed}; logs are in {folder}"]))
        elif not options.keep:
            shutil.rmtree(folder)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
