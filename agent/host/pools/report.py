"""The report of thin pools that a program with root's permissions writes: its format, and its pools as a source.

The agent lacks the permission to query the device mapper and ZFS. deploy/storage/ has the program and its timer. Other programs may write
the same format for other storage. docs/storage.md describes it.
"""

import os
import stat
import time
from collections.abc import Sequence
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
"""Age at which a report is no longer used. The timer writes one every 30 s."""
MAX_BYTES = 8 << 20
"""Maximum size of the report: 30,000 volumes."""

UNITS = "qmp-agent-storage.timer"

_Bytes = Annotated[int, Field(ge=0, le=1 << 63)]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ReportedVolume(_Part):
    """A volume or a file system in a pool."""

    name: _Name
    """Its name, such as `vg/lv` or `tank/vm/disk0`."""
    device: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}:[0-9]{1,10}$")] | None = None
    """`major:minor` of its block device."""
    file_system: _Name | None = None
    """Source of its mounts in /proc/mounts, for a file system."""
    size_bytes: _Bytes | None = None
    """Size of the block device."""
    allocated_bytes: _Bytes | None = None
    """Bytes of the pool that it occupies."""
    quota: bool = False
    """True if a quota limits it. Its own free space takes the quota into account."""
    reserved: bool = False
    """True if its whole size is reserved, so that it cannot run out of space."""


class ReportedPool(_Part):
    """A pool."""

    kind: Literal["lvm_thin", "zfs"]
    """Its kind."""
    name: _Name
    """Its name."""
    size_bytes: _Bytes
    """Size."""
    free_bytes: _Bytes | None = None
    """Bytes that volumes can still allocate; absent if the pool has failed."""
    metadata_size_bytes: _Bytes | None = None
    """Size of an LVM thin pool's metadata."""
    metadata_free_bytes: _Bytes | None = None
    """Free bytes of the metadata."""
    state: Annotated[str, StringConstraints(max_length=64)] = "ok"
    """`ok`, or a problem in the words of its manager, such as `out_of_data_space` or `SUSPENDED`."""
    volumes: list[ReportedVolume] = []
    """Its volumes and file systems."""


class ReportedError(_Part):
    """A kind of pool that could not be read."""

    kind: Literal["lvm_thin", "zfs"]
    """The kind."""
    message: Annotated[str, StringConstraints(max_length=1024)]
    """The cause."""
    hangs: bool = False
    """True if its command did not answer, most often because a device hangs."""


class StorageReport(_Part):
    """The report."""

    version: Literal[1]
    """Version of the format."""
    written_at: float
    """When it was written, in seconds since the epoch."""
    pools: list[ReportedPool] = []
    """The pools."""
    errors: list[ReportedError] = []
    """The kinds that could not be read. Their pools may be missing."""


class ReportError(Exception):
    """The report cannot be used. The message is the cause and the fix."""


class ReportFile:
    """The report's file. It is parsed when it has changed."""

    def __init__(self, path: Path = REPORT_PATH) -> None:
        self.path = path
        self._identity: tuple[int, ...] = ()
        self._report: StorageReport | ReportError = ReportError(f"{path} was not read yet")

    def load(self, now: float) -> StorageReport:
        """Return the current report.

        Args:
            now: the time in seconds since the epoch.

        Raises:
            ReportError: the file is missing, unsafe, too old or not as its format is.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                identity = (status.st_ino, status.st_mtime_ns, status.st_size)
                if identity != self._identity:
                    self._identity, self._report = identity, self._parse(status, file.read(MAX_BYTES + 1))
        except FileNotFoundError:
            self._identity = ()
            raise ReportError(f"{self.path} does not exist: enable {UNITS} on the host (docs/storage.md)") from None
        except OSError as error:
            self._identity = ()
            raise ReportError(f"{self.path}: {error.strerror or error}") from None
        if isinstance(self._report, ReportError):
            raise self._report
        age = now - self._report.written_at
        if age > STALE_SECONDS:
            raise ReportError(f"{self.path} is {age:.0f} s old: check {UNITS} on the host")
        return self._report

    def _parse(self, status: os.stat_result, content: bytes) -> StorageReport | ReportError:
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & stat.S_IWOTH:
            return ReportError(f"{self.path} is not used: root must own it, and no other user may write it")
        if len(content) > MAX_BYTES:
            return ReportError(f"{self.path} is larger than {MAX_BYTES >> 20} MiB")
        try:
            return StorageReport.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            return ReportError(f"{self.path}: {place or 'report'}: {first['msg']}")


class ReportedSource:
    """The pools of one kind in the report, as a source.

    Attributes:
        error: why the report cannot be used, or None.
    """

    def __init__(self, kind: PoolKind, file: ReportFile) -> None:
        self.kind = kind
        self.error: ReportError | None = None
        self._file = file
        self._failure: ReportedError | None = None
        self._read_at: float | None = None
        self._pools: dict[str, ReportedPool] = {}
        self._by_device: dict[str, tuple[ReportedPool, ReportedVolume]] = {}
        self._by_name: dict[str, tuple[ReportedPool, ReportedVolume]] = {}

    async def refresh(self) -> bool:
        """Load the report; return whether it has other volumes now. If it cannot be used, keep the volumes of the last one."""
        before = self._by_name.keys(), self.error is None
        self._load()
        return (self._by_name.keys(), self.error is None) != before

    async def read(self, pools: Sequence[Pool]) -> PoolReadings:
        """Return the figures of pools from the report."""
        self._load()
        return {pool.key: self._reading(pool) for pool in pools}

    def volume_of(self, image: ImageLocation) -> tuple[ReportedPool, ReportedVolume] | None:
        """Return the pool and the volume that an image is on, by its device or by the name in its path."""
        if image.device:
            return self._by_device.get(image.device)
        if image.path.startswith("/dev/"):
            return self._by_name.get(volume_name(image.path))
        return None

    def file_system(self, source: str) -> tuple[ReportedPool, ReportedVolume] | None:
        """Return the pool and the file system that a mount has as its source."""
        match = self._by_name.get(source)
        return match if match is not None and match[1].file_system is not None else None

    def pool(self, reported: ReportedPool) -> Pool:
        """Return a reported pool by the agent's type."""
        return Pool(f"{self.kind.value}:{reported.name}", self.kind, reported.name, path=reported.name)

    def _load(self) -> None:
        try:
            report = self._file.load(time.time())
        except ReportError as error:
            self.error = error
            return
        self.error = None
        self._failure = next((error for error in report.errors if error.kind == self.kind.value), None)
        if report.written_at == self._read_at:
            return
        self._read_at = report.written_at
        if self._failure is not None:
            return  # keep the volumes of the last complete report
        self._pools = {pool.name: pool for pool in report.pools if pool.kind == self.kind.value}
        volumes = [(pool, volume) for pool in self._pools.values() for volume in pool.volumes]
        self._by_device = {match[1].device: match for match in volumes if match[1].device is not None}
        self._by_name = {match[1].name: match for match in volumes}
        self._by_name |= {match[1].name.replace(" ", "+"): match for match in volumes if " " in match[1].name}

    def _reading(self, pool: Pool) -> PoolReading | PoolReadError:
        if self.error is not None:
            return PoolReadError(str(self.error))
        if self._failure is not None:
            return (PoolUnresponsiveError if self._failure.hangs else PoolReadError)(self._failure.message)
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
        )


def volume_name(path: str) -> str:
    """Return the name of a volume by its path in /dev: `vg/lv`, also from a path of the device mapper, or a ZFS volume."""
    name = path.removeprefix("/dev/").removeprefix("zvol/")
    if name.startswith("mapper/"):
        # The device mapper joins group and volume by a hyphen, and doubles the hyphens inside them.
        parts = name.removeprefix("mapper/").replace("--", "\0").split("-")
        name = "/".join(part.replace("\0", "-") for part in parts)
    return name
