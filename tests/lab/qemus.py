"""QEMU versions for the tests: the installed version, and the versions of other Debian releases.

These are downloaded and unpacked, but not installed. `python -m tests.lab.qemus` downloads them in advance.
"""

import re
import sys
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Final

from agent.cli.demo.images import MissingDependencyError, build_directory_once, cache_directory, run_program
from tests.lab.debian_release import unpack
from tests.lab.machine import INSTALL_HINT

PROGRAM: Final = "qemu-system-x86_64"

OTHER_RELEASES: Final = ("trixie", "sid")
"""Debian releases whose QEMU the tests run in addition to the installed QEMU: 10.0, and the newest."""

_LAUNCHER: Final = f"""\
#!/bin/sh
# Use the loader, libraries and modules of its own release: the machine's are older.
root=${{0%/*}}/root
export QEMU_MODULE_DIR="$root/usr/lib/x86_64-linux-gnu/qemu"
exec "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu" \\
    "$root/usr/bin/{PROGRAM}" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
"""


@dataclass(frozen=True, slots=True)
class Qemu:
    """A QEMU binary.

    Attributes:
        version: Major, minor and micro version, such as (10, 0, 13).
        binary: The program to run.
    """

    version: tuple[int, int, int]
    binary: str

    def __str__(self) -> str:
        """Return the version as `major.minor`."""
        return ".".join(map(str, self.version[:2]))


@cache
def find_qemu(release: str = "") -> Qemu:
    """Return the downloaded QEMU of a Debian release; for an empty name, the QEMU that this machine has installed.

    Raises:
        MissingDependencyError: The QEMU was not downloaded. The message says how to download it.
    """
    launcher = cache_directory() / f"qemu-{release}" / PROGRAM
    if release and not launcher.exists():
        raise MissingDependencyError(f"QEMU of Debian {release} was not fetched: {INSTALL_HINT}")
    return _inspect(str(launcher) if release else PROGRAM)


def fetch(release: str) -> None:
    """Download the QEMU of a Debian release for `find_qemu`. The download has 42 MB and takes about a minute.

    Needs Debian for amd64. Needs no root and installs nothing. Blocks.

    Raises:
        MissingDependencyError: The QEMU cannot be downloaded. The message has the reason.
    """
    build_directory_once(cache_directory() / f"qemu-{release}", partial(_build, release))


def _build(release: str, scratch: Path) -> None:
    unpack(release, ("qemu-system-x86",), scratch)
    launcher = scratch / "built" / PROGRAM
    launcher.write_text(_LAUNCHER)
    launcher.chmod(0o755)
    _inspect(str(launcher))


def _inspect(binary: str) -> Qemu:
    match = re.match(r"QEMU emulator version (\d+)\.(\d+)\.(\d+)", run_program(binary, "--version").decode())
    if match is None:
        raise MissingDependencyError(f"{binary} --version prints no version")
    major, minor, micro = map(int, match.groups())
    return Qemu((major, minor, micro), binary)


if __name__ == "__main__":
    for name in OTHER_RELEASES:
        try:
            fetch(name)
            sys.stdout.write(f"QEMU {find_qemu(name)} of Debian {name} is ready\n")
        except MissingDependencyError as missing:
            sys.stdout.write(f"QEMU of Debian {name} is not available, its tests are skipped: {missing}\n")
