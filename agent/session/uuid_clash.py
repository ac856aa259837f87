"""Detection of VMs that run with the same UUID, such as clones. Pure: time is an argument."""

import logging
from collections.abc import Mapping, Sequence

from agent.session.ownership import OwnershipClaim

_log = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
"""How long several VMs have to run with one UUID before it is a clash. In a migration within the host, both run for a shorter time."""


class UuidClashDetector:
    """Detects VMs that run with the same UUID. Calls `on_clash` of all claims on such VMs, when the clash begins, changes and ends."""

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self._grace_seconds = grace_seconds
        self._since: dict[str, float] = {}
        self._reported: dict[str, Sequence[OwnershipClaim]] = {}

    @property
    def active(self) -> bool:
        """True while a clash is suspected or reported."""
        return bool(self._since or self._reported)

    def update(self, shared: Mapping[str, Sequence[OwnershipClaim]], now: float) -> None:
        """Report the clashes that have begun or ended.

        Args:
            shared: the claims on running VMs by UUID, for each UUID that several running VMs have.
            now: the current time, in seconds on the monotonic clock.
        """
        self._since = {uuid: self._since.get(uuid, now) for uuid in shared}
        clashes = {uuid: shared[uuid] for uuid, since in self._since.items() if now - since >= self._grace_seconds}
        for uuid, claims in self._reported.items():
            for claim in claims:
                if claim not in clashes.get(uuid, ()):
                    claim.on_clash(())
            if uuid not in clashes:
                _log.info("UUID clash: ended: at most one VM runs with UUID %s", uuid)
        for uuid, claims in clashes.items():
            names = tuple(sorted(claim.name for claim in claims))
            if uuid not in self._reported:
                _log.warning("UUID clash: %s: several VMs run with UUID %s", ", ".join(names), uuid)
            for claim in claims:
                claim.on_clash(names)
        self._reported = clashes
