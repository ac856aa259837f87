"""The comparison of benchmark ratios reports regressions, and not noise."""

import json
from pathlib import Path

import pytest

from tests.bench.__main__ import regressions
from tests.bench.table import Row

ROOT = Path(__file__).parents[1] / "bench"
BASELINE = {
    "less is better": {"ratio": 2.0, "noise": 1.5, "more": False},
    "more is better": {"ratio": 10.0, "noise": 1.5, "more": True},
}


@pytest.mark.parametrize(
    ("what", "ratio", "regressed"),
    [
        ("less is better", 2.9, False),
        ("less is better", 3.1, True),
        ("less is better", 0.1, False),
        ("more is better", 6.8, False),
        ("more is better", 6.5, True),
        ("more is better", 99.0, False),
        ("not in the baseline", 99.0, False),
    ],
)
def test_a_ratio_regressed_if_it_is_worse_by_more_than_its_noise(what: str, ratio: float, regressed: bool) -> None:  # noqa: FBT001 - a parameter of the case
    assert bool(regressions([Row(what, "", ratio, "the floor")], BASELINE)) is regressed


def test_each_ratio_of_the_baseline_is_measured() -> None:
    baseline = json.loads((ROOT / "ratios.json").read_text())
    sources = "".join((ROOT / part).read_text() for part in ("poll.py", "scrape.py", "day.py"))
    assert [what for what in baseline if f'"{what}"' not in sources] == []
