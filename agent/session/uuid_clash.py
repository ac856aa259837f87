"""Detection of VMs that run with the same UUID, such as clones. Pure: time is an argument."""

import logging
from collections.abc import Mapping, Sequence

from agent.session.ownership import OwnershipClaim

_log = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
"""Time for which two VMs must run with one UUID before it is a clash. A migration within the host takes less."""


class UuidClashDetector:
    """Detects clashes of UUIDs, and reports each clash to all claims on its VMs."""

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
            shared: for each UUID that several running VMs have, the claims on these VMs.
            now: the current time, in seconds on the monotonic clock.
        """
        self._since = {uuid: self._since.get(uuid, now) for uuid in shared}
        clashes = {uuid: shared[uuid] for uuid, since in self._since.items() if now - since >= self._grace_seconds}
        for uuid, claims in self._reported.items():
            for claim in claims:
                if claim not in clashes.get(uuid, ()):
                    claim.on_clash(())
            if uuid not in clashes:
                _log.info("UUID clash ended: %s", uuid)
        for uuid, claims in clashes.items():
            names = tuple(sorted(claim.name for claim in claims))
            if uuid not in self._reported:
                _log.warning("UUID clash: %s: several VMs run with UUID %s", ", ".join(names), uuid)
            for claim in claims:
                claim.on_clash(names)
        self._reported = clashes
