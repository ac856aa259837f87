"""Modules of an unpacked Debian kernel, for the initramfs of a guest."""

import lzma
import re
from collections.abc import Iterable, Iterator
from pathlib import Path


def module_content(path: Path) -> bytes:
    """Return the content of a module's file, decompressed."""
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def module_files(root: Path, modules: Iterable[str]) -> Iterator[Path]:
    """Yield the files of kernel modules and of virtio over PCI, with those that they depend on, in loading order.

    Args:
        root: directory of the unpacked kernel package.
        modules: names of the modules. A module without a file is part of the kernel.
    """
    paths = (path for path in root.rglob("*.ko*") if re.fullmatch(r"[\w-]+\.ko(\.xz)?", path.name))
    files = {_plain(path.name.partition(".")[0]): path for path in paths}
    loaded = set()

    def load(name: str) -> Iterator[Path]:
        if name in loaded or name not in files:
            return
        loaded.add(name)
        needs = re.search(rb"\0depends=([^\0]*)\0", module_content(files[name]))
        for needed in needs[1].decode().split(",") if needs else ():
            yield from load(_plain(needed))
        yield files[name]

    for name in ("virtio-pci", *modules):
        yield from load(_plain(name))


def _plain(name: str) -> str:
    """Return a module's name with hyphens. The kernel uses both forms."""
    return name.replace("_", "-")
