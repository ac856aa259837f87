"""Default paths on the host."""

from pathlib import Path
from typing import Final

CONFIG_PATH: Final = Path("/etc/qmp-agent/agent.yaml")


def may_exist(path: Path) -> bool:
    """Return whether a file exists, or this user may not know because a directory is closed to the user."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True
