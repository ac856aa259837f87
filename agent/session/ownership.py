"""Election of one monitor for each VM when several monitors reach it. Pure, except for the futures that supervisors wait for."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.monitors import MonitorPriority


@dataclass(eq=False, slots=True)
class OwnershipClaim:
    """One supervisor's claim on a VM.

    Attributes:
        uuid: the VM's UUID.
        pid: pid of its QEMU on this host, or None if unknown.
        rank: priority of the monitor; a lower value is better.
        name: the monitor's name, for people.
        runs: returns whether the VM runs in this process, and not on its way in or out by migration.
        on_clash: called with the names of all monitors whose VMs run with this UUID, and with none when that ends.
        preempt: called once when a better monitor claims the VM; the supervisor then ends its session and releases the claim.
        released: done when the claim is no longer held.
    """

    uuid: str
    pid: int | None
    priority: MonitorPriority
    name: str
    preempt: Callable[[], None]
    runs: Callable[[], bool] = lambda: True
    on_clash: Callable[[tuple[str, ...]], None] = lambda _names: None
    released: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def same_vm(self, other: "OwnershipClaim") -> bool:
        """Return whether both claims are for one VM.

        Two known processes are compared by pid. Otherwise one UUID is one VM if the monitors differ in priority.
        With equal priority, one UUID is more likely a migration within this host, which has two VMs of one UUID.
        """
        if self.pid is not None and other.pid is not None:
            return self.pid == other.pid
        return self.uuid == other.uuid and self.priority != other.priority


class OwnershipRegistry:
    """The claims that are held: the best one for each VM."""

    def __init__(self, on_shared_uuid: Callable[[], None] = lambda: None) -> None:
        """Create an empty registry.

        Args:
            on_shared_uuid: called when a second VM has the UUID of another.
        """
        self._held: dict[str | int, list[OwnershipClaim]] = {}  # by pid and by UUID
        self._shared: set[str] = set()
        self._on_shared_uuid = on_shared_uuid

    def shared(self) -> dict[str, list[OwnershipClaim]]:
        """Return the claims of VMs that run, for each UUID that more than one of them has."""
        running = {uuid: [claim for claim in self._held[uuid] if claim.runs()] for uuid in sorted(self._shared)}
        return {uuid: claims for uuid, claims in running.items() if len(claims) > 1}

    @property
    def has_shared_uuid(self) -> bool:
        """True if any two VMs have one UUID."""
        return bool(self._shared)

    async def take(self, claim: OwnershipClaim) -> OwnershipClaim | None:
        """Hold a claim after preempting worse ones.

        Returns:
            None if the claim is held now; otherwise the claim that is as good or better, for the caller to wait for.
        """
        while rivals := [held for key in _keys(claim) for held in self._held.get(key, ()) if claim.same_vm(held)]:
            for rival in rivals:
                if rival.priority <= claim.priority:
                    return rival
                rival.preempt()
            await asyncio.wait({rivals[0].released})
        for key in _keys(claim):
            self._held.setdefault(key, []).append(claim)
        if len(self._held[claim.uuid]) > 1:
            self._shared.add(claim.uuid)
            self._on_shared_uuid()
        return None

    def release(self, claim: OwnershipClaim) -> None:
        """Release a claim, if it is held, and wake those that wait for it."""
        for key in _keys(claim):
            remaining = [other for other in self._held.pop(key, ()) if other is not claim]
            if remaining:
                self._held[key] = remaining
        if len(self._held.get(claim.uuid, ())) < 2:
            self._shared.discard(claim.uuid)
        if not claim.released.done():
            claim.released.set_result(None)


def _keys(claim: OwnershipClaim) -> tuple[str | int, ...]:
    return (claim.uuid,) if claim.pid is None else (claim.uuid, claim.pid)
