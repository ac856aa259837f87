"""How the kernel's files are laid out: texts in, numbers by name out (proc(5), Linux 4.15 to 6.18). Pure.

What is missing or is not a number is left out; so is what an older kernel does not have yet.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from agent.host.types import Text
from agent.model.family import Family
from agent.model.metrics.host import PROCESS

Numbers = dict[str, Any]

Layout = Callable[[str], Any]
"""Reads one file's text."""

_STAT = {
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

_STATES = {
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


def number(text: str) -> int | None:
    """Return what a kernel's decimal number says."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else None


def _numbers(pairs: Iterable[tuple[str, str]]) -> Numbers:
    return {name: value for name, text in pairs if (value := number(text)) is not None}


def stat(text: str) -> Numbers:
    """Return what /proc/PID/stat, or a thread's, says. Times are in clock ticks."""
    fields = text.rpartition(")")[
        2
    ].split()  # the name, in parentheses, may hold anything; what follows begins with field 3
    found = _numbers((name, fields[at - 3]) for name, at in _STAT.items() if at - 3 < len(fields))
    return found | {"state": _STATES.get(fields[0], fields[0])} if fields else found


def schedstat(text: str) -> Numbers:
    """Return what /proc/PID/schedstat says: nanoseconds on a CPU, nanoseconds ready but without one, and how often it ran."""
    return _numbers(zip(("run", "delay", "slices"), text.split(), strict=False))


def keyed(*names: str) -> Layout:
    """Return what reads the numbers of these lines, such as `Name: 5 kB` (status, io) or `name 5` (cpu.stat, memory.events).

    The others, most of `status`, are passed over.
    """
    line = re.compile(rf"\n({'|'.join(map(re.escape, names))}):?[ \t]+([0-9]{{1,20}})(?!\S)")
    return lambda text: {name: int(digits) for name, digits in line.findall(f"\n{text}")}


def keyed_of(family: Family, file: str) -> Layout:
    """Return what reads, of a file of such lines, those that a family has fields of."""
    paths = (field.path for field in family.fields)
    return keyed(*(path.removeprefix(f"{file}.") for path in paths if path.startswith(f"{file}.")))


def pressure(text: str) -> Numbers:
    """Return the totals of a pressure file, in microseconds: `some` and `full`."""
    rows = (line.split() for line in text.splitlines())
    return _numbers((row[0], row[-1].removeprefix("total=")) for row in rows if row and row[-1].startswith("total="))


def alone(text: str) -> Any:
    """Return the one number of a file."""
    return number(text.strip())


def interfaces(text: str) -> dict[str, Numbers]:
    """Return the counters of /proc/PID/net/dev by interface, named as in /sys/class/net/INTERFACE/statistics."""
    names = ("bytes", "packets", "errors", "dropped", "fifo", "frame", "compressed", "multicast")
    columns = (*(f"rx_{name}" for name in names), *(f"tx_{name}" for name in names))
    found = {}
    for line in text.splitlines():
        name, colon, rest = line.strip().partition(":")
        if colon:
            found[name] = _numbers(zip(columns, rest.split(), strict=False))
    return found


_LAYOUTS: Mapping[str, Layout] = {
    "stat": stat,
    "schedstat": schedstat,
    "status": keyed_of(PROCESS, "status"),
    "io": keyed_of(PROCESS, "io"),
}


def by_subject(answers: Sequence[Any]) -> list[tuple[Any, Mapping[str, Any]]]:
    """Return what the files of each subject say, by the files' names, in the order in which they were asked for.

    A subject whose `stat` cannot be read is no more, and is left out.
    """
    found: dict[str, tuple[Any, dict[str, Any]]] = {}
    for answer in answers:
        if not isinstance(answer, Text) or answer.text is None:
            continue
        folder, _, name = answer.file.path.rpartition("/")
        _, files = found.setdefault(folder, (answer.file.of, {}))
        layout = _LAYOUTS.get(name, alone)
        files[name] = layout(answer.text)
    return [(of, files) for of, files in found.values() if "stat" in files]
