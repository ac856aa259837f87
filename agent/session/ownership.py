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
        priority: priority of the monitor; a lower value is better.
        name: the monitor's name, for people.
        runs: returns whether the VM runs in this process and is not migrating in or out.
        on_clash: called with the names of all monitors whose VMs run with this UUID; called with no names when the clash ends.
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

        If both pids are known, the pids decide. Otherwise claims with one UUID are for one VM if their priorities differ.
        If the priorities are equal, a migration within this host is more likely: it has two VMs with one UUID.
        """
        if self.pid is not None and other.pid is not None:
            return self.pid == other.pid
        return self.uuid == other.uuid and self.priority != other.priority


class OwnershipRegistry:
    """Decides which session watches a VM: the one whose claim has the best priority holds the VM."""

    def __init__(self, on_shared_uuid: Callable[[], None] = lambda: None) -> None:
        """Create an empty registry.

        Args:
            on_shared_uuid: called when a VM is added that has the UUID of another VM.
        """
        self._held: dict[str | int, list[OwnershipClaim]] = {}  # by pid and by UUID
        self._shared: set[str] = set()
        self._on_shared_uuid = on_shared_uuid

    def shared(self) -> dict[str, list[OwnershipClaim]]:
        """Return, for each UUID that several running VMs have, the claims on these VMs."""
        running = {uuid: [claim for claim in self._held[uuid] if claim.runs()] for uuid in sorted(self._shared)}
        return {uuid: claims for uuid, claims in running.items() if len(claims) > 1}

    @property
    def has_shared_uuid(self) -> bool:
        """True if any two VMs have one UUID."""
        return bool(self._shared)

    async def take(self, claim: OwnershipClaim) -> OwnershipClaim | None:
        """Hold a claim after preempting worse ones.

        Returns:
            None if the claim is held now. Otherwise the claim with equal or better priority that the caller has to wait for.
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
