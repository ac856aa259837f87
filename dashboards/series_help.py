"""Descriptions of panels from the HELP texts of their series, as docs/reference/metrics.md has them."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_METRICS = Path(__file__).parents[1] / "docs" / "reference" / "metrics.md"
_ROW = re.compile(r"^\| `((?:qemu|qmp_agent)_\w+)` \|(.*)\|$", re.MULTILINE)
_SERIES = re.compile(r"\b(?:qemu|qmp_agent)_[a-z0-9_]+")
_LABELS = re.compile(r"(?:`\w+`(?:, )?)*")
_HISTOGRAM_SUFFIX = re.compile(r"_(?:bucket|sum|count)$")


@cache
def _help_texts() -> dict[str, str]:
    """Return the HELP text of each series by its name."""
    texts = {}
    for name, rest in _ROW.findall(_METRICS.read_text()):
        _, _, labels_or_help, *others = (cell.strip() for cell in re.split(r"(?<!\\)\|", rest))
        has_labels = _LABELS.fullmatch(labels_or_help) is not None
        texts[name] = (others[0] if has_labels else labels_or_help).replace("\\|", "|")
    return texts


def describe_series(queries: Iterable[str]) -> str:
    """Return a line with the HELP text of each series in some queries. Names of labels look like series, but have no HELP text."""
    known = _help_texts()
    lines = {}
    for name in (name for query in queries for name in _SERIES.findall(query)):
        text = known.get(name) or known.get(_HISTOGRAM_SUFFIX.sub("", name))
        if text is not None:
            lines[name] = f"{name}: {text}"
    return "\n".join(lines.values())
