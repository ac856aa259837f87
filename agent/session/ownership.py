"""Which of several ways to one VM watches it. Pure, but for the events that the watches wait for."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.monitors import MonitorPriority


@dataclass(eq=False, slots=True)
class OwnershipClaim:
    """What one watch knows of the VM that it could watch.

    Attributes:
        uuid: the VM's UUID.
        pid: its QEMU's process on this host, where that is known.
        rank: how good this way to it is.
        name: the monitor's, for people.
        make_way: called once when a better way was found; the watch then ends what it does and releases the claim.
        released: done when it is held no longer.
    """

    uuid: str
    pid: int | None
    rank: MonitorPriority
    name: str
    make_way: Callable[[], None]
    released: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def same_vm(self, other: "OwnershipClaim") -> bool:
        """Return whether both are ways to one VM.

        One process is one VM. Where a process is not known, one UUID is one VM if the ways differ in rank; over two ways of one rank
        it is rather a migration within the host, which has two VMs of one UUID.
        """
        if self.pid is not None and other.pid is not None:
            return self.pid == other.pid
        return self.uuid == other.uuid and self.rank != other.rank


class OwnershipRegistry:
    """The claims that are held: for each VM one, the best."""

    def __init__(self) -> None:
        self._held: dict[str | int, list[OwnershipClaim]] = {}  # by process and by UUID

    async def take(self, claim: OwnershipClaim) -> OwnershipClaim | None:
        """Hold a claim, after worse ones have made way; or return the one that is as good or better, to be waited for."""
        while rivals := [held for key in _keys(claim) for held in self._held.get(key, ()) if claim.same_vm(held)]:
            for rival in rivals:
                if rival.rank <= claim.rank:
                    return rival
                rival.make_way()
            await asyncio.wait({rivals[0].released})
        for key in _keys(claim):
            self._held.setdefault(key, []).append(claim)
        return None

    def release(self, claim: OwnershipClaim) -> None:
        """Let a claim go, if it is held, and have those who wait for it try."""
        for key in _keys(claim):
            held = [other for other in self._held.pop(key, ()) if other is not claim]
            if held:
                self._held[key] = held
        if not claim.released.done():
            claim.released.set_result(None)


def _keys(claim: OwnershipClaim) -> tuple[str | int, ...]:
    return (claim.uuid,) if claim.pid is None else (claim.uuid, claim.pid)
