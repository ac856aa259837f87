"""Finds the mount or the block device of an image. The path of the image is valid in the mount namespace of its QEMU."""

import os
import re
import time
from pathlib import Path
from typing import NamedTuple, Self

import orjson

from agent.host.block_device import block_device_number, replace_dm_number_by_name
from agent.host.mounts import Mount, find_mount, parse_mountinfo
from agent.host.pools.base import ImageLocation, PoolReadError, PoolUnresponsiveError, UnknownPool
from agent.host.pools.filesystem_reader import FileSystemReader
from agent.host.process import ROOT

MAX_MOUNTINFO_BYTES = 4 << 20
"""Maximum number of bytes to read from a mount table. The table has about 1 MB on a host with a thousand containers."""

MAX_PATH_BYTES = 4096
"""Maximum length of a path in the kernel (PATH_MAX)."""

MAX_QUOTA_DEPTH = 64
"""Maximum number of parent directories that are checked for a quota."""

CACHE_SECONDS = 600.0
"""Seconds for which the location of a directory is cached. The directory is then read again, because the directory may have a new quota."""

MAX_CACHED_LOCATIONS = 4096

_URL = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_LOCAL_DRIVERS = frozenset({"file", "host_device", "host_cdrom"})


class _DirectoryLocation(NamedTuple):
    """The mount and the quota of a directory.

    Attributes:
        mount: the mount that contains the directory.
        agent_path: the agent's path of the mount point or of the directory with the quota.
        is_quota: whether `agent_path` is the directory of a quota.
    """

    mount: Mount
    agent_path: str
    is_quota: bool = False


def read_mounts_of_process(pid: int | str, root: Path = ROOT) -> tuple[Mount, ...]:
    """Return the mounts of a process; empty if its mountinfo cannot be read.

    Args:
        pid: the process id, or `self` for the agent.
        root: the directory that contains /proc.
    """
    try:
        with (root / "proc" / str(pid) / "mountinfo").open("rb") as file:
            return parse_mountinfo(file.read(MAX_MOUNTINFO_BYTES).decode("utf-8", "surrogateescape"))
    except OSError:
        return ()


def local_path(driver: str, path: str) -> str | UnknownPool:
    """Return the absolute path of an image in QEMU's mount namespace, or the reason why this path is unknown.

    Args:
        driver: the driver of QEMU's block node.
        path: the file name that QEMU reports.
    """
    if path.startswith("json:"):
        path = _file_name_of_json(path[5:])
    if not _is_valid_path(path):
        return UnknownPool("QEMU reports a path that no file can have")
    if path.startswith(("/dev/fd/", "/dev/fdset/")):
        return UnknownPool("the program that started QEMU passed the image as an open file: its path is unknown")
    if path.startswith("/"):
        return os.path.normpath(path)
    if _URL.match(path) or driver not in _LOCAL_DRIVERS:
        kind = path.partition(":")[0] if _URL.match(path) else driver
        return UnknownPool(f"{kind or 'unknown'} storage is outside this host: monitor its free space at the server")
    if not path:
        return UnknownPool("QEMU reports no path of the image")
    return UnknownPool(f"the path {path!r} is relative: start QEMU with an absolute path")


def _is_valid_path(text: str) -> bool:
    try:
        return b"\0" not in (encoded := os.fsencode(text)) and len(encoded) < MAX_PATH_BYTES
    except UnicodeEncodeError:
        return False


def _file_name_of_json(text: str) -> str:
    """Return the file name in the JSON options of a block node. Return the driver and a colon if the options have no file name."""
    try:
        options = orjson.loads(text)
    except orjson.JSONDecodeError:
        return ""
    driver = ""
    for _ in range(8):
        if not isinstance(options, dict):
            break
        if isinstance(name := options.get("filename", options.get("file.filename")), str):
            return name
        driver = options.get("driver", driver)
        options = options.get("file")
    return f"{driver}:"


class QemuAndAgentMounts(NamedTuple):
    """The mounts of a QEMU process and of the agent.

    Attributes:
        pid: the process id of QEMU.
        qemu_mounts: the mounts of QEMU; empty if QEMU's mount table cannot be read.
        agent_mounts: the mounts of the agent; empty if the agent's mount table cannot be read.
    """

    pid: int
    qemu_mounts: tuple[Mount, ...]
    agent_mounts: tuple[Mount, ...]

    @classmethod
    def read_for_process(cls, pid: int, root: Path = ROOT) -> Self:
        """Read both mount tables.

        Args:
            pid: the process id of QEMU.
            root: the directory that contains /proc.
        """
        return cls(pid, read_mounts_of_process(pid, root), read_mounts_of_process("self", root))


class ImageLocator:
    """Finds the locations of images, and caches the locations of directories for `CACHE_SECONDS`."""

    def __init__(self, reader: FileSystemReader) -> None:
        self._reader = reader
        self._cache: dict[tuple[str, str], tuple[float, _DirectoryLocation]] = {}
        # The targets are separate from the directories, because an image may be a symbolic link to another file system.
        self._link_targets: dict[tuple[str, str], tuple[float, str]] = {}

    def location_without_io(
        self, tables: QemuAndAgentMounts | None, driver: str, path: str
    ) -> ImageLocation | UnknownPool | None:
        """Return the location of an image without access to its file system.

        Args:
            tables: the mounts of the image's QEMU and of the agent; None if the process of the VM is unknown.
            driver: the driver of QEMU's block node.
            path: the file name that QEMU reports.

        Returns:
            The location, or the reason why the location is unknown; None if the file system has to be read first.
        """
        local = local_path(driver, path)
        if isinstance(local, UnknownPool):
            return local
        if local.startswith("/dev/") and (device := block_device_number(local)) != "":
            return ImageLocation(driver, local, device=device or "")
        if tables is None:
            return UnknownPool("the process of the VM is unknown: `qemu.sample.identity` has the reason")
        mount = find_mount(tables.qemu_mounts, local)
        if mount is None:
            return UnknownPool(f"the mounts of process {tables.pid} cannot be read, or none of them has this path")
        return self._cached_location(tables, mount, driver, local)

    def _cached_location(
        self, tables: QemuAndAgentMounts, mount: Mount, driver: str, local: str
    ) -> ImageLocation | UnknownPool | None:
        """Return the location of a file from the caches. Return None if the file system has to be read first."""
        directory = _path_for_agent(tables, mount, _directory_of_image(mount, local))
        cached = self._cache.get((mount.device, directory))
        link = self._link_targets.get((mount.device, _path_of_image(directory, mount, local)))
        if cached is None or link is None or time.monotonic() - min(cached[0], link[0]) >= CACHE_SECONDS:
            return None
        if link[1]:
            return self.location_without_io(
                QemuAndAgentMounts(tables.pid, tables.agent_mounts, tables.agent_mounts), driver, link[1]
            )
        return _build_location(driver, local, cached[1])

    async def locate(self, tables: QemuAndAgentMounts | None, driver: str, path: str) -> ImageLocation | UnknownPool:
        """Return the location of an image, and read its file system if necessary. `location_without_io` describes the arguments."""
        known, local = self.location_without_io(tables, driver, path), local_path(driver, path)
        if known is not None or tables is None or isinstance(local, UnknownPool):
            return known or UnknownPool("the process of the VM is unknown")
        mount = find_mount(tables.qemu_mounts, local)
        assert mount is not None
        try:
            location = await self._locate_directory(tables, mount, _directory_of_image(mount, local))
            target = await self._resolve_link(tables, mount, local)
        except PoolUnresponsiveError:
            return ImageLocation(driver, local, mount, mount.mount_point)
        except PoolReadError as error:
            return UnknownPool(f"{error}: the agent needs search permission, or the same mount in its container")

        if target:
            return await self.locate(
                QemuAndAgentMounts(tables.pid, tables.agent_mounts, tables.agent_mounts), driver, target
            )
        return _build_location(driver, local, location)

    async def _resolve_link(self, tables: QemuAndAgentMounts, mount: Mount, local: str) -> str:
        """Return the target of an image that is a symbolic link, such as oVirt's images; empty if the image is not a link.

        The result is a path in the agent's mount namespace. A link that exists only in QEMU's namespace is not resolved.

        Raises:
            PoolUnresponsiveError: the file system of the image or of its target did not answer.
        """
        directory = _path_for_agent(tables, mount, _directory_of_image(mount, local))
        path, target = _path_of_image(directory, mount, local), ""
        if path != directory and not path.startswith(f"/proc/{tables.pid}/root/"):
            try:
                real = await self._reader.realpath(path, f"path:{path}")
                real_directory = await self._reader.realpath(directory, f"path:{directory}")
                is_link = real != f"{real_directory.rstrip('/')}/{path.rpartition('/')[2]}"
                target = replace_dm_number_by_name(real) if is_link else ""
            except PoolUnresponsiveError:
                raise
            except PoolReadError:
                pass  # the image was deleted while QEMU has it open
        if len(self._link_targets) >= MAX_CACHED_LOCATIONS:
            self._link_targets.clear()
        self._link_targets[mount.device, path] = time.monotonic(), target
        return target

    async def _locate_directory(self, tables: QemuAndAgentMounts, mount: Mount, directory: str) -> _DirectoryLocation:
        """Read the file system of a directory, and return the mount and the quota of the directory.

        Raises:
            PoolUnresponsiveError: the file system did not answer.
            PoolReadError: the directory cannot be accessed.
        """
        path = _path_for_agent(tables, mount, directory)
        prefix = path.removesuffix(directory) if path.startswith(f"/proc/{tables.pid}/root/") else ""
        # Read the mount point before the directory. The reader then marks only the mount as suspect if the mount hangs. A request for the
        # directory would make the reader mark the directory as a second suspect mount.
        await self._reader.statvfs(
            f"{prefix}{mount.mount_point}" if prefix or path == directory else path, mount.device
        )
        real = await self._reader.realpath(path, f"path:{path}")
        if prefix:
            location = _DirectoryLocation(mount, f"{prefix}{mount.mount_point}")
        else:
            own_mount = find_mount(tables.agent_mounts, real) or mount
            agent_path = await self._find_quota_directory(own_mount, real)
            location = _DirectoryLocation(own_mount, agent_path, agent_path != own_mount.mount_point)
        if len(self._cache) >= MAX_CACHED_LOCATIONS:
            self._cache.clear()
        self._cache[mount.device, path] = time.monotonic(), location
        return location

    async def _find_quota_directory(self, mount: Mount, directory: str) -> str:
        """Return the topmost parent directory for which statvfs reports the same size and number of inodes.

        The returned directory has the quota, or is the mount point.
        """
        own = await self._reader.statvfs(directory, mount.device)
        top = directory
        for _ in range(MAX_QUOTA_DEPTH):
            above = _parent_directory(top)
            if top == mount.mount_point or len(above) < len(mount.mount_point):
                break
            figures = await self._reader.statvfs(above, mount.device)
            if (figures.size_bytes, figures.inodes) != (own.size_bytes, own.inodes):
                break
            top = above
        return top


def _directory_of_image(mount: Mount, path: str) -> str:
    """Return the directory of an image. Return the image's path if the image itself is a mount point, such as a FUSE export."""
    return path if mount.mount_point == path else _parent_directory(path)


def _path_of_image(directory: str, mount: Mount, path: str) -> str:
    """Return an image's path in the agent's mount namespace. `directory` is the path of the image's directory in the same namespace."""
    return directory if mount.mount_point == path else f"{directory.rstrip('/')}/{path.rpartition('/')[2]}"


def _parent_directory(path: str) -> str:
    return os.path.dirname(path)  # noqa: PTH120 - of text


def _build_location(driver: str, path: str, directory: _DirectoryLocation) -> ImageLocation:
    quota = directory.agent_path if directory.is_quota else ""
    return ImageLocation(driver, path, directory.mount, directory.agent_path, quota)


def _path_for_agent(tables: QemuAndAgentMounts, mount: Mount, directory: str) -> str:
    """Return the path in the agent's mount namespace of a directory of QEMU.

    Return a path in /proc/PID/root if the agent lacks the mount.
    """
    own = _path_in_agent_namespace(tables.agent_mounts, mount, directory)
    return f"/proc/{tables.pid}/root{directory}" if own is None else own


def _path_in_agent_namespace(own: tuple[Mount, ...], mount: Mount, path: str) -> str | None:
    """Return the path of QEMU's file in the agent's mount namespace; None if no mount of the agent contains the file."""
    same = find_mount(own, path)
    if same is not None and (same.device, same.root, same.mount_point) == (mount.device, mount.root, mount.mount_point):
        return path
    inside = _join_paths(mount.root, path[len(mount.mount_point.rstrip("/")) :])
    for candidate in own:
        root = candidate.root.rstrip("/")
        if candidate.device == mount.device and (inside == root or inside.startswith(f"{root}/")):
            return _join_paths(candidate.mount_point, inside[len(root) :])
    return None


def _join_paths(directory: str, rest: str) -> str:
    return os.path.normpath(f"{directory.rstrip('/')}/{rest.lstrip('/')}")
