"""Current size of a block device. QEMU knows only the size at the time when it opened the device.

After a logical volume is extended, `query-named-block-nodes` still reports the old size. After a write beyond that size, it reports the end
of the last write as the size (seen on 7.2), so that the volume always looks full.
"""

import os
import stat
from pathlib import Path

_SECTOR_BYTES = 512


def device_size(path: str) -> int | None:
    """Return the size of a block device in bytes, without opening it.

    Args:
        path: the path that QEMU reports. A path outside /dev is ignored: it may be on a hung mount, which would block the agent.

    Returns:
        None if there is no such device, as in a container.
    """
    if not path.startswith("/dev/") or os.path.normpath(path) != path:
        return None
    try:
        status = Path(path).stat()
        if not stat.S_ISBLK(status.st_mode):
            return None
        number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        return int(Path("/sys/dev/block", number, "size").read_text()) * _SECTOR_BYTES or None
    except (OSError, ValueError):
        return None
