"""The explanation uses the latency histogram of a disk, which shows slow requests that the mean hides."""

from typing import Any

import pytest

from agent.exposition.explain.disks import MIN_P99_OPERATIONS
from agent.model.metrics.block import BLOCK
from tests.unit.exposition.test_explain_causes import NOW, OneVm


def read_from(machine: OneVm, fast: int, slow: int, *, with_histogram: bool = True) -> list[dict[str, Any]]:
    """Let disk0 complete reads of 1 ms and of up to 400 ms in the last minute. Return the explanation."""
    for at, share in ((NOW - 58, 0), (NOW - 2, 1)):
        values: dict[str, Any] = {
            "reads_total": share * (fast + slow),
            "read_seconds_total": share * (fast * 0.001 + slow * 0.3),
        }
        if with_histogram:
            histogram = {"boundaries_seconds": [0.001, 0.1, 0.4], "counts": [share * fast, 0, share * slow, 0]}
            values["read_latency_seconds"] = histogram
        machine.put(BLOCK, at, (("disk0",), values))
    return machine.find_causes()


def test_a_disk_is_slow_if_one_of_a_hundred_requests_takes_very_long() -> None:
    (slow,) = read_from(OneVm(), fast=980, slow=20)
    assert (slow["cause"], slow["subject"]) == ("disk_slow", "disk0")
    assert "A read of disk0 takes 7 ms on average, and 1 of 100 250 ms or longer, at" in slow["sentence"]
    assert slow["figures"]["p99_seconds"] == pytest.approx(0.25)


def test_the_same_disk_without_a_histogram_is_not_slow() -> None:
    assert read_from(OneVm(), fast=980, slow=20, with_histogram=False) == []


def test_fewer_slow_requests_than_one_of_a_hundred_do_not_count() -> None:
    assert read_from(OneVm(), fast=995, slow=5) == []


def test_few_requests_have_no_percentile() -> None:
    assert read_from(OneVm(), fast=MIN_P99_OPERATIONS - 10, slow=9) == []
    assert read_from(OneVm(), fast=MIN_P99_OPERATIONS - 9, slow=9)


def test_the_sentence_of_a_slow_mean_has_the_percentile_too() -> None:
    (slow,) = read_from(OneVm(), fast=0, slow=200)
    assert "takes 300 ms on average, and 1 of 100 397 ms or longer" in slow["sentence"]
