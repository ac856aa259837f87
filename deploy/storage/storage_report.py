#!/usr/bin/python3 -I
"""Writes the usage of LVM thin pools and ZFS pools to a JSON file for the agent.

A systemd timer runs this program as root, because the agent may not query LVM and ZFS. The program changes no volume or pool. It runs lvs,
dmsetup, zpool and zfs with fixed arguments and a deadline. It needs Python 3.9 and no other package. docs/reference/storage-report.md
describes the file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

OUTPUT = Path("/run/qmp-agent-storage/report.json")
COMMAND_SECONDS = 10
"""Timeout of one command in seconds. The timer starts the program 30 s after the last run."""
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
SECTOR_BYTES = 512
METADATA_BLOCK_BYTES = 4096

LVS = (
    *("lvs", "--reportformat", "json", "--units", "b", "--nosuffix"),
    *("--select", "segtype=thin-pool || segtype=thin", "--options"),
    ",".join(
        (
            *("vg_name", "lv_name", "segtype", "pool_lv", "lv_size", "lv_metadata_size", "chunk_size", "data_percent"),
            *("metadata_percent", "lv_attr", "lv_dm_path", "lv_kernel_major", "lv_kernel_minor"),
        )
    ),
)
DMSETUP = ("dmsetup", "status", "--noflush")
"""Lists the exact number of used blocks of thin pools and volumes. lvs rounds to 0.01 %, which is 1 GiB of a 10 TiB pool."""
ZPOOL = ("zpool", "list", "-Hp", "-o", "name,health")
ZFS = (
    "zfs",
    "list",
    "-Hp",
    "-t",
    "filesystem,volume",
    "-o",
    "name,type,used,available,referenced,volsize,quota,refquota,refreservation",
)


class CommandError(Exception):
    """A command failed, or it hangs."""

    def __init__(self, message: str, *, hangs: bool = False) -> None:
        super().__init__(message)
        self.hangs = hangs


# --- LVM -------------------------------------------------------------------------------------------------------------


def parse_lvm_pools(lvs: str, dmsetup: str = "") -> list[dict[str, Any]]:
    """Return the active LVM thin pools.

    Args:
        lvs: the output of the command `LVS`.
        dmsetup: the output of the command `DMSETUP`. If it is empty, the usage is computed from the percentages that lvs reports.

    Raises:
        ValueError: the output of lvs is not a JSON report.
    """
    targets = parse_dm_status(dmsetup)
    pools, volumes = {}, []
    for row in parse_lvs_rows(lvs):
        if row.get("segtype") == "thin-pool":
            pool = parse_thin_pool(row, targets)
            if pool is not None:
                pools[row["vg_name"], row["lv_name"]] = pool
        elif row.get("segtype") == "thin":
            volumes.append(row)
    for row in volumes:
        pool = pools.get((row["vg_name"], row.get("pool_lv", "")))
        if pool is not None:
            pool["volumes"].append(parse_thin_volume(row, targets))
    return list(pools.values())


def parse_lvs_rows(text: str) -> list[dict[str, str]]:
    """Return the rows of the JSON report of lvs: each a dict of strings by the name of the column."""
    report = json.loads(text)
    sections = report.get("report") if isinstance(report, dict) else None
    if not isinstance(sections, list):
        raise ValueError("lvs: the output is not a report")
    return [row for section in sections for row in section.get("lv", ())]


def parse_thin_pool(row: Mapping[str, str], targets: Mapping[str, str]) -> dict[str, Any] | None:
    """Return a thin pool for the report; None if the pool is inactive, because lvs reports no usage of an inactive pool."""
    size, metadata_size = parse_number(row.get("lv_size")), parse_number(row.get("lv_metadata_size"))
    target = targets.get(dm_name(row) + "-tpool", targets.get(dm_name(row), ""))
    state = parse_pool_state(target, row.get("lv_attr", ""))
    used, metadata_used = parse_pool_usage(target, parse_number(row.get("chunk_size"))) or (
        bytes_of_percent(size, row.get("data_percent")),
        bytes_of_percent(metadata_size, row.get("metadata_percent")),
    )
    if size is None or (used is None and state != "failed"):
        return None
    pool = {
        "kind": "lvm_thin",
        "name": f"{row['vg_name']}/{row['lv_name']}",
        "size_bytes": size,
        "free_bytes": free_bytes_of(size, used),
        "metadata_size_bytes": metadata_size,
        "metadata_free_bytes": free_bytes_of(metadata_size, metadata_used),
        "state": state,
        "volumes": [],
    }
    return without_none(pool)


def parse_pool_usage(target: str, chunk_bytes: int | None) -> tuple[int, int] | None:
    """Return the used bytes of a thin pool's data and of its metadata; None if its status has no figures.

    Args:
        target: the status of the pool's device from dmsetup.
        chunk_bytes: the chunk size of the pool in bytes.
    """
    match = re.match(r"thin-pool \d+ (\d+)/\d+ (\d+)/\d+ ", target)
    if match is None or not chunk_bytes:
        return None
    return int(match[2]) * chunk_bytes, int(match[1]) * METADATA_BLOCK_BYTES


def parse_pool_state(target: str, attributes: str) -> str:
    """Return the problem of a thin pool, such as `out_of_data_space`; `ok` if there is none.

    Args:
        target: the status of the pool's device from dmsetup; empty if it is unknown.
        attributes: the column `lv_attr` of lvs. Its ninth character is the health.
    """
    words = target.split()
    if words[1:2] in (["Fail"], ["Error"]):
        return "failed"
    for word, state in (("needs_check",) * 2, ("out_of_data_space",) * 2, ("ro", "read_only")):
        if word in words:
            return state
    health = attributes[8:9] if not words else ""
    return {"F": "failed", "D": "out_of_data_space", "M": "read_only"}.get(health, "ok")


def parse_thin_volume(row: Mapping[str, str], targets: Mapping[str, str]) -> dict[str, Any]:
    """Return a thin volume for the report."""
    size = parse_number(row.get("lv_size"))
    volume: dict[str, Any] = {"name": f"{row['vg_name']}/{row['lv_name']}", "size_bytes": size}
    major, minor = parse_number(row.get("lv_kernel_major")), parse_number(row.get("lv_kernel_minor"))
    if major is not None and minor is not None:
        volume["device"] = f"{major}:{minor}"
    match = re.match(r"thin (\d+)", targets.get(dm_name(row), ""))
    if match is not None:
        volume["allocated_bytes"] = int(match[1]) * SECTOR_BYTES
    else:
        volume["allocated_bytes"] = bytes_of_percent(size, row.get("data_percent"))
    return without_none(volume)


def dm_name(row: Mapping[str, str]) -> str:
    """Return the device-mapper name of a volume, such as `vg-lv`."""
    return row.get("lv_dm_path", "").rpartition("/")[2] or "{}-{}".format(
        row["vg_name"].replace("-", "--"), row["lv_name"].replace("-", "--")
    )


def parse_dm_status(text: str) -> dict[str, str]:
    """Return the status of each device by its device-mapper name.

    Args:
        text: the output of dmsetup, with lines such as `NAME: 0 2048 thin 1024 2047`.
    """
    lines = (re.match(r"(.+?): \d+ \d+ (\S.*)", line) for line in text.splitlines())
    return {match[1]: match[2] for match in lines if match is not None}


# --- ZFS -------------------------------------------------------------------------------------------------------------


def parse_zfs_pools(zpool: str, zfs: str, device_of: Callable[[str], str | None]) -> list[dict[str, Any]]:
    """Return the ZFS pools for the report.

    Args:
        zpool: the output of the command `ZPOOL`.
        zfs: the output of the command `ZFS`.
        device_of: returns `major:minor` of a ZFS volume by the volume's name; None if the volume has no device.
    """
    health = dict(line.split("\t")[:2] for line in zpool.splitlines() if "\t" in line)
    pools: dict[str, dict[str, Any]] = {}
    volumes, quotas = [], set()
    for line in zfs.splitlines():
        fields = line.split("\t")
        if len(fields) != len(ZFS[-1].split(",")):
            continue
        name, kind, *texts = fields
        used, available, referenced, size, quota, own_quota, reserved = map(parse_number, texts)
        root = name.partition("/")[0]
        if name == root and used is not None and available is not None:
            state = health.get(root, "")
            pools[root] = {
                "kind": "zfs",
                "name": root,
                "size_bytes": used + available,
                "free_bytes": available,
                "state": "ok" if state == "ONLINE" else state,
                "volumes": [],
            }
        elif quota:
            quotas.add(name)
        volume = {"name": name, "size_bytes": size, "allocated_bytes": referenced}
        if kind == "volume":
            volume |= {"device": device_of(name), "reserved": bool(size and reserved and reserved >= size)}
        else:
            volume |= {"file_system": name, "quota": bool(own_quota) or not quotas.isdisjoint(with_parents(name))}
        volumes.append((root, without_none(volume)))
    for root, volume in volumes:
        if root in pools:
            pools[root]["volumes"].append(volume)
    return list(pools.values())


def with_parents(name: str) -> list[str]:
    """Return the names of a file system and of all its parents. A quota of a parent also limits its children."""
    parts = name.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]


def zvol_device(name: str) -> str | None:
    """Return `major:minor` of a ZFS volume's device; None if the volume has no device. The udev rule of ZFS replaces spaces by `+`."""
    try:
        device = Path("/dev/zvol", name.replace(" ", "+")).stat().st_rdev
    except OSError:
        return None
    return f"{os.major(device)}:{os.minor(device)}"


# --- Commands and the file -------------------------------------------------------------------------------------------


def parse_number(text: object) -> int | None:
    """Return the value of a text with decimal digits; None for any other value, such as `-`."""
    return int(text) if isinstance(text, str) and re.fullmatch(r"[0-9]{1,20}", text) else None


def bytes_of_percent(size: int | None, percent: object) -> int | None:
    """Return the number of bytes that a percentage of a size is; None if the size or the percentage is unknown."""
    if size is None or not isinstance(percent, str) or not re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?", percent):
        return None
    return round(size * float(percent) / 100)


def free_bytes_of(size: int | None, used: int | None) -> int | None:
    """Return the free bytes, 0 or more; None if the size or the used bytes are unknown."""
    return max(size - used, 0) if size is not None and used is not None else None


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values without those that are None."""
    return {key: value for key, value in values.items() if value is not None}


def run_command(command: Sequence[str], folder: Path) -> str:
    """Run a command and return its standard output.

    A command that hangs in the kernel cannot be killed. The program leaves it running, and does not start it again while it hangs.

    Args:
        command: the program and its arguments.
        folder: the directory for a file with the process id of a command that hangs.

    Raises:
        CommandError: the command failed, or did not end within `COMMAND_SECONDS`.
        OSError: the command is missing or cannot be started.
    """
    note = folder / f".{command[0]}.hangs"
    if is_running(note):
        raise CommandError(f"{command[0]} still hangs", hangs=True)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - fixed arguments
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env={"PATH": PATH, "LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"},
        )
        try:
            status = process.wait(COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.returncode = -signal.SIGKILL  # the process may never exit, and Python must not wait for its exit
            note.write_text(f"{process.pid} {start_time(process.pid)}")
            message = f"{command[0]} did not answer within {COMMAND_SECONDS} s"
            raise CommandError(message, hangs=True) from None
        output.seek(0)
        errors.seek(0)
        text = output.read().decode("utf-8", "replace")
        if status and not text.strip():
            reason = errors.read(4096).decode("utf-8", "replace").strip().splitlines()
            raise CommandError(f"{command[0]} failed: {reason[0] if reason else f'exit status {status}'}")
        return text


def is_running(note: Path) -> bool:
    """Return whether the process of a command that hung still exists.

    Args:
        note: a file with the process id and the start time of a command that hung.
    """
    try:
        pid, started = note.read_text().split()
    except (OSError, ValueError):
        return False
    return bool(started) and start_time(int(pid)) == started


def start_time(pid: int) -> str:
    """Return the start time of a process in clock ticks since boot; empty if the process does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def read_lvm_pools(folder: Path) -> list[dict[str, Any]]:
    """Return the LVM thin pools of this host."""
    lvs = run_command(LVS, folder)
    try:
        dmsetup = run_command(DMSETUP, folder)
    except (CommandError, OSError):
        dmsetup = ""
    return parse_lvm_pools(lvs, dmsetup)


def read_zfs_pools(folder: Path) -> list[dict[str, Any]]:
    """Return the ZFS pools of this host."""
    zpool = run_command(ZPOOL, folder)
    return parse_zfs_pools(zpool, run_command(ZFS, folder), zvol_device)


def build_report(folder: Path) -> dict[str, Any]:
    """Return the report of the thin pools and ZFS pools of this host.

    Args:
        folder: the directory for files with the process ids of commands that hang.
    """
    pools, errors = [], []
    for kind, tool, read in (("lvm_thin", "lvs", read_lvm_pools), ("zfs", "zpool", read_zfs_pools)):
        if shutil.which(tool, path=PATH) is None:
            continue
        try:
            pools += read(folder)
        except (CommandError, OSError, ValueError) as error:
            hangs = isinstance(error, CommandError) and error.hangs
            errors.append({"kind": kind, "message": str(error), "hangs": hangs})
    return {"version": 1, "written_at": round(time.time(), 3), "pools": pools, "errors": errors}


def write_report(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the report file atomically."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(content, file, separators=(",", ":"))
        os.fchmod(file.fileno(), 0o644)
    Path(file.name).replace(path)


def main() -> int:
    """Write the report; return 1 if a kind of pool could not be read, otherwise 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"the file to write (default: {OUTPUT})")
    output = parser.parse_args().output
    output.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    content = build_report(output.parent)
    write_report(output, content)
    for error in content["errors"]:
        sys.stderr.write(f"{error['kind']}: {error['message']}\n")
    return 1 if content["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
