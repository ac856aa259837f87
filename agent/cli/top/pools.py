"""Renders the list of storage pools as lines of text. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent.cli.top.text import ScreenLine, TextStyle, fit_to_width, format_number, format_seconds, format_size

NAME_WIDTH = 32
NARROW_WIDTH = 110
"""A terminal with fewer columns shows shorter names, and no size and no commitment ratio."""
_NARROW_NAME_WIDTH = 18
FULL_SOON_SECONDS = 30 * 86400.0
"""Pools that will be full within this time are sorted by their time to full; all other pools are sorted by their used share."""


def pool_lines(pools: Sequence[Mapping[str, Any]], width: int) -> Iterator[ScreenLine]:
    """Yield a heading, and a line for each pool. Pools with a problem come first, then the pools that will be full soonest.

    Args:
        pools: the pools in /overview.
        width: the maximum width in characters; 0 for no maximum.
    """
    heading = ("POOL", "KIND", "SIZE", "USED", "FREE", "USED%", "COMM%", "GROW/s", "FULL", "VMS", "STATE")
    yield ScreenLine(_format_line(heading, width), TextStyle.HEAD)
    for pool in sorted(pools, key=_pool_sort_key):
        state = _describe_problem(pool)
        style = TextStyle.BAD if state else TextStyle.WARNING if pool.get("exceeded_levels") else TextStyle.PLAIN
        yield ScreenLine(_format_line(_format_cells(pool, state), width), style)
    if not pools:
        yield ScreenLine("No image is in a known storage pool: `qmp-agent doctor` reports why.")


def _pool_sort_key(pool: Mapping[str, Any]) -> tuple[bool, float, float]:
    seconds = pool.get("time_to_full_seconds", FULL_SOON_SECONDS)
    return not _describe_problem(pool), min(seconds, FULL_SOON_SECONDS), -(_used_share(pool) or 0)


def _used_share(pool: Mapping[str, Any]) -> float | None:
    """Return the used share of the usable space, from 0 to 1; None if unknown."""
    if "used_bytes" not in pool or "free_bytes" not in pool:
        return None
    usable = pool["used_bytes"] + pool["free_bytes"]
    return pool["used_bytes"] / usable if usable else None


def _describe_problem(pool: Mapping[str, Any]) -> str:
    """Return a text for the problem of a pool; empty without a problem."""
    if not pool.get("responsive", True):
        return "does not answer"
    return str(pool.get("error") or pool.get("problem") or "")


def _format_cells(pool: Mapping[str, Any], state: str) -> tuple[str, ...]:
    sizes = (format_size(pool.get(name)) for name in ("size_bytes", "used_bytes", "free_bytes"))
    shares = (_used_share(pool), pool.get("commitment_ratio"))
    percents = (format_number(share * 100) if share is not None else "" for share in shares)
    growth = pool.get("growth_bytes_per_second", 0)
    grows = format_size(growth) if growth > 0 else ""
    full = format_seconds(pool.get("time_to_full_seconds"))
    return (
        str(pool["pool"]),
        pool.get("type") or pool["kind"],
        *sizes,
        *percents,
        grows,
        full,
        str(pool["vms"]),
        state,
    )


def _format_line(cells: Sequence[str], width: int) -> str:
    name, kind, *figures, state = cells
    is_narrow = 0 < width < NARROW_WIDTH
    if is_narrow:
        _size, used, free, share, _committed, *others = figures
        figures = [used, free, share, *others]
    columns = [fit_to_width(name, _NARROW_NAME_WIDTH if is_narrow else NAME_WIDTH), fit_to_width(kind, 10)]
    columns += [fit_to_width(figure, 6, right=True) for figure in figures]
    row = f"{' '.join(columns)}  {state}"
    return fit_to_width(row, width) if width else row.rstrip()
