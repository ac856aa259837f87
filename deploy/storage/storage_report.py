#!/usr/bin/python3 -I
"""Writes the space of LVM thin pools and ZFS pools to a JSON file for the agent, which lacks the permission to read it.

A systemd timer runs this program as root. It only reads: it runs lvs, dmsetup, zpool and zfs with fixed arguments and a deadline.
It needs Python 3.9 and no other package. docs/storage.md describes the file.
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
"""Deadline of one command. The timer runs the program every 30 s."""
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
"""Exact blocks of thin pools and volumes. lvs rounds to 0.01 %, which is 1 GiB of a 10 TiB pool."""
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


def lvm_pools(lvs: str, dmsetup: str = "") -> list[dict[str, Any]]:
    """Return the active thin pools.

    Args:
        lvs: the output of LVS.
        dmsetup: the output of DMSETUP; without it, usage is computed from the percentages of lvs.

    Raises:
        ValueError: the output of lvs is not the JSON of its report.
    """
    targets = dm_targets(dmsetup)
    pools, volumes = {}, []
    for row in lvs_rows(lvs):
        if row.get("segtype") == "thin-pool":
            pool = thin_pool(row, targets)
            if pool is not None:
                pools[row["vg_name"], row["lv_name"]] = pool
        elif row.get("segtype") == "thin":
            volumes.append(row)
    for row in volumes:
        pool = pools.get((row["vg_name"], row.get("pool_lv", "")))
        if pool is not None:
            pool["volumes"].append(thin_volume(row, targets))
    return list(pools.values())


def lvs_rows(text: str) -> list[dict[str, str]]:
    """Return the rows of lvs' report as dicts of texts."""
    report = json.loads(text)
    sections = report.get("report") if isinstance(report, dict) else None
    if not isinstance(sections, list):
        raise ValueError("lvs: the output has no report")
    return [row for section in sections for row in section.get("lv", ())]


def thin_pool(row: Mapping[str, str], targets: Mapping[str, str]) -> dict[str, Any] | None:
    """Return a thin pool; None while it is inactive, because then lvs does not know its usage."""
    size, metadata_size = number(row.get("lv_size")), number(row.get("lv_metadata_size"))
    target = targets.get(dm_name(row) + "-tpool", targets.get(dm_name(row), ""))
    state = pool_state(target, row.get("lv_attr", ""))
    used, metadata_used = pool_usage(target, number(row.get("chunk_size"))) or (
        share(size, row.get("data_percent")),
        share(metadata_size, row.get("metadata_percent")),
    )
    if size is None or (used is None and state != "failed"):
        return None
    pool = {
        "kind": "lvm_thin",
        "name": f"{row['vg_name']}/{row['lv_name']}",
        "size_bytes": size,
        "free_bytes": difference(size, used),
        "metadata_size_bytes": metadata_size,
        "metadata_free_bytes": difference(metadata_size, metadata_used),
        "state": state,
        "volumes": [],
    }
    return without_none(pool)


def pool_usage(target: str, chunk_bytes: int | None) -> tuple[int, int] | None:
    """Return the used bytes of data and of metadata by a thin-pool's status; None if it has none."""
    match = re.match(r"thin-pool \d+ (\d+)/\d+ (\d+)/\d+ ", target)
    if match is None or not chunk_bytes:
        return None
    return int(match[2]) * chunk_bytes, int(match[1]) * METADATA_BLOCK_BYTES


def pool_state(target: str, attributes: str) -> str:
    """Return `ok` or the problem of a thin pool.

    Args:
        target: the status of its device; empty if it is unknown.
        attributes: lvs' `lv_attr`, whose ninth character is the health.
    """
    words = target.split()
    if words[1:2] in (["Fail"], ["Error"]):
        return "failed"
    for word, state in (("needs_check",) * 2, ("out_of_data_space",) * 2, ("ro", "read_only")):
        if word in words:
            return state
    health = attributes[8:9] if not words else ""
    return {"F": "failed", "D": "out_of_data_space", "M": "read_only"}.get(health, "ok")


def thin_volume(row: Mapping[str, str], targets: Mapping[str, str]) -> dict[str, Any]:
    """Return a volume of a thin pool."""
    size = number(row.get("lv_size"))
    volume: dict[str, Any] = {"name": f"{row['vg_name']}/{row['lv_name']}", "size_bytes": size}
    major, minor = number(row.get("lv_kernel_major")), number(row.get("lv_kernel_minor"))
    if major is not None and minor is not None:
        volume["device"] = f"{major}:{minor}"
    match = re.match(r"thin (\d+)", targets.get(dm_name(row), ""))
    if match is not None:
        volume["allocated_bytes"] = int(match[1]) * SECTOR_BYTES
    else:
        volume["allocated_bytes"] = share(size, row.get("data_percent"))
    return without_none(volume)


def dm_name(row: Mapping[str, str]) -> str:
    """Return the name of a volume's device in the device mapper."""
    return row.get("lv_dm_path", "").rpartition("/")[2] or "{}-{}".format(
        row["vg_name"].replace("-", "--"), row["lv_name"].replace("-", "--")
    )


def dm_targets(text: str) -> dict[str, str]:
    """Return the status of each device with one target, by the device's name, from lines such as `NAME: 0 2048 thin 1024 2047`."""
    lines = (re.match(r"(.+?): \d+ \d+ (\S.*)", line) for line in text.splitlines())
    return {match[1]: match[2] for match in lines if match is not None}


# --- ZFS -------------------------------------------------------------------------------------------------------------


def zfs_pools(zpool: str, zfs: str, device_of: Callable[[str], str | None]) -> list[dict[str, Any]]:
    """Return the ZFS pools.

    Args:
        zpool: the output of ZPOOL.
        zfs: the output of ZFS.
        device_of: returns the device number of a volume by its name, or None.
    """
    health = dict(line.split("\t")[:2] for line in zpool.splitlines() if "\t" in line)
    pools: dict[str, dict[str, Any]] = {}
    volumes, quotas = [], set()
    for line in zfs.splitlines():
        fields = line.split("\t")
        if len(fields) != len(ZFS[-1].split(",")):
            continue
        name, kind, *texts = fields
        used, available, referenced, size, quota, own_quota, reserved = map(number, texts)
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
    """Return the name of a file system and the names of those above it. A quota limits all below it."""
    parts = name.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]


def zvol_device(name: str) -> str | None:
    """Return the device number of a ZFS volume, such as `230:16`; None if it has no device. ZFS' udev rule writes spaces as `+`."""
    try:
        device = Path("/dev/zvol", name.replace(" ", "+")).stat().st_rdev
    except OSError:
        return None
    return f"{os.major(device)}:{os.minor(device)}"


# --- Commands and the file -------------------------------------------------------------------------------------------


def number(text: object) -> int | None:
    """Return a non-negative integer; None for `-`, an empty text and everything else."""
    return int(text) if isinstance(text, str) and re.fullmatch(r"[0-9]{1,20}", text) else None


def share(size: int | None, percent: object) -> int | None:
    """Return the bytes of a percentage; None if one of both is unknown."""
    if size is None or not isinstance(percent, str) or not re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?", percent):
        return None
    return round(size * float(percent) / 100)


def difference(size: int | None, used: int | None) -> int | None:
    """Return what is left of a size; None if one of both is unknown."""
    return max(size - used, 0) if size is not None and used is not None else None


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are known."""
    return {key: value for key, value in values.items() if value is not None}


def run(command: Sequence[str], folder: Path) -> str:
    """Run a command and return its output.

    A command that hangs in the kernel cannot be killed. It is abandoned, and not started again while it still hangs.

    Args:
        command: the program and its arguments.
        folder: the directory for the note of a command that hangs.

    Raises:
        CommandError: the command is missing, failed, or did not answer.
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
            process.returncode = -signal.SIGKILL  # it may never end: Python must not wait for it
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
    """Return whether the process of a note still exists."""
    try:
        pid, started = note.read_text().split()
    except (OSError, ValueError):
        return False
    return bool(started) and start_time(int(pid)) == started


def start_time(pid: int) -> str:
    """Return when a process started, in the kernel's ticks; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def lvm_report(folder: Path) -> list[dict[str, Any]]:
    """Return the LVM thin pools of this host."""
    lvs = run(LVS, folder)
    try:
        dmsetup = run(DMSETUP, folder)
    except (CommandError, OSError):
        dmsetup = ""
    return lvm_pools(lvs, dmsetup)


def zfs_report(folder: Path) -> list[dict[str, Any]]:
    """Return the ZFS pools of this host."""
    zpool = run(ZPOOL, folder)
    return zfs_pools(zpool, run(ZFS, folder), zvol_device)


def report(folder: Path) -> dict[str, Any]:
    """Return the report of this host.

    Args:
        folder: the directory for the notes of commands that hang.
    """
    pools, errors = [], []
    for kind, tool, read in (("lvm_thin", "lvs", lvm_report), ("zfs", "zpool", zfs_report)):
        if shutil.which(tool, path=PATH) is None:
            continue
        try:
            pools += read(folder)
        except (CommandError, OSError, ValueError) as error:
            hangs = isinstance(error, CommandError) and error.hangs
            errors.append({"kind": kind, "message": str(error), "hangs": hangs})
    return {"version": 1, "written_at": round(time.time(), 3), "pools": pools, "errors": errors}


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the file in one step, so that the agent never reads half of it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(content, file, separators=(",", ":"))
        os.fchmod(file.fileno(), 0o644)
    Path(file.name).replace(path)


def main() -> int:
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"the file to write (default: {OUTPUT})")
    output = parser.parse_args().output
    output.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    content = report(output.parent)
    write(output, content)
    for error in content["errors"]:
        sys.stderr.write(f"{error['kind']}: {error['message']}\n")
    return 1 if content["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
