"""The benchmark: `python -m tests.bench [--short] [--json FILE] [--against FILE] [PART ...]`.

Machines differ and are never idle. So each figure has a reference that was measured in the same run, and the ratio counts.
"""

import argparse
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from tests.bench.alert_pack import alert_pack
from tests.bench.backing_chain import backing_chain
from tests.bench.big import big
from tests.bench.day import day
from tests.bench.events import event_latency, flood
from tests.bench.guest_agents import guest_agent_queries
from tests.bench.guest_info import guest_info
from tests.bench.host import host
from tests.bench.kubevirt_node import kubevirt_node
from tests.bench.libvirt_exporter import libvirt_exporter
from tests.bench.memory import memory
from tests.bench.monitor_response import hung_storage
from tests.bench.page import page
from tests.bench.poll import poll
from tests.bench.records import records
from tests.bench.scrape import scrape
from tests.bench.start import start
from tests.bench.storage import storage
from tests.bench.table import Row, markdown, plain

PARTS: dict[str, Callable[..., Awaitable[list[Row]]]] = {
    "records": records,
    "poll": poll,
    "alertpack": alert_pack,
    "day": day,
    "scrape": scrape,
    "events": event_latency,
    "flood": flood,
    "host": host,
    "memory": memory,
    "guests": guest_agent_queries,
    "guestinfo": guest_info,
    "exporter": libvirt_exporter,
    "kubevirt": kubevirt_node,
    "chain": backing_chain,
    "storage": storage,
    "hung": hung_storage,
    "start": start,
    "big": big,
    "page": page,
}


async def measure(names: list[str], *, short: bool) -> tuple[list[Row], list[str]]:
    """Run parts one after the other and print the progress.

    Returns:
        The figures, and the name of each part that failed. A failed part does not end the run, because a whole run takes more than an hour.
    """
    rows: list[Row] = []
    failed = []
    for number, name in enumerate(names, 1):
        started = time.monotonic()
        print(f"{name} ({number} of {len(names)}) ...", file=sys.stderr, flush=True)
        try:
            part = await PARTS[name](short=short)
        except Exception:  # noqa: BLE001 - whatever a part raises, the figures of the other parts must not be lost
            traceback.print_exc()
            failed.append(name)
            continue
        rows += part
        print(f"{name}: {time.monotonic() - started:.0f} s\n{markdown(part)}\n", file=sys.stderr, flush=True)
    return rows, failed


def regressions(rows: list[Row], baseline: dict[str, dict[str, float]]) -> list[str]:
    """Return a text for each ratio that is worse than its baseline by more than its noise.

    Args:
        rows: The figures of this run.
        baseline: By a row's text, its `ratio`, its `noise` as a factor, and `more`: whether a higher ratio is better.
    """
    texts = []
    for row in rows:
        expected = baseline.get(row.what)
        if expected is None or row.ratio is None:
            continue
        factor = expected["ratio"] / row.ratio if expected["more"] else row.ratio / expected["ratio"]
        if factor > expected["noise"]:
            texts.append(f"{row.what}: {row.ratio:.2f} x {row.reference}, baseline {expected['ratio']:.2f}")
    return texts


def main() -> int:
    """Measure, print the table, write the JSON; return 1 if a part failed or a ratio regressed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Cost and latency of the agent.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--short", action="store_true", help="a minute instead of five")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--against", type=Path, help="fail if a ratio is worse than in this file")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"unknown part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    load = os.getloadavg()[0]
    rows, failed = uvloop.run(measure(options.parts or list(PARTS), short=options.short))
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}, load {load:.1f} before\n")
    print(markdown(rows))
    if options.json is not None:
        options.json.write_text(json.dumps({"load": load, "rows": plain(rows)}, indent=1) + "\n")
    texts = regressions(rows, json.loads(options.against.read_text())) if options.against is not None else []
    for text in [f"part failed: {name}" for name in failed] + [f"regression: {text}" for text in texts]:
        print(text, file=sys.stderr)
    return 1 if failed or texts else 0


if __name__ == "__main__":
    sys.exit(main())
