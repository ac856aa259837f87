"""Makes the source tree and the Python interpreter reachable for an unprivileged user, if only root may enter their directories."""

import shlex
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
"""The checkout."""


def hidden_paths() -> dict[Path, Path]:
    """Return the paths that the agent needs and its user cannot reach.

    Each path is paired with its ancestor that only root may enter, such as /root.
    """
    hidden = {}
    for path in {ROOT, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}:
        closed = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & stat.S_IXOTH]
        if closed:
            hidden[path] = closed[0]
    return hidden


def reveal(hidden: Mapping[Path, Path], mounts: Path) -> str:
    """Return shell commands that make hidden paths reachable in a mount namespace. The other content of their ancestors is not visible.

    Args:
        hidden: The paths, each with the ancestor that an empty directory replaces.
        mounts: A directory for mount points.
    """
    commands = ["trap 'exit 77' ERR"]
    for number, path in enumerate(hidden):
        commands += [f"mkdir -p {mounts}/{number}", f"mount --bind {shlex.quote(str(path))} {mounts}/{number}"]
    commands += [f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(closed))}" for closed in {*hidden.values()}]
    for number, path in enumerate(hidden):
        quoted = shlex.quote(str(path))
        commands += [f"mkdir -p {quoted}", f"mount --bind {mounts}/{number} {quoted}"]
    return "\n".join([*commands, "trap - ERR"])
