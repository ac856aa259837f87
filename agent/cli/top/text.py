"""Text in columns of a terminal. Pure."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from agent.model.record import sanitize

_UNITS = ("B", "K", "M", "G", "T", "P")


class TextStyle(StrEnum):
    """The style of a line."""

    PLAIN = ""
    HEAD = "head"
    SELECTED = "selected"
    BAD = "bad"
    WARNING = "warning"
    SOFT = "soft"


@dataclass(frozen=True, slots=True)
class ScreenLine:
    """One line of the screen."""

    text: str
    style: TextStyle = TextStyle.PLAIN


def _columns(character: str) -> int:
    """Return the width of a character in terminal columns."""
    if unicodedata.combining(character) or unicodedata.category(character) == "Cf":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _width(text: str) -> int:
    return len(text) if text.isascii() else sum(map(_columns, text))


def fit(text: str, width: int, *, right: bool = False) -> str:
    """Sanitize a text, and cut or pad it to a width in terminal columns. A plus sign marks a cut text."""
    fitted = sanitize(text, 4096)
    if _width(fitted) > width:
        while fitted and _width(fitted) > width - 1:
            fitted = fitted[:-1]
        fitted += "+" if width else ""
    pad = " " * (width - _width(fitted))
    return pad + fitted if right else fitted + pad


def size(value: float | None) -> str:
    """Format bytes or operations in at most five characters: `1.5M`, `340K`, `12`."""
    if value is None:
        return ""
    for unit in _UNITS:
        if value < 999.5:
            digits = 1 if value < 9.95 and unit != "B" else 0
            return f"{value:.{digits}f}{'' if unit == 'B' else unit}"
        value /= 1024
    return ">999P"


def number(value: float | None) -> str:
    """Format a rate in at most five characters: `0.5`, `140`, `12.3k`."""
    if value is None:
        return ""
    if value >= 9999.5:
        return f"{value / 1000:.1f}k" if value < 99_950 else f"{value / 1000:.0f}k"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def seconds(value: float | None) -> str:
    """Format a duration in at most four characters: `45s`, `12m`, `5h`, `31d`."""
    if value is None:
        return ""
    for unit, most, of in (("s", 100, 1), ("m", 100, 60), ("h", 48, 3600), ("d", 1000, 86400)):
        if value / of < most - 0.5:
            return f"{value / of:.0f}{unit}"
    return ">3y"


def wrapped(words: list[str], width: int, between: str = "   ") -> Iterator[str]:
    """Yield the words, wrapped into as few lines of this width as possible."""
    row = ""
    for word in words:
        if row and len(row) + len(between) + len(word) > width:
            yield row
            row = ""
        row += (between if row else "") + word
    if row:
        yield row


def natural_key(name: str) -> list[tuple[str, int, str]]:
    """Return a sort key for natural order, without regard to case: `vm2` precedes `vm10`."""
    parts = re.split(r"([0-9]+)", name.casefold())
    numbers = [digits.lstrip("0") for digits in parts[1::2]] + [""]  # compared as text: int() refuses very long numbers
    return [(text, len(digits), digits) for text, digits in zip(parts[::2], numbers, strict=True)]
