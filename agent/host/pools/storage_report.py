"""The storage report: its format, its file, and the base class of the sources that find pools in the report.

A program that runs as root writes the report, because the agent may not query the device mapper and ZFS. The program and its timer are in
deploy/storage/. Other programs may write the same format: docs/reference/storage-report.md.
"""

import os
import stat
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from agent.host.pools.base import (
    ImageLocation,
    Pool,
    PoolKind,
    PoolReadError,
    PoolReading,
    PoolReadings,
    PoolUnresponsiveError,
)

REPORT_PATH = Path("/run/qmp-agent-storage/report.json")
STALE_SECONDS = 120.0
"""Maximum age of a usable report. The timer writes a report every 30 s."""
MAX_REPORT_BYTES = 8 << 20
"""Maximum size of the report, enough for 30,000 volumes."""

TIMER_UNIT = "qmp-agent-storage.timer"

_Bytes = Annotated[int, Field(ge=0, le=1 << 63)]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class _ReportModel(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ReportedVolume(_ReportModel):
    """A volume or a file system in a pool."""

    name: _Name
    """Name of the volume, such as `vg/lv` or `tank/vm/disk0`."""
    device: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}:[0-9]{1,10}$")] | None = None
    """`major:minor` of the volume's block device."""
    file_system: _Name | None = None
    """Mount source of the file system in /proc/mounts; absent for a volume."""
    size_bytes: _Bytes | None = None
    """Size of the block device."""
    allocated_bytes: _Bytes | None = None
    """Bytes of the pool that the volume occupies."""
    quota: bool = False
    """True if a quota limits the file system. If so, statvfs reports the size of the quota."""
    reserved: bool = False
    """True if the whole size of the volume is reserved. Such a volume cannot run out of space."""


class ReportedPool(_ReportModel):
    """A pool in the report."""

    kind: Literal["lvm_thin", "zfs"]
    """Kind of the pool."""
    name: _Name
    """Name of the pool, such as `vg/pool` or `tank`."""
    size_bytes: _Bytes
    """Size of the pool."""
    free_bytes: _Bytes | None = None
    """Bytes that volumes can still allocate. Absent if the pool has failed."""
    metadata_size_bytes: _Bytes | None = None
    """Size of an LVM thin pool's metadata."""
    metadata_free_bytes: _Bytes | None = None
    """Free bytes of the metadata."""
    state: Annotated[str, StringConstraints(max_length=64)] = "ok"
    """`ok`, or the problem that LVM or ZFS reports, such as `out_of_data_space` or `SUSPENDED`."""
    volumes: list[ReportedVolume] = []
    """Volumes and file systems in the pool."""


class ReportedPoolKindError(_ReportModel):
    """The error of a command that lists the pools of one kind."""

    kind: Literal["lvm_thin", "zfs"]
    """Kind of the pools that could not be read."""
    message: Annotated[str, StringConstraints(max_length=1024)]
    """Cause of the error."""
    hangs: bool = False
    """True if the command did not end in time, most often because a device hangs."""


class StorageReport(_ReportModel):
    """The content of the report file."""

    version: Literal[1]
    """Version of the format."""
    written_at: float
    """When the report was written, in seconds since the epoch."""
    pools: list[ReportedPool] = []
    """Pools that could be read."""
    errors: list[ReportedPoolKindError] = []
    """One error for each kind of pool that could not be read. Pools of this kind may be missing."""


class StorageReportError(Exception):
    """The report is unusable. The message states the cause and the fix."""


class StorageReportFile:
    """The report file. `load` parses the file again only if the file has changed."""

    def __init__(self, path: Path = REPORT_PATH) -> None:
        self.path = path
        self._file_identity: tuple[int, ...] = ()
        self._report: StorageReport | StorageReportError = StorageReportError(f"{path} was not read yet")

    def load(self, now: float) -> StorageReport:
        """Return the content of the report file.

        Args:
            now: the time in seconds since the epoch.

        Raises:
            StorageReportError: the file is missing, invalid, too old, writable by every user, or has a wrong owner. Only root and the
                agent's user may own the file.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                identity = (status.st_ino, status.st_mtime_ns, status.st_size)
                if identity != self._file_identity:
                    self._file_identity, self._report = (
                        identity,
                        self._parse_content(status, file.read(MAX_REPORT_BYTES + 1)),
                    )
        except FileNotFoundError:
            self._file_identity = ()
            raise StorageReportError(
                f"{self.path} does not exist: enable {TIMER_UNIT} on the host (docs/how-to/storage.md)"
            ) from None
        except OSError as error:
            self._file_identity = ()
            raise StorageReportError(f"{self.path}: {error.strerror or error}") from None
        if isinstance(self._report, StorageReportError):
            raise self._report
        age = now - self._report.written_at
        if age > STALE_SECONDS:
            raise StorageReportError(f"{self.path} is {age:.0f} s old: check {TIMER_UNIT} on the host")
        return self._report

    def _parse_content(self, status: os.stat_result, content: bytes) -> StorageReport | StorageReportError:
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return StorageReportError(f"{self.path} is not used: root must own it, and no other user may write it")
        if len(content) > MAX_REPORT_BYTES:
            return StorageReportError(f"{self.path} is larger than {MAX_REPORT_BYTES >> 20} MiB")
        try:
            return StorageReport.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            return StorageReportError(f"{self.path}: {place or 'report'}: {first['msg']}")


class StorageReportPoolSource:
    """A source that finds and reads the pools of one kind in the report.

    Attributes:
        kind: kind of the pools.
        error: why the report is unusable; None for a usable report.
    """

    def __init__(self, kind: PoolKind, file: StorageReportFile) -> None:
        self.kind = kind
        self.error: StorageReportError | None = None
        self._file = file
        self._reported_error: ReportedPoolKindError | None = None
        self._read_at: float | None = None
        self._pools: dict[str, ReportedPool] = {}
        self._by_device: dict[str, tuple[ReportedPool, ReportedVolume]] = {}
        self._by_name: dict[str, tuple[ReportedPool, ReportedVolume]] = {}
        self._allocated: dict[str, dict[str, int]] = {}

    async def refresh_pool_lookup(self) -> bool:
        """Load the report. If the report is unusable, keep the volumes of the last usable report.

        Returns:
            True if the names of the volumes have changed, or if the report has become usable or unusable.
        """
        before = self._by_name.keys(), self.error is None
        self._load_report()
        return (self._by_name.keys(), self.error is None) != before

    async def read(self, pools: Sequence[Pool]) -> PoolReadings:
        """Return the size and usage of pools from the report."""
        self._load_report()
        return {pool.key: self._reading_of_pool(pool) for pool in pools}

    def find_volume(self, image: ImageLocation) -> tuple[ReportedPool, ReportedVolume] | None:
        """Return the volume of an image, with its pool; None if the report lacks the volume.

        The image's device number identifies the volume. If the number is unknown, the name in the image's path identifies the volume.
        """
        if image.device:
            return self._by_device.get(image.device)
        if image.path.startswith("/dev/"):
            return self._by_name.get(volume_name_of_dev_path(image.path))
        return None

    def find_by_mount_source(self, source: str) -> tuple[ReportedPool, ReportedVolume] | None:
        """Return a mounted file system and its pool; None if the report lacks the file system.

        Args:
            source: the source of the mount, such as `tank/vm`.
        """
        match = self._by_name.get(source)
        return match if match is not None and match[1].file_system is not None else None

    def make_pool(self, reported: ReportedPool) -> Pool:
        """Return the `Pool` for a pool of the report."""
        return Pool(f"{self.kind.value}:{reported.name}", self.kind, reported.name, path=reported.name)

    def _load_report(self) -> None:
        try:
            report = self._file.load(time.time())
        except StorageReportError as error:
            self.error = error
            return
        self.error = None
        self._reported_error = next((error for error in report.errors if error.kind == self.kind.value), None)
        if report.written_at == self._read_at:
            return
        self._read_at = report.written_at
        if self._reported_error is not None:
            return  # keep the volumes of the last usable report
        self._pools = {pool.name: pool for pool in report.pools if pool.kind == self.kind.value}
        volumes = [(pool, volume) for pool in self._pools.values() for volume in pool.volumes]
        self._by_device = {match[1].device: match for match in volumes if match[1].device is not None}
        self._by_name = {match[1].name: match for match in volumes}
        self._allocated = {name: allocated_bytes_by_volume(pool.volumes) for name, pool in self._pools.items()}
        self._by_name |= {match[1].name.replace(" ", "+"): match for match in volumes if " " in match[1].name}

    def _reading_of_pool(self, pool: Pool) -> PoolReading | PoolReadError:
        if self.error is not None:
            return PoolReadError(str(self.error))
        if self._reported_error is not None:
            return (PoolUnresponsiveError if self._reported_error.hangs else PoolReadError)(
                self._reported_error.message
            )
        reported = self._pools.get(pool.name)
        if reported is None:
            return PoolReadError(f"{pool.name} no longer exists or is inactive")
        return PoolReading(
            reported.size_bytes,
            reported.free_bytes,
            metadata_size_bytes=reported.metadata_size_bytes,
            metadata_free_bytes=reported.metadata_free_bytes,
            problem="" if reported.state == "ok" else reported.state,
            read_at=self._read_at,
            allocated_bytes_by_volume=self._allocated[pool.name],
        )


def allocated_bytes_by_volume(volumes: Iterable[ReportedVolume]) -> dict[str, int]:
    """Return the allocated bytes of volumes, by `major:minor` and by name. A volume without this value is omitted."""
    known = [(volume, volume.allocated_bytes) for volume in volumes if volume.allocated_bytes is not None]
    by_device = {volume.device: allocated for volume, allocated in known if volume.device is not None}
    return by_device | {volume.name: allocated for volume, allocated in known}


def volume_name_of_dev_path(path: str) -> str:
    """Return the name of a volume by its path in /dev.

    `/dev/vg/lv` and `/dev/mapper/vg-lv` become `vg/lv`. `/dev/zvol/tank/disk0` becomes `tank/disk0`.
    """
    name = path.removeprefix("/dev/").removeprefix("zvol/")
    if name.startswith("mapper/"):
        # In a device-mapper name, one hyphen separates group and volume. A hyphen inside the name of the group or volume is doubled.
        parts = name.removeprefix("mapper/").replace("--", "\0").split("-")
        name = "/".join(part.replace("\0", "-") for part in parts)
    return name
