"""The benchmark: `python -m tests.bench [--short] [--json FILE] [PART ...]`.

Each figure stands beside what was measured in the same run, since machines differ and are never quiet: what counts is the ratio.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from tests.bench.events import flood, told
from tests.bench.host import host
from tests.bench.peer import peer
from tests.bench.poll import poll
from tests.bench.scrape import scrape
from tests.bench.table import Row, markdown, plain

PARTS: dict[str, Callable[..., Awaitable[list[Row]]]] = {
    "poll": poll,
    "scrape": scrape,
    "events": told,
    "flood": flood,
    "host": host,
    "peer": peer,
}


async def measure(names: list[str], *, short: bool) -> list[Row]:
    """Run parts one after the other, and say how it goes."""
    rows: list[Row] = []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += await PARTS[name](short=short)
    return rows


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="What the agent costs, and how soon it tells."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; by default all")
    parser.add_argument("--short", action="store_true", help="a minute instead of five")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    given = parser.parse_args()
    if unknown := set(given.parts) - PARTS.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    load = os.getloadavg()[0]
    rows = uvloop.run(measure(given.parts or list(PARTS), short=given.short))
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}, load {load:.1f} before\n")
    print(markdown(rows))
    if given.json is not None:
        given.json.write_text(json.dumps({"load": load, "rows": plain(rows)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
