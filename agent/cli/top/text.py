"""Formats texts and values for a terminal's columns. Pure."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from agent.model.record import sanitize

_UNITS = ("B", "K", "M", "G", "T", "P")


class TextStyle(StrEnum):
    """The style of a line on the screen."""

    PLAIN = ""
    HEAD = "head"
    SELECTED = "selected"
    BAD = "bad"
    WARNING = "warning"
    SOFT = "soft"


@dataclass(frozen=True, slots=True)
class ScreenLine:
    """A line of the screen, without escape codes."""

    text: str
    style: TextStyle = TextStyle.PLAIN


def _character_columns(character: str) -> int:
    """Return the width of a character in terminal columns."""
    if unicodedata.combining(character) or unicodedata.category(character) == "Cf":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _text_columns(text: str) -> int:
    return len(text) if text.isascii() else sum(map(_character_columns, text))


def fit_to_width(text: str, width: int, *, right: bool = False) -> str:
    """Truncate or pad a text to a width in terminal columns, and replace control characters. A truncated text ends in a plus sign."""
    fitted = sanitize(text, 4096)
    if _text_columns(fitted) > width:
        while fitted and _text_columns(fitted) > width - 1:
            fitted = fitted[:-1]
        fitted += "+" if width else ""
    pad = " " * (width - _text_columns(fitted))
    return pad + fitted if right else fitted + pad


def format_size(value: float | None) -> str:
    """Format a number of bytes in at most five characters, with binary prefixes: `1.5M`, `340K`, `12`."""
    if value is None:
        return ""
    for unit in _UNITS:
        if value < 999.5:
            digits = 1 if value < 9.95 and unit != "B" else 0
            return f"{value:.{digits}f}{'' if unit == 'B' else unit}"
        value /= 1024
    return ">999P"


def format_number(value: float | None) -> str:
    """Format a number, such as operations per second, in at most five characters: `0.5`, `140`, `12.3k`."""
    if value is None:
        return ""
    if value >= 9999.5:
        return f"{value / 1000:.1f}k" if value < 99_950 else f"{value / 1000:.0f}k"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def format_seconds(value: float | None) -> str:
    """Format a duration in seconds in at most four characters: `45s`, `12m`, `5h`, `31d`."""
    if value is None:
        return ""
    for unit, maximum, unit_seconds in (("s", 100, 1), ("m", 100, 60), ("h", 48, 3600), ("d", 1000, 86400)):
        if value / unit_seconds < maximum - 0.5:
            return f"{value / unit_seconds:.0f}{unit}"
    return ">2y"


def format_latency(value: float | None) -> str:
    """Format a latency in seconds in at most five characters: `450u` (microseconds), `1.5m` (milliseconds), `2.0s`."""
    if value is None:
        return ""
    if value >= 0.9995:
        return f"{value:.1f}s" if value < 99.95 else f"{min(value, 9999):.0f}s"
    return f"{value * 1e6:.0f}u" if value < 0.0009995 else f"{value * 1000:.{1 if value < 0.00995 else 0}f}m"


def format_quantile(seconds: float, *, is_lower_bound: bool) -> str:
    """Format a quantile of latency in at most seven characters. A lower bound begins with `>=`."""
    return f"{'>=' if is_lower_bound else ''}{format_latency(seconds)}"


def wrap_words(words: list[str], width: int, between: str = "   ") -> Iterator[str]:
    """Yield lines of at most `width` characters, each with as many words as fit. `between` separates the words."""
    row = ""
    for word in words:
        if row and len(row) + len(between) + len(word) > width:
            yield row
            row = ""
        row += (between if row else "") + word
    if row:
        yield row


def natural_key(name: str) -> list[tuple[str, int, str]]:
    """Return a sort key for natural order, in which `vm2` comes before `VM10`."""
    parts = re.split(r"([0-9]+)", name.casefold())
    # Numbers are compared as texts, because int() refuses very long numbers.
    numbers = [digits.lstrip("0") for digits in parts[1::2]] + [""]
    return [(text, len(digits), digits) for text, digits in zip(parts[::2], numbers, strict=True)]
