"""Choice of one monitor for each VM that is reachable over several monitors. Pure, except for the futures that supervisors wait for."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.monitors import MonitorPriority


@dataclass(eq=False, slots=True)
class OwnershipClaim:
    """The claim of one monitor's supervisor to watch a VM.

    Attributes:
        uuid: the VM's UUID.
        pid: pid of the VM's QEMU on this host; None if unknown.
        priority: priority of the monitor; a lower value is better.
        name: the monitor's name, for people.
        preempt: ends the session; called once, when a monitor of better priority claims the VM. The supervisor then releases the claim.
        released: a future that completes when the claim is released.
    """

    uuid: str
    pid: int | None
    priority: MonitorPriority
    name: str
    preempt: Callable[[], None]
    released: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def is_same_vm(self, other: "OwnershipClaim") -> bool:
        """Return whether both claims are for the same VM.

        If both pids are known, the pids decide. Otherwise, two claims with the same UUID are for the same VM only if their priorities
        differ. Claims with equal priorities are probably for two processes with one UUID, as in a migration within this host.
        """
        if self.pid is not None and other.pid is not None:
            return self.pid == other.pid
        return self.uuid == other.uuid and self.priority != other.priority


class OwnershipRegistry:
    """Decides which monitor's session watches a VM: the session whose claim has the best priority."""

    def __init__(self) -> None:
        self._held: dict[str | int, list[OwnershipClaim]] = {}  # by pid and by UUID

    async def acquire(self, claim: OwnershipClaim) -> OwnershipClaim | None:
        """Preempt the claims of worse priority on the same VM, wait for their release, and acquire the claim.

        Returns:
            None if the claim is acquired. Otherwise, another claim on the VM with equal or better priority. Call `acquire` again when the
            returned claim is released.
        """
        while rivals := [
            held for key in _keys_of_claim(claim) for held in self._held.get(key, ()) if claim.is_same_vm(held)
        ]:
            for rival in rivals:
                if rival.priority <= claim.priority:
                    return rival
                rival.preempt()
            await asyncio.wait({rivals[0].released})
        for key in _keys_of_claim(claim):
            self._held.setdefault(key, []).append(claim)
        return None

    def is_held(self, uuid: str) -> bool:
        """Return whether a session watches a VM with this UUID."""
        return uuid in self._held

    def release(self, claim: OwnershipClaim) -> None:
        """Release a claim, acquired or not, and wake the supervisors that wait for the release."""
        for key in _keys_of_claim(claim):
            remaining = [other for other in self._held.pop(key, ()) if other is not claim]
            if remaining:
                self._held[key] = remaining
        if not claim.released.done():
            claim.released.set_result(None)


def _keys_of_claim(claim: OwnershipClaim) -> tuple[str | int, ...]:
    return (claim.uuid,) if claim.pid is None else (claim.uuid, claim.pid)
