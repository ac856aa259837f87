"""A ratio of the benchmark that falls back is told, and noise is not."""

import json
from pathlib import Path

import pytest

from tests.bench.__main__ import fallen
from tests.bench.table import Row

ROOT = Path(__file__).parents[1] / "bench"
KNOWN = {
    "less is better": {"ratio": 2.0, "noise": 1.5, "more": False},
    "more is": {"ratio": 10.0, "noise": 1.5, "more": True},
}


@pytest.mark.parametrize(
    ("what", "ratio", "falls"),
    [
        ("less is better", 2.9, False),
        ("less is better", 3.1, True),
        ("less is better", 0.1, False),
        ("more is", 6.8, False),
        ("more is", 6.5, True),
        ("more is", 99.0, False),
        ("nobody knows it", 99.0, False),
    ],
)
def test_a_ratio_falls_back_where_it_is_worse_by_more_than_its_noise(what: str, ratio: float, falls: bool) -> None:  # noqa: FBT001 - a parameter of the case
    assert bool(fallen([Row(what, "", ratio, "the floor")], KNOWN)) is falls


def test_each_ratio_that_is_kept_is_one_that_is_measured() -> None:
    kept = json.loads((ROOT / "ratios.json").read_text())
    sources = "".join((ROOT / part).read_text() for part in ("poll.py", "scrape.py"))
    assert [what for what in kept if f'"{what}"' not in sources] == []
