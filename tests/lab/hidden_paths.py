"""Paths of the checkout and the interpreter that only root can reach, and a mount namespace in which other users reach them."""

import shlex
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
"""The checkout."""


def hidden_paths() -> dict[Path, Path]:
    """Return the paths that the agent's program needs but its user cannot reach, each with the ancestor that only root may enter.

    Such an ancestor is /root, for example, with the checkout or the interpreter below it.
    """
    hidden = {}
    for path in {ROOT, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}:
        closed = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & stat.S_IXOTH]
        if closed:
            hidden[path] = closed[0]
    return hidden


def reveal(hidden: Mapping[Path, Path], mounts: Path) -> str:
    """Return shell commands that make hidden paths reachable in a mount namespace, and nothing else of their ancestors.

    Args:
        hidden: The paths, each with the ancestor to replace by an empty directory.
        mounts: Directory for mount points.
    """
    commands = ["trap 'exit 77' ERR"]
    for number, path in enumerate(hidden):
        commands += [f"mkdir -p {mounts}/{number}", f"mount --bind {shlex.quote(str(path))} {mounts}/{number}"]
    commands += [f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(closed))}" for closed in {*hidden.values()}]
    for number, path in enumerate(hidden):
        quoted = shlex.quote(str(path))
        commands += [f"mkdir -p {quoted}", f"mount --bind {mounts}/{number} {quoted}"]
    return "\n".join([*commands, "trap - ERR"])
