"""The chart of a soak test as SVG, with a panel for each measured value."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

WIDTH: Final = 720
HEIGHT: Final = 110
LEFT: Final = 20
TOP: Final = 30


def svg(minutes: Sequence[float], panels: Mapping[str, Sequence[float]]) -> str:
    """Return the chart. Each panel begins at zero, so that a constant value looks flat."""
    box = f'viewBox="0 0 {WIDTH} {HEIGHT * len(panels)}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for number, (title, values) in enumerate(panels.items()):
        top, bottom, maximum = HEIGHT * number + TOP, HEIGHT * (number + 1) - 12, max(values) or 1.0
        points = " ".join(
            f"{LEFT + (WIDTH - 2 * LEFT) * minute / minutes[-1]:.1f},{bottom - (bottom - top) * value / maximum:.1f}"
            for minute, value in zip(minutes, values, strict=True)
        )
        label = f"{title}: maximum {maximum:.4g}, at the end {values[-1]:.4g}; {minutes[-1]:.0f} minutes"
        parts += [
            f'<text x="{LEFT}" y="{top - 8}">{escape(label)}</text>',
            f'<path d="M{LEFT} {top}V{bottom}H{WIDTH - LEFT}" fill="none" stroke="#999"/>',
            f'<polyline points="{points}" fill="none" stroke="#0b62a4" stroke-width="1.5"/>',
        ]
    return "\n".join([*parts, "</svg>\n"])
