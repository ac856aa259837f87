"""Compares events with those of another working tree: `python -m tests.bench.against TREE [--rounds 6] [--path-only]`.

The rounds of both trees alternate, on one broker, so a change of the machine's load affects both. The median of the rounds' ratios counts.
Before that, many short rounds compare the CPU of an event's path through the agent's own code, which `tests.bench.event_path` measures.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Final, cast

import uvloop

from tests.bench.events import PER_SECOND, Broker, milliseconds, one_flood
from tests.bench.table import Row, markdown

EVENTS: Final = 50_000
LATENCY_SECONDS: Final = 20.0


PATH_ROUNDS: Final = 60
PATH_FIGURES: Final = {
    "read": "an event, from the monitor's bytes to the protocol's event",
    "publish": "an event, from the protocol to the queue",
    "journal": "an event, into the journal and out of it",
    "send": "an event, from the queue to a batch",
}


async def _compare_paths(tree: Path) -> list[Row]:
    """Return the CPU of an event's path, with its ratio to that of the other tree."""
    trees = (Path.cwd(), tree)
    async with AsyncExitStack() as stack:
        now, before = [await stack.enter_async_context(_event_path(tree)) for tree in trees]
        pairs: list[tuple[dict[str, float], dict[str, float]]] = []
        for number in range(-1, PATH_ROUNDS):
            order = (now, before) if number % 2 else (before, now)
            figures = {process: await _measure_path(process) for process in order}
            if number >= 0:  # the first one fills caches
                pairs.append((figures[now], figures[before]))
    rows = []
    for figure, what in PATH_FIGURES.items():
        quarters = quantiles([mine[figure] / other[figure] for mine, other in pairs], n=4)
        times = [median(figures[side][figure] for figures in pairs) / 1000 for side in (0, 1)]
        text = (
            f"{times[0]:.1f} us, before {times[1]:.1f} us; quarters of the ratios {quarters[0]:.2f}, {quarters[2]:.2f}"
        )
        rows.append(Row(what, text, quarters[1], "before", "≤ 1.1", quarters[1] <= 1.1))
    return rows


@asynccontextmanager
async def _event_path(tree: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `tests.bench.event_path` with the code of a tree, and kill it at the end of the `with` block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", str(Path(__file__).with_name("event_path.py"))),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
    )
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def _measure_path(process: asyncio.subprocess.Process) -> dict[str, float]:
    """Return the CPU of an event in one round, in nanoseconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"\n")
    return cast("dict[str, float]", json.loads(await process.stdout.readline()))


async def _round(servers: str, tree: Path | None) -> dict[str, float]:
    """Return the figures of a tree; the ones of this tree if it is None."""
    flood = await one_flood(servers, EVENTS, tree)
    latencies = (await milliseconds("agent-kafka", servers, LATENCY_SECONDS, tree))[PER_SECOND:]
    cuts = quantiles(latencies, n=100, method="inclusive")
    return {
        "flood: CPU of an event in us": flood.spent / len(flood.latencies) * 1e6,
        "event to Kafka's acknowledgement, median in ms": cuts[49],
        "event to Kafka's acknowledgement, 99th percentile in ms": cuts[98],
    }


async def compare(tree: Path, rounds: int) -> list[Row]:
    """Return the figures of this tree, each with its ratio to that of the other tree."""
    pairs = []
    async with Broker() as servers:
        for number in range(rounds):
            first, second = (None, tree) if number % 2 else (tree, None)
            figures = {first: await _round(servers, first), second: await _round(servers, second)}
            pairs.append((figures[None], figures[tree]))
            print(f"round {number + 1}: {figures[None]}, before: {figures[tree]}", file=sys.stderr, flush=True)
    rows = []
    for what in pairs[0][0]:
        ratios = sorted(now[what] / before[what] for now, before in pairs)
        figure = (
            f"{median(now[what] for now, _ in pairs):.1f}, before {median(before[what] for _, before in pairs):.1f}"
        )
        text = f"{figure}; ratios {', '.join(f'{ratio:.2f}' for ratio in ratios)}"
        rows.append(Row(what, text, median(ratios), "before", "≤ 1.1", median(ratios) <= 1.1))
    return rows


def main() -> None:
    """Compare, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.against", description="Compares with another tree.")
    parser.add_argument("tree", type=Path, help="the other working tree, such as one of `git worktree add`")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--path-only", action="store_true", help="compare only the CPU of an event's path")
    options = parser.parse_args()
    load, tree = os.getloadavg()[0], options.tree.resolve()
    rows = uvloop.run(_compare_paths(tree))
    if not options.path_only:
        rows += uvloop.run(compare(tree, options.rounds))
    print(f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
