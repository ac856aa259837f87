"""Rows of the benchmark's table, as Markdown and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        what: What was measured.
        figure: The figure on this machine, with its unit.
        ratio: The ratio to a reference from the same run.
        reference: The name of the reference.
        target: The target of the ratio or the figure; empty if it has none.
        met: Whether the target is met; None without a target.
    """

    what: str
    figure: str
    ratio: float | None = None
    reference: str = ""
    target: str = ""
    met: bool | None = None


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| what | figure | ratio to the same run's | target | |", "|---|---|---|---|---|"]
    for row in rows:
        ratio = f"{row.ratio:.2f} x {row.reference}" if row.ratio is not None else ""
        met = {True: "met", False: "missed", None: ""}[row.met]
        lines.append(f"| {row.what} | {row.figure} | {ratio} | {row.target} | {met} |")
    return "\n".join(lines)


def plain(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return the rows as JSON objects."""
    return [asdict(row) for row in rows]
