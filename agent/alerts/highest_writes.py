"""The highest write offset of each disk image, by the image's path. Pure.

QEMU resets an image's highest write offset to 0 whenever it opens the image, although the image keeps its data. The agent therefore
keeps the offset when a VM is powered off, when a disk is unplugged and when the agent restarts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agent.alerts.levels import MAX_BYTES

MAX_IMAGES = 16384
"""Maximum number of images. Beyond it, the agent forgets the image that it polled longest ago."""
PERSIST_GROWTH_DIVISOR = 256
"""The agent persists an offset again after it has grown by more than the image's size divided by this number."""


@dataclass(slots=True)
class HighestWrite:
    """The highest write offset of one image.

    Attributes:
        size: The image's virtual size in bytes. If the size at a path changes, the path has another image.
        offset: The highest write offset that was ever polled, in bytes.
        persisted_offset: The offset in the image's stored note; 0 if no note is stored.
    """

    size: int
    offset: int
    persisted_offset: int = 0


class HighestWriteStore:
    """The highest write offsets of all images."""

    def __init__(self) -> None:
        self._by_path: dict[str, HighestWrite] = {}  # the image that was polled last is the last entry
        self._forgotten_paths: list[str] = []

    def offset_of(self, path: str, size: int) -> int:
        """Return the highest write offset of the image with this path and size; 0 if the image is unknown."""
        write = self._by_path.get(path)
        return write.offset if write is not None and write.size == size else 0

    def raise_offset(self, path: str, size: int, offset: int) -> None:
        """Store the highest write offset of an image, unless a higher offset is stored already."""
        if not path or not offset:
            return
        write = self._by_path.pop(path, None)
        if write is None or write.size != size:
            write = HighestWrite(size, 0)
        write.offset = max(write.offset, offset)
        self._by_path[path] = write
        while len(self._by_path) > MAX_IMAGES:
            oldest_path = next(iter(self._by_path))
            if self._by_path.pop(oldest_path).persisted_offset:
                self._forgotten_paths.append(oldest_path)

    def notes_due(self) -> Iterator[tuple[str, Any]]:
        """Yield the path and the note of each image whose note has to be stored now. The note None deletes a stored note."""
        forgotten_paths, self._forgotten_paths = self._forgotten_paths, []
        yield from ((path, None) for path in forgotten_paths)
        for path, write in self._by_path.items():
            grown = write.offset - write.persisted_offset
            if grown > write.size // PERSIST_GROWTH_DIVISOR or not write.persisted_offset:
                write.persisted_offset = write.offset
                yield path, [write.size, write.offset]

    def restore(self, path: str, note: object) -> None:
        """Restore an image from the note that an earlier run stored. An invalid note is ignored."""
        match note:
            case [int(size), int(offset)] if 0 < offset <= MAX_BYTES and size >= 0:
                self._by_path[path] = HighestWrite(size, offset, persisted_offset=offset)
