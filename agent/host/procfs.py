"""Parsers of files in /proc, sysfs and cgroups (Linux 4.15 to 6.18). Pure.

A parser reads only values that are fields of a family of metrics. The parser converts the values to base units, such as seconds and bytes.
Values that are missing or are not numbers are left out. Older kernels lack some values.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Generic, TypeVar

from agent.model.family import Family, FieldValues, Unit
from agent.model.field_reader import TO_BASE
from agent.model.record import sanitize

MAX_DIGITS = 20
"""Maximum number of digits of a number. The kernel's largest numbers have 64 bits."""

NumbersByName = dict[str, int]

Content = TypeVar("Content")
"""The type of a file's content: bytes, or a list of words for /proc/PID/stat, whose state is a word and not a number."""

ParseAll = Callable[[Content], Sequence[bytes] | None]
"""Returns the digits of all requested values, in order; None if the file lacks one of the values."""

ParseEach = Callable[[Content], Iterable[tuple[str, bytes]]]
"""Yields the name and the digits of each requested value that the file has."""

Format = Callable[[Sequence[str]], tuple[ParseAll[Content], ParseEach[Content]]]
"""The format of a file: returns the parsers of the values with the given names."""

_STAT_FIELDS = {
    "minor_faults": 10,
    "major_faults": 12,
    "user": 14,
    "system": 15,
    "threads": 20,
    "processor": 39,
    "block_io_delay": 42,
    "guest": 43,
}
"""Fields of /proc/PID/stat, numbered from 1 as in proc(5)."""

_PROCESS_STATES = {
    b"R": "running",
    b"S": "sleeping",
    b"D": "disk-sleep",
    b"T": "stopped",
    b"t": "traced",
    b"Z": "zombie",
    b"X": "dead",
    b"I": "idle",
    b"P": "parked",
}

_STATUS_ORDER = (
    "VmSize",
    "VmLck",
    "VmHWM",
    "VmRSS",
    "RssAnon",
    "RssFile",
    "RssShmem",
    "VmSwap",
    "HugetlbPages",
    "voluntary_ctxt_switches",
    "nonvoluntary_ctxt_switches",
)
"""The order in which the kernel writes lines of /proc/PID/status."""


class KernelFileParser(Generic[Content]):
    """Parses one file of the kernel, and adds the numbers that are fields of a family to a sample."""

    def __init__(self, family: Family, file: str, file_format: Format[Content]) -> None:
        """Compile the parser.

        Args:
            family: the family. The parser sets the fields whose `path` is the file's name, or the file's name and a value's name, such as
                `status.VmRSS`.
            file: the file's name.
            file_format: the format of the file.
        """
        prefix = f"{file}."
        fields = [
            field
            for field in family.fields
            if (field.path == file or field.path.startswith(prefix)) and field.path != STATE_PATH
        ]
        keys = [field.path.removeprefix(prefix) for field in fields]
        self._names = [field.name for field in fields]
        self._units = [(field.name, TO_BASE[field.unit]) for field in fields if field.unit is not Unit.BASE]
        self._fields = {key: (field.name, TO_BASE[field.unit]) for key, field in zip(keys, fields, strict=True)}
        self._parse_all, self._parse_each = file_format(keys)

    def __call__(self, content: Content, values: FieldValues) -> None:
        """Add the values of the file's content to a sample's values."""
        digits = self._parse_all(content)
        if digits is not None and (numbers := parse_unsigned_ints(digits)) is not None:
            values.update(zip(self._names, numbers, strict=True))
            for name, to_base in self._units:
                values[name] = to_base(values[name])
            return
        for key, text in self._parse_each(content):
            if (number := parse_unsigned_int(text)) is not None:
                name, to_base = self._fields[key]
                values[name] = to_base(number)


STATE_PATH = "stat.state"
"""Path of the only field of /proc/PID/stat that is not a number."""


def parse_unsigned_int(text: bytes) -> int | None:
    """Parse a decimal number; None if the text is not a number of at most MAX_DIGITS digits."""
    return int(text) if text.isdigit() and len(text) <= MAX_DIGITS else None


def parse_unsigned_ints(texts: Sequence[bytes]) -> list[int] | None:
    """Parse decimal numbers; None if a text is not a number, or if a number has more than `MAX_DIGITS` digits."""
    if not b"".join(texts).isdigit():
        return None
    try:
        numbers = list(map(int, texts))
    except ValueError:  # a text is empty or too long
        return None
    return numbers if max(numbers) < 10**MAX_DIGITS else None


# --- Formats ---


def _item_picker(positions: Sequence[int]) -> Callable[[Sequence[bytes]], Sequence[bytes] | None]:
    """Return a function that returns a sequence's items at `positions`. The function returns None if the sequence is too short."""
    get, length = itemgetter(*positions), max(positions) + 1
    if len(positions) == 1:
        return lambda words: (words[positions[0]],) if len(words) >= length else None
    return lambda words: get(words) if len(words) >= length else None


def split_stat(content: bytes) -> list[bytes]:
    """Return the words of /proc/PID/stat from field 3 on. Field 2, the name in parentheses, may contain any character."""
    return content.rpartition(b")")[2].split()


def process_stat_file_format(keys: Sequence[str]) -> tuple[ParseAll[list[bytes]], ParseEach[list[bytes]]]:
    """Format of the words of /proc/PID/stat. Times are in clock ticks."""
    positions = [_STAT_FIELDS[key] - 3 for key in keys]

    def parse_each(words: list[bytes]) -> Iterable[tuple[str, bytes]]:
        return [(key, words[at]) for key, at in zip(keys, positions, strict=True) if at < len(words)]

    return _item_picker(positions), parse_each


def parse_process_state(words: Sequence[bytes]) -> str | None:
    """Return the process's state, such as `running`, from the words of /proc/PID/stat; None if the file has no state."""
    if not words:
        return None
    return _PROCESS_STATES.get(words[0]) or sanitize(words[0].decode("utf-8", "replace"), 64)


def space_separated_file_format(*names: str) -> Format[bytes]:
    """Format of a line of numbers, such as /proc/PID/schedstat.

    Args:
        names: the names of the numbers, in their order in the file.
    """

    def parsers(keys: Sequence[str]) -> tuple[ParseAll[bytes], ParseEach[bytes]]:
        select = _item_picker([names.index(key) for key in keys])

        def parse_each(content: bytes) -> Iterable[tuple[str, bytes]]:
            return [(name, text) for name, text in zip(names, content.split(), strict=False) if name in keys]

        return lambda content: select(content.split()), parse_each

    return parsers


def name_value_file_format(*order: str) -> Format[bytes]:
    """Format of lines such as `Name: 5 kB` (status, io) or `name 5` (cpu.stat, memory.events).

    Args:
        order: names in the order in which the kernel writes the lines. Other lines may be in between. A parser also accepts names that
            are missing here, but may then have to search each line separately.
    """

    def parsers(keys: Sequence[str]) -> tuple[ParseAll[bytes], ParseEach[bytes]]:
        ordered = [*(key for key in order if key in keys), *(key for key in keys if key not in order)]
        # One match reads all lines. Each line is searched separately if the match fails.
        lines = [rf"\n{re.escape(key)}:?[ \t]+([0-9]{{1,{MAX_DIGITS}}})(?!\S)" for key in ordered]
        whole = re.compile(".*?".join(lines).encode(), re.DOTALL)
        groups = [ordered.index(key) + 1 for key in keys]
        names = "|".join(map(re.escape, keys))
        line = re.compile(rf"\n({names}):?[ \t]+([0-9]{{1,{MAX_DIGITS}}})(?!\S)".encode())

        def parse_all(content: bytes) -> Sequence[bytes] | None:
            match = whole.search(b"\n" + content)
            return match.group(0, *groups)[1:] if match is not None else None

        def parse_each(content: bytes) -> Iterable[tuple[str, bytes]]:
            return [(key.decode(), digits) for key, digits in line.findall(b"\n" + content)]

        return parse_all, parse_each

    return parsers


def pressure_file_format(keys: Sequence[str]) -> tuple[ParseAll[bytes], ParseEach[bytes]]:
    """Format of a pressure file such as /proc/pressure/cpu: the totals of `some` and `full`, in microseconds."""

    def parse_each(content: bytes) -> Iterable[tuple[str, bytes]]:
        rows = (line.split() for line in content.splitlines())
        totals = {row[0].decode(): row[-1][6:] for row in rows if row and row[-1].startswith(b"total=")}
        return [(key, totals[key]) for key in keys if key in totals]

    return lambda _content: None, parse_each


def single_number_file_format(keys: Sequence[str]) -> tuple[ParseAll[bytes], ParseEach[bytes]]:
    """Format of a file that is one number."""
    return lambda content: (content.strip(),), lambda content: ((keys[0], content.strip()),)


process_status_file_format = name_value_file_format(*_STATUS_ORDER)
process_io_file_format = name_value_file_format(
    "rchar", "wchar", "syscr", "syscw", "read_bytes", "write_bytes", "cancelled_write_bytes"
)
schedstat_file_format = space_separated_file_format("run", "delay", "slices")
"""Format of /proc/PID/schedstat: nanoseconds on a CPU, nanoseconds of waiting for a CPU, and the number of time slices."""


def parse_net_dev(content: bytes) -> Mapping[str, NumbersByName]:
    """Parse /proc/PID/net/dev. Return counters by interface and by name, as in /sys/class/net/INTERFACE/statistics."""
    names = ("bytes", "packets", "errors", "dropped", "fifo", "frame", "compressed", "multicast")
    columns = (*(f"rx_{name}" for name in names), *(f"tx_{name}" for name in names))
    counters = {}
    for line in content.decode("utf-8", "replace").splitlines():
        name, colon, values = line.strip().partition(":")
        if colon:
            pairs = zip(columns, values.encode().split(), strict=False)
            counters[name] = {
                column: number for column, text in pairs if (number := parse_unsigned_int(text)) is not None
            }
    return counters
