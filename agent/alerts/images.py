"""The highest write to each disk image, by path. Pure.

QEMU counts the highest write from 0 again whenever it opens an image, although the image keeps its data. The agent therefore remembers
it, across a power cycle of the VM, an unplugged disk and a restart of the agent.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agent.alerts.levels import MAX_BYTES

MAX_IMAGES = 16384
"""Number of images that are remembered. Beyond it, the image seen longest ago is forgotten."""
PERSIST_SHARE = 256
"""An image is persisted again when its highest write has grown by more than its size divided by this number."""


@dataclass(slots=True)
class ImageState:
    """The highest write to an image.

    Attributes:
        size: The image's virtual size, in bytes. Another size at the same path is another image.
        offset: End of the highest write ever seen, in bytes.
        persisted: The offset in the image's note; 0 if there is no note.
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
        """Return the end of the highest write ever seen to an image; 0 if the image is unknown."""
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
        """Yield the path and the note of each image whose note has to be stored now; None instead of a note deletes the stored one."""
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
