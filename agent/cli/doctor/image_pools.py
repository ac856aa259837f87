"""Finds the storage pool of each image that a QEMU has open, and reports unknown pools and missing permissions."""

import asyncio
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from agent.cli.doctor.model import ImageReport, VmReport
from agent.host.pools.base import ImageLocation, Pool, PoolSource, UnknownPool
from agent.host.pools.block_device import BlockDevicePoolSource
from agent.host.pools.filesystem import FileSystemPoolSource
from agent.host.pools.filesystem_reader import FileSystemReader
from agent.host.pools.image_location import ImageLocator, QemuAndAgentMounts
from agent.host.pools.lvm_thin import LvmThinPoolSource
from agent.host.pools.storage_report import StorageReportFile
from agent.host.pools.zfs import ZfsPoolSource
from agent.host.socket_permissions import User, describe_denial, find_paths_denied_to_user, fix_commands
from agent.model.record import sanitize

MAX_IMAGES = 256
"""Maximum number of images in the report on one VM."""

MIN_BYTES = 64 << 10
"""Minimum size of an image in bytes. Smaller files, such as PID files and NVRAM templates, are skipped."""

_NON_IMAGE_PATHS = ("/usr/", "/proc/", "/sys/", "/dev/shm/", "/dev/hugepages", "/var/log/", "/memfd:")  # noqa: S108 - compared


def add_image_reports(reports: Sequence[VmReport], user: User, proc: Path) -> list[VmReport]:
    """Return the reports on VMs, with the images of each VM added. Blocks while the file systems are read.

    Args:
        reports: the reports of the VMs.
        user: the user as which the agent runs.
        proc: the /proc directory.
    """
    return asyncio.run(_add_images(reports, user, proc))


async def _add_images(reports: Sequence[VmReport], user: User, proc: Path) -> list[VmReport]:
    reader = FileSystemReader()
    finder = _PoolFinder(reader, user, proc)
    try:
        await finder.load_lvm_and_zfs_volumes()
        return [replace(vm, images=await finder.inspect_images(vm.pid)) for vm in reports]
    finally:
        await reader.close()


class _PoolFinder:
    """Finds the pools of images in the same way as the running agent."""

    def __init__(self, reader: FileSystemReader, user: User, proc: Path) -> None:
        report = StorageReportFile()
        self._sources: Sequence[PoolSource] = (
            LvmThinPoolSource(report),
            ZfsPoolSource(report),
            FileSystemPoolSource(reader),
            BlockDevicePoolSource(),
        )
        self._locator = ImageLocator(reader)
        self._user = user
        self._proc = proc

    async def load_lvm_and_zfs_volumes(self) -> None:
        """Load the lists of LVM and ZFS volumes."""
        for source in self._sources:
            await source.refresh_pool_lookup()

    async def inspect_images(self, pid: int) -> tuple[ImageReport, ...]:
        """Return the reports on the images that a process has open."""
        tables = QemuAndAgentMounts.read_for_process(pid, self._proc.parent)
        return tuple(
            [await self._inspect_image(tables, driver, path) for driver, path in find_open_images(pid, self._proc)]
        )

    async def _inspect_image(self, tables: QemuAndAgentMounts, driver: str, path: str) -> ImageReport:
        shown = sanitize(path, 4096)
        location = await self._locator.locate(tables, driver, path)
        pool = _pool_of(location, self._sources) if isinstance(location, ImageLocation) else location
        if isinstance(pool, UnknownPool):
            return ImageReport(shown, problem=sanitize(pool.reason, 4096))
        name = sanitize(f"{pool.type or pool.kind.value.replace('_', ' ')} {pool.name}", 4096)
        blocked = find_paths_denied_to_user(str(Path(path).parent), self._user) if driver == "file" else []
        if not blocked:
            return ImageReport(shown, name)
        steps = [command for step in blocked for command in fix_commands(step, self._user)]
        return ImageReport(shown, name, describe_denial(blocked[0], self._user), tuple(steps))


def _pool_of(location: ImageLocation, sources: Sequence[PoolSource]) -> Pool | UnknownPool:
    for source in sources:
        pool = source.find_pool(location)
        if pool is not None:
            return pool
    return UnknownPool("the kind of storage is unknown")


def find_open_images(pid: int, proc: Path) -> Iterator[tuple[str, str]]:
    """Yield QEMU's driver and the path of each image that a process has open.

    A file that is open only for writing, such as a log, is not an image. Yield nothing without permission to list the open files.
    """
    drivers: dict[str, str] = {}
    try:
        descriptors = sorted((proc / str(pid) / "fd").iterdir())
    except OSError:
        return
    for descriptor in descriptors:
        try:
            path, status = str(descriptor.readlink()), descriptor.stat()
            flags = _open_flags(proc / str(pid) / "fdinfo" / descriptor.name)
        except (OSError, ValueError):
            continue
        is_file = stat.S_ISREG(status.st_mode) and status.st_size >= MIN_BYTES
        if path.startswith(_NON_IMAGE_PATHS) or path.endswith(" (deleted)") or flags & os.O_ACCMODE == os.O_WRONLY:
            continue
        if is_file or stat.S_ISBLK(status.st_mode):
            drivers.setdefault(path, "file" if is_file else "host_device")
    yield from ((driver, path) for path, driver in list(drivers.items())[:MAX_IMAGES])


def _open_flags(path: Path) -> int:
    """Return the flags that a file was opened with."""
    lines = path.read_text().splitlines()
    return int(next(line for line in lines if line.startswith("flags:")).split()[1], 8)
