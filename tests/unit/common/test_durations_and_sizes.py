"""Durations and sizes in the form that the config uses."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.common.durations_and_sizes import format_bytes, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("250us", 0.00025),
        ("10s", 10),
        ("10 s", 10),
        ("5m", 300),
        ("1.5h", 5400),
        ("2d", 172800),
        (10, 10),
        (0.25, 0.25),
        (0, 0),
    ],
)
def test_a_duration_is_parsed_in_its_unit(text: Any, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "10",
        "10x",
        "-1s",
        "1e3s",
        "1.s",
        ".5s",
        "10S",
        "10ss",
        "1h30m",
        "10s\n",
        -1,
        True,
        None,
        [],
        float("inf"),
        float("nan"),
        10**400,
        "9" * 400 + "s",
    ],
)
def test_an_invalid_duration_is_rejected(text: Any) -> None:
    with pytest.raises(ValueError, match="should be a duration"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64KiB", 65536),
        ("100MiB", 104857600),
        ("1GiB", 1 << 30),
        ("1.5 TiB", 3 << 39),
        ("10MB", 10**7),
        ("10kB", 10**4),
        ("5B", 5),
        ("5", 5),
        (5, 5),
        (0, 0),
    ],
)
def test_a_size_is_parsed_in_its_unit(text: Any, size: int) -> None:
    assert parse_bytes(text) == size
    assert type(parse_bytes(text)) is int


@pytest.mark.parametrize(
    "text", ["", "MiB", "10KB", "10kiB", "10mib", "-1B", "1e3B", "1PiB", -1, 1.5, True, None, [], "9" * 400 + "GiB"]
)
def test_an_invalid_size_is_rejected(text: Any) -> None:
    with pytest.raises(ValueError, match="should be a size"):
        parse_bytes(text)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans(), st.binary()))
def test_arbitrary_values_raise_only_value_errors(value: object) -> None:
    for parse in (parse_seconds, parse_bytes):
        with contextlib.suppress(ValueError):
            assert 0 <= parse(value) < float("inf")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1 << 20, "1 MiB"),
        (5 << 30, "5 GiB"),
        (999.6, "999.6 B"),
        (999.96, "1000 B"),
        (1 << 40, "1 TiB"),
        (1500 << 40, "1500 TiB"),
        (-2048, "-2 KiB"),
    ],
)
def test_a_size_is_formatted_with_three_digits(size: float, text: str) -> None:
    assert format_bytes(size) == text
