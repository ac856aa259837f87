"""Decides whether commands that access storage may be sent to a VM: only while the storage of its images answers.

QEMU waits for storage in its main loop, with the lock that the guest needs too. On hung storage, such a command stops the guest.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence

from agent.app.pool_placement import PoolPlacement
from agent.host.filesystem_reader import SLOW_SECONDS, FileSystemReader
from agent.host.pools.base import PoolReadError
from agent.host.qemu_processes import command_line
from agent.host.storage_paths import image_paths
from agent.model.record import Vm

_log = logging.getLogger("agent")

FRESH_SECONDS = 1.0
"""How long an answer of a file system counts. Many VMs are polled within a second."""

PATIENCE_SECONDS = SLOW_SECONDS + 0.1
"""How long a VM's poll waits for the answer of its file systems."""

DEFERRED_COLLECTORS = ("nodes", "drives")


Mounts = Mapping[str, str]
"""A directory on each mount, by the mount's device."""


class StorageGate:
    """The gate of all VMs.

    Attributes:
        demand: makes collectors of a VM due now; set by the agent.
    """

    def __init__(self, reader: FileSystemReader, placement: PoolPlacement) -> None:
        self.demand: Callable[[Vm, Sequence[str]], None] = lambda _vm, _names: None
        self._reader = reader
        self._placement = placement
        self._deferred: dict[Vm, Mounts] = {}
        self._searches: dict[Vm, asyncio.Task[Mounts]] = {}

    async def may_query(self, vm: Vm, pid: int | None) -> bool:
        """Return whether commands that access the storage of this VM may be sent now."""
        mounts = self._placement.mounts_of(vm)
        if mounts is None:
            mounts = await self._search(vm, pid)
        if mounts is None:
            return False
        await self._ask(mounts)
        if not self._is_suspect(mounts):
            return True
        self._deferred[vm] = mounts
        return False

    def _is_suspect(self, mounts: Mounts) -> bool:
        return any(map(self._reader.is_suspect, mounts))

    async def _search(self, vm: Vm, pid: int | None) -> Mounts | None:
        """Return the mounts of the files on a VM's command line: QEMU itself was not asked yet. None if that takes longer."""
        if pid is None or vm.monitor.startswith("tcp:"):
            return {}  # its storage is unknown, or not on this host
        search = self._searches.get(vm)
        if search is None:
            search = self._searches[vm] = asyncio.create_task(self._mounts_of_process(vm, pid), name="find mounts")
        await asyncio.wait({search}, timeout=PATIENCE_SECONDS)
        if not search.done():
            search.add_done_callback(lambda _: self._on_found(vm))
            return None
        self._searches.pop(vm, None)
        return search.result()

    async def _mounts_of_process(self, vm: Vm, pid: int) -> Mounts:
        try:
            return await self._locate_mounts(vm, pid)
        except Exception:  # noqa: BLE001 - a bug must not end the session
            _log.exception("%s: mounts: internal error", vm.name)
            return {}

    async def _locate_mounts(self, vm: Vm, pid: int) -> Mounts:
        locations = await self._placement.locate_paths(pid, image_paths(command_line(pid)))
        mounts = {location.mount.device: location.directory for location in locations if location.mount is not None}
        if self._is_suspect(mounts):
            self._placement.place_paths(vm, locations)
        return mounts

    def _on_found(self, vm: Vm) -> None:
        search = self._searches.pop(vm, None)
        if search is None or search.cancelled():
            return
        mounts = search.result()
        if self._is_suspect(mounts):
            self._deferred[vm] = mounts
        else:
            self.demand(vm, DEFERRED_COLLECTORS)

    async def _ask(self, mounts: Mounts) -> None:
        """Ask the mounts that have not answered within the last second, and wait for the answers for a short time."""
        old = [mount for mount in mounts if self._reader.answered_seconds_ago(mount) > FRESH_SECONDS]
        asking = {
            asyncio.create_task(self._ask_mount(mounts[mount], mount))
            for mount in old
            if mounts[mount] and not self._reader.is_suspect(mount)
        }
        if asking:
            await asyncio.wait(asking, timeout=PATIENCE_SECONDS)

    async def _ask_mount(self, directory: str, mount: str) -> None:
        with contextlib.suppress(PoolReadError):
            await self._reader.statvfs(directory, mount)

    def on_change(self) -> None:
        """Let the deferred collectors of VMs run whose storage answers again."""
        for vm, mounts in list(self._deferred.items()):
            if not self._is_suspect(mounts):
                del self._deferred[vm]
                self.demand(vm, DEFERRED_COLLECTORS)

    def on_detached(self, vm: Vm) -> None:
        """Handle a VM that is no longer attached."""
        self._deferred.pop(vm, None)
        if (search := self._searches.pop(vm, None)) is not None:
            search.cancel()
