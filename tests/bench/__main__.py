"""The benchmark: `python -m tests.bench [--short] [--json FILE] [--against FILE] [PART ...]`.

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
from tests.bench.libvirt_exporter import peer
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


def fallen(rows: list[Row], known: dict[str, dict[str, float]]) -> list[str]:
    """Return, in words, the ratios that are worse than they were by more than their noise.

    Args:
        rows: what was measured now.
        known: for a row's text its `ratio`, its `noise` as a factor, and `more`, whether more is better.
    """
    found = []
    for row in rows:
        was = known.get(row.what)
        if was is None or row.ratio is None:
            continue
        worse = was["ratio"] / row.ratio if was["more"] else row.ratio / was["ratio"]
        if worse > was["noise"]:
            found.append(f"{row.what}: {row.ratio:.2f} x {row.beside}, it was {was['ratio']:.2f}")
    return found


def main() -> int:
    """Measure, print the table, write the JSON; return 1 where a ratio fell back."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="What the agent costs, and how soon it tells."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; by default all")
    parser.add_argument("--short", action="store_true", help="a minute instead of five")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--against", type=Path, help="a file of ratios, none of which may fall back")
    given = parser.parse_args()
    if unknown := set(given.parts) - PARTS.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    load = os.getloadavg()[0]
    rows = uvloop.run(measure(given.parts or list(PARTS), short=given.short))
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}, load {load:.1f} before\n")
    print(markdown(rows))
    if given.json is not None:
        given.json.write_text(json.dumps({"load": load, "rows": plain(rows)}, indent=1) + "\n")
    worse = fallen(rows, json.loads(given.against.read_text())) if given.against is not None else []
    for text in worse:
        print(f"fell back: {text}", file=sys.stderr)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
