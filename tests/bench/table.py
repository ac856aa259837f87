"""What a part of the benchmark found, and how it is shown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        what: what was measured.
        figure: with its unit, as it was on this machine.
        ratio: beside what was measured in the same run; it is what counts, since machines differ.
        beside: what that is.
        aim: what the ratio, or the figure, should be; empty where there is none.
        met: whether it is; None where there is no aim.
    """

    what: str
    figure: str
    ratio: float | None = None
    beside: str = ""
    aim: str = ""
    met: bool | None = None


def markdown(rows: Sequence[Row]) -> str:
    """Return the table."""
    lines = ["| what | figure | beside the same run's | aim | |", "|---|---|---|---|---|"]
    for row in rows:
        beside = f"{row.ratio:.2f} x {row.beside}" if row.ratio is not None else ""
        met = {True: "met", False: "missed", None: ""}[row.met]
        lines.append(f"| {row.what} | {row.figure} | {beside} | {row.aim} | {met} |")
    return "\n".join(lines)


def plain(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return it as JSON has it."""
    return [asdict(row) for row in rows]
