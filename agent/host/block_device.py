"""What the host knows of a block device, and QEMU does not: how large it is now.

QEMU asks a device for its size when it opens it. A logical volume that is extended under it stays as it was in `query-named-block-nodes`,
and once a write lands past that, its size is where the last write ended (seen on 7.2), so that it looks full for ever.
"""

import os
import stat
from pathlib import Path

_SECTOR_BYTES = 512


def device_size(path: str) -> int | None:
    """Return the size of a block device in bytes, without opening it; None where there is none, as in a container.

    The path is QEMU's word: one that leads out of /dev could lie on a mount that hangs, and whoever looks at it then hangs too.
    """
    if not path.startswith("/dev/") or os.path.normpath(path) != path:
        return None
    try:
        found = Path(path).stat()
        if not stat.S_ISBLK(found.st_mode):
            return None
        number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
        return int(Path("/sys/dev/block", number, "size").read_text()) * _SECTOR_BYTES or None
    except (OSError, ValueError):
        return None
