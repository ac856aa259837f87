"""The highest write offset of each disk image, by the image's path. Pure.

QEMU resets the highest write offset of an image to 0 at each opening of the image, although the image keeps its data. So the agent keeps
the offset when a VM is powered off, when a disk is unplugged and when the agent restarts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from agent.alerts.disk_levels import MAX_SIZE_BYTES
from agent.alerts.disk_threshold_types import may_be_same_device

MAX_IMAGES = 16384
"""Maximum number of images. If more images are known, the agent removes the image that was polled longest ago."""
PERSIST_GROWTH_DIVISOR = 256
"""The offset is stored again after a growth of more than the image's size divided by `PERSIST_GROWTH_DIVISOR`."""


class ImageKey(NamedTuple):
    """Identity of an image.

    Attributes:
        path: The path of the image's file or device.
        size: The image's virtual size in bytes. If the size at a path changes, the path has another image.
        identity: The identity of the device at the path; empty if unknown. If the identity changes, the path has another image.
    """

    path: str
    size: int
    identity: str = ""


@dataclass(slots=True)
class HighestWrite:
    """The highest write offset of one image.

    Attributes:
        size, identity: Size and device identity of the image; see `ImageKey`.
        offset: The highest write offset that was ever polled, in bytes.
        persisted_offset: The offset in the image's persistent entry; 0 if no entry is stored.
    """

    size: int
    identity: str
    offset: int
    persisted_offset: int = 0

    def matches_image(self, image: ImageKey) -> bool:
        """Return whether this offset belongs to the image: the sizes are equal, and the identities are equal or unknown."""
        return self.size == image.size and may_be_same_device(self.identity, image.identity)


class HighestWriteStore:
    """The highest write offsets of all images."""

    def __init__(self) -> None:
        self._by_path: dict[str, HighestWrite] = {}  # in the order of their last polls
        self._forgotten_paths: list[str] = []

    def offset_of(self, image: ImageKey) -> int:
        """Return the highest write offset of an image; 0 if the image is unknown."""
        write = self._by_path.get(image.path)
        return write.offset if write is not None and write.matches_image(image) else 0

    def update_highest_offset(self, image: ImageKey, offset: int) -> None:
        """Store the highest write offset of an image, unless a higher offset is stored already."""
        if not image.path or not offset:
            return
        write = self._by_path.pop(image.path, None)
        if write is None or not write.matches_image(image):
            write = HighestWrite(image.size, image.identity, 0)
        write.offset, write.identity = max(write.offset, offset), image.identity or write.identity
        self._by_path[image.path] = write
        while len(self._by_path) > MAX_IMAGES:
            oldest_path = next(iter(self._by_path))
            if self._by_path.pop(oldest_path).persisted_offset:
                self._forgotten_paths.append(oldest_path)

    def entries_to_store(self) -> Iterator[tuple[str, Any]]:
        """Yield the path and the value of each image whose persistent entry must be stored now. The value None deletes the entry."""
        forgotten_paths, self._forgotten_paths = self._forgotten_paths, []
        yield from ((path, None) for path in forgotten_paths)
        for path, write in self._by_path.items():
            grown = write.offset - write.persisted_offset
            if grown > write.size // PERSIST_GROWTH_DIVISOR or not write.persisted_offset:
                write.persisted_offset = write.offset
                yield path, [write.size, write.offset, write.identity]

    def restore(self, path: str, stored: object) -> None:
        """Restore an image from the value that an earlier run stored. Ignore an invalid value."""
        match stored:
            case [int(size), int(offset), str(identity)] if 0 < offset <= MAX_SIZE_BYTES and size >= 0:
                self._by_path[path] = HighestWrite(size, identity, offset, persisted_offset=offset)
