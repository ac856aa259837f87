"""Parse alert levels and resolve them on a disk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.alerts.disk_levels import MAX_SIZE_BYTES, levels_as_used_bytes, parse_disk_level

GIB = 1 << 30


def resolved(*levels: str, limit: int = 100 * GIB) -> list[tuple[str, int]]:
    return [
        (level.text, level.bytes)
        for level in levels_as_used_bytes([parse_disk_level(level) for level in levels], limit)
    ]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80%", 80 * GIB),
        (" 80  % ", 80 * GIB),
        ("0.5%", GIB // 2),
        ("100%", 100 * GIB),
        ("used 10GiB", 10 * GIB),
        ("used  10 GiB", 10 * GIB),
        ("free 2GiB", 98 * GIB),
        ("free 1000", 100 * GIB - 1000),
    ],
)
def test_a_level_is_percent_used_or_free(text: str, size: int) -> None:
    assert parse_disk_level(text).bytes_of(100 * GIB) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "80",
        "%",
        "0%",
        "101%",
        "-5%",
        "1e1%",
        "free",
        "free 0",
        "used -1",
        "used 10%",
        "left 2GiB",
        "2GiB",
        "used 9EiB",
        "used 9999999TiB",
    ],
)
def test_invalid_levels_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"should be a (level|size)"):
        parse_disk_level(text)


def test_levels_are_sorted_by_bytes() -> None:
    assert resolved("free 2GiB", "80%", "used 10GiB") == [
        ("used 10GiB", 10 * GIB),
        ("80%", 80 * GIB),
        ("free 2GiB", 98 * GIB),
    ]


def test_levels_outside_the_disk_and_duplicates_are_left_out() -> None:
    assert resolved("100%", "used 100GiB", "used 200GiB", "free 100GiB", "free 200GiB") == []
    assert len(resolved("50%", "used 50GiB", "free 50GiB")) == 1
    assert resolved("80%", limit=0) == []


levels = st.sampled_from(["1%", "50%", "80%", "95%", "used 10", "used 1GiB", "free 10", "free 1GiB"]).map(
    parse_disk_level
)


@given(st.lists(levels, max_size=6), st.integers(0, MAX_SIZE_BYTES * 2))
def test_levels_lie_within_the_disk_and_within_qemus_range(configured: list, limit: int) -> None:  # type: ignore[type-arg]
    sizes = [level.bytes for level in levels_as_used_bytes(configured, limit)]
    assert sizes == sorted(set(sizes))
    assert all(0 < size < min(limit, MAX_SIZE_BYTES) for size in sizes)
