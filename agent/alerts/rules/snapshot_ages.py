"""Ages of external snapshots. A live snapshot adds a new image above the disk's image, and the guest writes to the new image. Pure.

QEMU does not report when an external snapshot was made. So the age counts from when the agent first sees the snapshot. The agent detects a
snapshot when the top image of the previous poll has become a backing image. A backing image at a disk's first poll gets no age, because the
disk may be a linked clone. The ages are stored by the VM's UUID, so the ages survive restarts of the agent and of the VM.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SNAPSHOT_ENTRY_PREFIX = "snapshots/"
"""Prefix of the name of a VM's persistent entry. The VM's UUID follows."""

MAX_VMS = 4096
"""Maximum number of VMs. For each further VM, the agent forgets the VM that was polled longest ago."""
MAX_DISKS = 128
"""Maximum number of disks of a VM, because a malicious QEMU may report any number of names."""
MAX_OVERLAYS = 64
"""Maximum number of snapshots of a disk."""


@dataclass(slots=True)
class DiskSnapshots:
    """The external snapshots of one disk. Paths are stored as digests, because a path may be long.

    Attributes:
        top: Digest of the path of the image that the guest wrote to at the last poll.
        overlays: When each snapshot was first seen, in nanoseconds since the epoch. The key is the digest of the path of the image that the
            snapshot added.
    """

    top: str
    overlays: dict[str, int] = field(default_factory=dict)


class ExternalSnapshotAges:
    """The external snapshots of all VMs."""

    def __init__(self) -> None:
        self._vms: dict[str, dict[str, DiskSnapshots]] = {}  # in the order of their last polls
        self._changed: set[str] = set()
        self._forgotten: list[str] = []

    def on_poll(self, uuid: str, chains: Mapping[str, Sequence[str]], time_ns: int) -> dict[str, int]:
        """Handle a poll of a VM's disks. Return when the oldest snapshot of each disk was first seen.

        Args:
            uuid: The VM's UUID.
            chains: The paths of each disk's images, from the top to the base, by device.
            time_ns: When the query was sent, in nanoseconds since the epoch.

        Returns:
            When the oldest external snapshot of each disk was first seen, by device. A disk without such a snapshot is absent.
        """
        previous_disks, disks = self._vms.pop(uuid, {}), {}
        for device, paths in list(chains.items())[:MAX_DISKS]:
            images = [_hash_path(path) for path in paths]
            disks[device] = _snapshots_after_poll(previous_disks.get(device), images, time_ns)
        if disks != previous_disks:
            self._changed.add(uuid)
        self._vms[uuid] = disks
        if len(self._vms) > MAX_VMS:
            oldest = next(iter(self._vms))
            del self._vms[oldest]
            self._forgotten.append(oldest)
        return {device: min(disk.overlays.values()) for device, disk in disks.items() if disk.overlays}

    def entries_to_store(self) -> Iterator[tuple[str, Any]]:
        """Yield the name and the value of each persistent entry to store now. The value None deletes a stored entry."""
        changed, self._changed = self._changed, set()
        forgotten, self._forgotten = self._forgotten, []
        yield from ((SNAPSHOT_ENTRY_PREFIX + uuid, None) for uuid in forgotten)
        for uuid in sorted(changed & self._vms.keys()):
            disks = {device: [disk.top, disk.overlays] for device, disk in self._vms[uuid].items()}
            yield SNAPSHOT_ENTRY_PREFIX + uuid, disks or None

    def restore(self, uuid: str, stored: object) -> None:
        """Restore a VM's snapshots from the value that an earlier run stored. Ignore invalid values."""
        disks = {}
        for device, value in list(stored.items())[:MAX_DISKS] if isinstance(stored, dict) else ():
            match value:
                case [str(top_image), dict(overlays)]:
                    first_seen_ns = {str(image): ns for image, ns in overlays.items() if type(ns) is int and ns > 0}
                    disks[str(device)] = DiskSnapshots(top_image, dict(list(first_seen_ns.items())[:MAX_OVERLAYS]))
        if disks:
            self._vms[uuid] = disks


def _snapshots_after_poll(previous: DiskSnapshots | None, images: Sequence[str], time_ns: int) -> DiskSnapshots:
    """Return the snapshots of a disk after a poll that showed these images, from the top to the base."""
    top_image, backing_images = images[0], images[1:]
    images_above_base = images[:-1]
    overlays = (
        {image: ns for image, ns in previous.overlays.items() if image in images_above_base}
        if previous is not None
        else {}
    )
    if previous is not None and previous.top in backing_images:
        for image in images[: images.index(previous.top)]:
            if len(overlays) < MAX_OVERLAYS:
                overlays.setdefault(image, time_ns)
    return DiskSnapshots(top_image, overlays)


def _hash_path(path: str) -> str:
    return hashlib.blake2b(path.encode("utf-8", "replace"), digest_size=8).hexdigest()
