"""Decides whether the agent may send commands that access storage to a VM.

The agent sends these commands only while the storage of the VM's images answers and no disk of the VM seems to hang. QEMU executes the
commands in its main loop, with the big QEMU lock (BQL) held. If the storage hangs during a command, the guest stops.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence

from agent.app.image_pool_finder import ImagePoolFinder
from agent.host.command_line_images import command_line_image_paths
from agent.host.pools.base import PoolReadError
from agent.host.pools.filesystem_reader import SUSPECT_SECONDS, FileSystemReader
from agent.host.qemu_processes import read_command_line
from agent.model.record import Vm

_log = logging.getLogger("agent")

FRESH_SECONDS = 1.0
"""How long an answer of a file system stays valid. Polls of several VMs then share one answer."""

WAIT_SECONDS = SUSPECT_SECONDS + 0.1
"""Maximum time that a poll of a VM waits for its file systems."""

DEFERRED_COLLECTORS = ("nodes", "drives")
"""Collectors whose QMP commands access storage."""

Mounts = Mapping[str, str]
"""A directory on each mount, by `major:minor` of the mount's file system."""


class StorageQueryGate:
    """Defers commands that access storage while the storage does not answer. One gate serves all VMs.

    Attributes:
        schedule_collectors: schedules the given collectors of a VM now. The agent sets the function after the creation of the gate.
        is_io_suspect: returns whether a VM may have I/O that hangs. The agent sets the function after the creation of the gate.
    """

    def __init__(self, reader: FileSystemReader, pool_finder: ImagePoolFinder) -> None:
        self.schedule_collectors: Callable[[Vm, Sequence[str]], None] = lambda _vm, _names: None
        self.is_io_suspect: Callable[[Vm], bool] = lambda _vm: False
        self._reader = reader
        self._pool_finder = pool_finder
        self._deferred: dict[Vm, Mounts] = {}
        self._searches: dict[Vm, asyncio.Task[Mounts]] = {}

    async def may_query(self, vm: Vm, pid: int | None) -> bool:
        """Return whether the agent may now send commands that access storage to the VM.

        If not, the gate schedules the collectors that send such commands as soon as the storage answers.
        """
        if self.is_io_suspect(vm):
            self._deferred[vm] = self._pool_finder.image_mounts_of_vm(vm) or {}
            return False
        mounts = self._pool_finder.image_mounts_of_vm(vm)
        if mounts is None:
            mounts = await self._search_mounts(vm, pid)
        if mounts is None:
            return False
        await self._check_mounts(mounts)
        if not self._has_suspect_mount(mounts):
            return True
        self._deferred[vm] = mounts
        return False

    def _has_suspect_mount(self, mounts: Mounts) -> bool:
        return any(map(self._reader.is_mount_suspect, mounts))

    async def _search_mounts(self, vm: Vm, pid: int | None) -> Mounts | None:
        """Return the mounts of the files on a VM's command line. Called before the first query of the VM's images.

        Return None if the search takes longer than `WAIT_SECONDS`.
        """
        if pid is None or vm.has_tcp_monitor:
            return {}  # the VM's storage is unknown, or is on another host
        search = self._searches.get(vm)
        if search is None:
            search = self._searches[vm] = asyncio.create_task(self._mounts_of_process(vm, pid), name="find mounts")
        await asyncio.wait({search}, timeout=WAIT_SECONDS)
        if not search.done():
            search.add_done_callback(lambda _: self._on_mounts_found(vm))
            return None
        self._searches.pop(vm, None)
        return search.result()

    async def _mounts_of_process(self, vm: Vm, pid: int) -> Mounts:
        try:
            return await self._locate_mounts(vm, pid)
        except Exception:  # noqa: BLE001 - a bug must not end the session
            _log.exception("%s: internal error while searching for the mounts of the VM's images", vm.name)
            return {}

    async def _locate_mounts(self, vm: Vm, pid: int) -> Mounts:
        locations = await self._pool_finder.locate_command_line_files(
            pid, command_line_image_paths(read_command_line(pid))
        )
        mounts = {location.mount.device: location.directory for location in locations if location.mount is not None}
        if self._has_suspect_mount(mounts):
            self._pool_finder.set_image_locations_until_polled(vm, locations)
        return mounts

    def _on_mounts_found(self, vm: Vm) -> None:
        search = self._searches.pop(vm, None)
        if search is None or search.cancelled():
            return
        mounts = search.result()
        if self._has_suspect_mount(mounts):
            self._deferred[vm] = mounts
        else:
            self.schedule_collectors(vm, DEFERRED_COLLECTORS)

    async def _check_mounts(self, mounts: Mounts) -> None:
        """Call statvfs on each mount without an answer in the last `FRESH_SECONDS`. Wait at most `WAIT_SECONDS` for the answers."""
        unchecked = [mount for mount in mounts if self._reader.seconds_since_mount_answered(mount) > FRESH_SECONDS]
        checks = {
            asyncio.create_task(self._check_mount(mounts[mount], mount))
            for mount in unchecked
            if mounts[mount] and not self._reader.is_mount_suspect(mount)
        }
        if checks:
            await asyncio.wait(checks, timeout=WAIT_SECONDS)

    async def _check_mount(self, directory: str, mount: str) -> None:
        with contextlib.suppress(PoolReadError):
            await self._reader.statvfs(directory, mount)

    def schedule_deferred_collectors(self) -> None:
        """Schedule the deferred collectors of each VM whose storage answers again.

        Call this method when the state of a mount changes, and when the disks of a VM no longer seem to hang.
        """
        for vm, mounts in list(self._deferred.items()):
            if not self._has_suspect_mount(mounts) and not self.is_io_suspect(vm):
                del self._deferred[vm]
                self.schedule_collectors(vm, DEFERRED_COLLECTORS)

    def on_detached(self, vm: Vm) -> None:
        """Drop the state of a VM that the agent has detached from."""
        self._deferred.pop(vm, None)
        if (search := self._searches.pop(vm, None)) is not None:
            search.cancel()
