"""Current size of a block device, from sysfs. QEMU reports the size that the device had when QEMU opened it.

After a logical volume is extended, `query-named-block-nodes` still reports the old size. After a write beyond the old size,
`query-named-block-nodes` reports the end of this write as the size (seen on 7.2). The volume then always looks full.
"""

import os
import stat
from pathlib import Path

_SECTOR_BYTES = 512


def device_size(path: str) -> int | None:
    """Return the size of a block device in bytes, without opening it.

    Args:
        path: the path that QEMU reports. A path outside /dev is ignored, because it may be on a hung mount and block the agent.

    Returns:
        None if the path is ignored, or is not a block device that the agent can see. In a container the agent may see no devices.
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
