"""Parsers of files in /proc, sysfs and cgroups: each takes a file's text and returns numbers by name (Linux 4.15 to 6.18). Pure.

Parsers leave out values that are missing or are not numbers. Older kernels do not have all values.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from agent.host.types import FileReply
from agent.model.family import Family
from agent.model.metrics.host import PROCESS

NumbersByName = dict[str, Any]

Parser = Callable[[str], Any]
"""Parses one file's text."""

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
    "R": "running",
    "S": "sleeping",
    "D": "disk-sleep",
    "T": "stopped",
    "t": "traced",
    "Z": "zombie",
    "X": "dead",
    "I": "idle",
    "P": "parked",
}


def parse_number(text: str) -> int | None:
    """Parse a decimal number; None if the text is not a number of at most 20 digits."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else None


def _parse_numbers(pairs: Iterable[tuple[str, str]]) -> NumbersByName:
    return {name: value for name, text in pairs if (value := parse_number(text)) is not None}


def parse_stat(text: str) -> NumbersByName:
    """Parse /proc/PID/stat or a thread's stat. Times are in clock ticks."""
    # The name in parentheses may contain any character. Field 3 follows it.
    fields = text.rpartition(")")[2].split()
    values = _parse_numbers((name, fields[at - 3]) for name, at in _STAT_FIELDS.items() if at - 3 < len(fields))
    return values | {"state": _PROCESS_STATES.get(fields[0], fields[0])} if fields else values


def parse_schedstat(text: str) -> NumbersByName:
    """Parse /proc/PID/schedstat: nanoseconds on a CPU, nanoseconds of waiting for a CPU, and number of time slices."""
    return _parse_numbers(zip(("run", "delay", "slices"), text.split(), strict=False))


def keyed_numbers_parser(*names: str) -> Parser:
    """Return a parser of lines such as `Name: 5 kB` (status, io) or `name 5` (cpu.stat, memory.events).

    Args:
        names: names of the lines to parse; all others are skipped.
    """
    line = re.compile(rf"\n({'|'.join(map(re.escape, names))}):?[ \t]+([0-9]{{1,20}})(?!\S)")
    return lambda text: {name: int(digits) for name, digits in line.findall(f"\n{text}")}


def family_numbers_parser(family: Family, file: str) -> Parser:
    """Return a `keyed_numbers_parser` for one file. It parses the lines for which a family of metrics has fields.

    Args:
        family: the family; the paths of its fields begin with the file's name, such as `status.VmRSS`.
        file: the file's name.
    """
    paths = (field.path for field in family.fields)
    return keyed_numbers_parser(*(path.removeprefix(f"{file}.") for path in paths if path.startswith(f"{file}.")))


def parse_pressure(text: str) -> NumbersByName:
    """Parse a pressure file such as /proc/pressure/cpu: the totals of `some` and `full`, in microseconds."""
    rows = (line.split() for line in text.splitlines())
    return _parse_numbers(
        (row[0], row[-1].removeprefix("total=")) for row in rows if row and row[-1].startswith("total=")
    )


def parse_single_number(text: str) -> Any:
    """Parse a file with one number; None if the file has another content."""
    return parse_number(text.strip())


def parse_net_dev(text: str) -> dict[str, NumbersByName]:
    """Parse /proc/PID/net/dev: counters by interface, named as in /sys/class/net/INTERFACE/statistics."""
    names = ("bytes", "packets", "errors", "dropped", "fifo", "frame", "compressed", "multicast")
    columns = (*(f"rx_{name}" for name in names), *(f"tx_{name}" for name in names))
    counters = {}
    for line in text.splitlines():
        name, colon, values = line.strip().partition(":")
        if colon:
            counters[name] = _parse_numbers(zip(columns, values.split(), strict=False))
    return counters


_PARSERS: Mapping[str, Parser] = {
    "stat": parse_stat,
    "schedstat": parse_schedstat,
    "status": family_numbers_parser(PROCESS, "status"),
    "io": family_numbers_parser(PROCESS, "io"),
}


def group_by_subject(replies: Sequence[Any]) -> list[tuple[Any, Mapping[str, Any]]]:
    """Parse the replies to file requests and group them by subject, which is a process or a thread.

    Returns:
        Pairs of a subject and its parsed files by name, in the order of the requests. A subject without a readable `stat` file has
        ended and is left out.
    """
    subjects: dict[str, tuple[Any, dict[str, Any]]] = {}
    for reply in replies:
        if not isinstance(reply, FileReply) or reply.text is None:
            continue
        directory, _, name = reply.request.path.rpartition("/")
        _, files = subjects.setdefault(directory, (reply.request.subject, {}))
        parse = _PARSERS.get(name, parse_single_number)
        files[name] = parse(reply.text)
    return [(subject, files) for subject, files in subjects.values() if "stat" in files]
