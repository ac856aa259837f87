"""The storage pools, as lines. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent.cli.top.text import ScreenLine, TextStyle, fit_to_width, format_number, format_seconds, format_size

NAME_WIDTH = 32


def pool_lines(pools: Sequence[Mapping[str, Any]], width: int) -> Iterator[ScreenLine]:
    """Yield a heading, and a line for each pool, the fullest first.

    Args:
        pools: the pools in /overview.
        width: the maximum width in characters; 0 for no maximum.
    """
    heading = ("POOL", "KIND", "SIZE", "USED", "FREE", "USED%", "COMM%", "GROW/s", "FULL", "VMS", "STATE")
    yield ScreenLine(_line(heading, width), TextStyle.HEAD)
    for pool in sorted(pools, key=lambda pool: -(_used_share(pool) or 0)):
        state = _state(pool)
        style = TextStyle.BAD if state else TextStyle.WARNING if pool.get("exceeded_levels") else TextStyle.PLAIN
        yield ScreenLine(_line(_cells(pool, state), width), style)
    if not pools:
        yield ScreenLine("No image is on storage that the agent knows: `qmp-agent doctor` has the reasons.")


def _used_share(pool: Mapping[str, Any]) -> float | None:
    """Return the used share of what users can allocate; None if it is unknown."""
    if "used_bytes" not in pool or "free_bytes" not in pool:
        return None
    usable = pool["used_bytes"] + pool["free_bytes"]
    return pool["used_bytes"] / usable if usable else None


def _state(pool: Mapping[str, Any]) -> str:
    """Return what is wrong with a pool; empty if nothing is."""
    if not pool.get("responsive", True):
        return "does not answer"
    return str(pool.get("error") or pool.get("problem") or "")


def _cells(pool: Mapping[str, Any], state: str) -> tuple[str, ...]:
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


def _line(cells: Sequence[str], width: int) -> str:
    name, kind, *figures, state = cells
    columns = [fit_to_width(name, NAME_WIDTH), fit_to_width(kind, 10)]
    columns += [fit_to_width(figure, 6, right=True) for figure in figures]
    row = f"{' '.join(columns)}  {state}"
    return fit_to_width(row, width) if width else row.rstrip()
