"""Reads the host's CPUs, memory, swap, huge pages, KSM, load and pressure. A value that the kernel does not report is absent.

The calls may block: under LXC, a FUSE file system can provide files such as /proc/meminfo.
"""

import re
from pathlib import Path
from typing import NamedTuple

from agent.host.procfs import (
    KernelFileParser,
    name_value_file_format,
    parse_unsigned_int,
    pressure_file_format,
    single_number_file_format,
)
from agent.model.family import FieldValues
from agent.model.metrics.host_resources import HOST, HOST_HUGEPAGES

ROOT = Path("/")
MAX_BYTES = 64 << 10
"""Maximum size of a file. /proc/vmstat has about 5 KB."""

_PARSERS = {
    "proc/meminfo": KernelFileParser(
        HOST, "meminfo", name_value_file_format("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
    ),
    "proc/vmstat": KernelFileParser(HOST, "vmstat", name_value_file_format("pswpin", "pswpout")),
    "proc/pressure/cpu": KernelFileParser(HOST, "pressure.cpu", pressure_file_format),
    "proc/pressure/memory": KernelFileParser(HOST, "pressure.memory", pressure_file_format),
    "proc/pressure/io": KernelFileParser(HOST, "pressure.io", pressure_file_format),
    "sys/kernel/mm/ksm/pages_sharing": KernelFileParser(HOST, "ksm.pages_sharing", single_number_file_format),
}
"""The parsers of the files that contain numbers, by path."""

_HUGEPAGES = "sys/kernel/mm/hugepages"
_POOL_NAME = re.compile(r"hugepages-([0-9]{1,12})kB")
_LOAD = re.compile(rb"([0-9]{1,9}\.[0-9]{1,9})\s")
_CPU_RANGE = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")


class HostReading(NamedTuple):
    """The host's resources at one time.

    Attributes:
        values: the fields of the family `host` that come from files.
        hugepages: the fields of the family `host_hugepages`, by page size, such as 2M.
    """

    values: FieldValues
    hugepages: dict[str, FieldValues]


def read_host_resources(root: Path = ROOT) -> HostReading:
    """Read the host's resources. The call blocks.

    Args:
        root: the directory that holds /proc and /sys.
    """
    values: FieldValues = {}
    for name, add in _PARSERS.items():
        if (content := _read_file(root / name)) is not None:
            add(content, values)
    if (load := _LOAD.match(_read_file(root / "proc/loadavg") or b"")) is not None:
        values["load_1m"] = float(load[1])
    if (ksm := parse_unsigned_int((_read_file(root / "sys/kernel/mm/ksm/run") or b"").strip())) is not None:
        values["ksm_running"] = ksm == 1  # the value 2 means that KSM separates the merged pages
    if (
        cpus := count_cpus_in_list(
            (_read_file(root / "sys/devices/system/cpu/online") or b"").decode("ascii", "replace")
        )
    ) > 0:
        values["online_cpus"] = cpus
    return HostReading(values, _read_hugepages(root / _HUGEPAGES))


def count_cpus_in_list(text: str) -> int:
    """Return the number of CPUs in a list such as `0-3,8`; 0 if the text is not a list of CPUs."""
    count = 0
    for part in text.strip().split(","):
        match = _CPU_RANGE.fullmatch(part)
        if match is None:
            return 0
        count += max(0, int(match[2] or match[1]) - int(match[1]) + 1)
    return count


def _read_hugepages(directory: Path) -> dict[str, FieldValues]:
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError:
        return {}
    pools: dict[str, FieldValues] = {}
    for name in names:
        match = _POOL_NAME.fullmatch(name)
        if match is None:
            continue
        kibibytes, values = int(match[1]), FieldValues()
        for field in HOST_HUGEPAGES.fields:
            pages = parse_unsigned_int((_read_file(directory / name / field.path) or b"").strip())
            if pages is not None:
                values[field.name] = pages * kibibytes * 1024
        if values:
            pools[_format_page_size(kibibytes)] = values
    return pools


def _format_page_size(kibibytes: int) -> str:
    """Return a page size in the form of the kernel's command line, such as 2M or 1G."""
    for unit, divisor in (("G", 1 << 20), ("M", 1 << 10)):
        if kibibytes % divisor == 0:
            return f"{kibibytes // divisor}{unit}"
    return f"{kibibytes}K"


def _read_file(path: Path) -> bytes | None:
    """Return the content of a file; None if unreadable. The files of PSI (pressure) are unreadable if PSI is turned off."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES)
    except OSError:
        return None
