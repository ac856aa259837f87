"""Parsers of files of /proc: any line can become a field, in whatever order the fields are."""

import itertools
import re
from pathlib import Path

import pytest

from agent.host.procfs import KernelFileParser, name_value_file_format, process_io_file_format
from agent.model.family import COUNTER, Family, Field, FieldValues

ROOT = Path(__file__).parents[3]
IO = b"rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 6\ncancelled_write_bytes: 7\n"


def parse(content: bytes, *names: str, order: tuple[str, ...] | None = None) -> FieldValues:
    fields = tuple(Field(f"io.{name}", f"{name}_total", COUNTER, "A number.") for name in names)
    parser = KernelFileParser(
        Family("test", "io", "A test.", (), fields),
        "io",
        process_io_file_format if order is None else name_value_file_format(*order),
    )
    values: FieldValues = {}
    parser(content, values)
    return values


def test_every_pair_of_lines_is_read_in_any_order_of_the_fields() -> None:
    numbers = {name.decode(): int(number) for name, number in re.findall(rb"(\w+): (\d)", IO)}
    for pair in itertools.permutations(numbers, 2):
        assert parse(IO, *pair) == {f"{name}_total": numbers[name] for name in pair}


@pytest.mark.parametrize("content", [b"a 1\nnew 2\nb 3\n", b"new 2\na 1\nb 3\n", b"a 1\nb 3\nnew 2\n"])
def test_a_line_whose_place_is_unknown_is_read_too(content: bytes) -> None:
    assert parse(content, "new", "b", "a", order=("a", "b")) == {"new_total": 2, "b_total": 3, "a_total": 1}


def test_the_example_of_a_new_metric_in_the_guide_for_contributors_reads_its_line() -> None:
    added = re.findall(r'^\+ *Field\("io\.(\w+)"', (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert added
    for name in added:
        assert parse(IO, name)
