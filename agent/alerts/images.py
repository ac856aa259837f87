"""Known state of disk images, by path. Pure.

QEMU counts the highest write to an image from 0 whenever it opens the image. The state seen before outlives a power cycle of the VM, an
unplugged disk and a restart of the agent, because the image keeps what was written.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agent.alerts.levels import MAX_BYTES

MAX_IMAGES = 16384
"""Images that are remembered; past it, the one that was seen longest ago is forgotten."""
PERSIST_SHARE = 256
"""An image is persisted again when it was written further by its size divided by this."""


@dataclass(slots=True)
class ImageState:
    """An image.

    Attributes:
        size: Its virtual size, in bytes. Another size at the same path is another image.
        offset: End of the highest write ever seen.
        persisted: The offset in its note; 0 where there is none.
    """

    size: int
    offset: int
    persisted: int = 0


class ImageMemory:
    """Images by path, the one seen last at the end."""

    def __init__(self) -> None:
        self._images: dict[str, ImageState] = {}
        self._forgotten: list[str] = []

    def recall(self, path: str, size: int) -> int:
        """Return the end of the highest write ever seen to an image; 0 where nothing is known of it."""
        image = self._images.get(path)
        return image.offset if image is not None and image.size == size else 0

    def store(self, path: str, size: int, offset: int) -> None:
        """Store the end of the highest write to an image."""
        if not path or not offset:
            return
        image = self._images.pop(path, None)
        if image is None or image.size != size:
            image = ImageState(size, 0)
        image.offset = max(image.offset, offset)
        self._images[path] = image
        while len(self._images) > MAX_IMAGES:
            oldest = next(iter(self._images))
            if self._images.pop(oldest).persisted:
                self._forgotten.append(oldest)

    def notes_due(self) -> Iterator[tuple[str, Any]]:
        """Yield the path and the note of each image that has to be persisted now; None removes a note."""
        forgotten, self._forgotten = self._forgotten, []
        yield from ((path, None) for path in forgotten)
        for path, image in self._images.items():
            if image.offset - image.persisted > image.size // PERSIST_SHARE or not image.persisted:
                image.persisted = image.offset
                yield path, [image.size, image.offset]

    def restore(self, path: str, note: object) -> None:
        """Restore a note of an earlier run; other values are ignored."""
        match note:
            case [int(size), int(offset)] if 0 < offset <= MAX_BYTES and size >= 0:
                self._images[path] = ImageState(size, offset, persisted=offset)
