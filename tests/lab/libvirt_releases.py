"""libvirtd of newer Debian releases, downloaded and unpacked but not installed. `python -m tests.lab.libvirt_releases` downloads it."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Final

from agent.cli.demo.images import MissingDependencyError, build_directory_once, cache_directory, run_program
from tests.lab.debian_release import unpack
from tests.lab.machine import INSTALL_HINT

RELEASES: Final = ("trixie",)
"""Debian releases whose libvirtd the tests run beside the machine's own: 11.3, the first with the load of a guest."""

_LAUNCHER: Final = """\
#!/bin/sh
# Use the loader, libraries and drivers of its own release: the machine's are older.
root=${0%/*}/root
export LIBVIRT_DRIVER_DIR="$root/usr/lib/x86_64-linux-gnu/libvirt/connection-driver"
exec "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu" \\
    "$root/usr/sbin/libvirtd" "$@"
"""


def find_libvirtd(release: str) -> Path:
    """Return the directory of the libvirtd of a Debian release: the program `libvirtd`, and the package's files in `root`.

    Raises:
        MissingDependencyError: it was not fetched; the message says how to do it.
    """
    folder = cache_directory() / f"libvirt-{release}"
    if not folder.exists():
        raise MissingDependencyError(f"libvirtd of Debian {release} was not fetched: {INSTALL_HINT}")
    return folder


def _build(release: str, scratch: Path) -> None:
    unpack(release, ("libvirt-daemon", "libvirt-daemon-driver-qemu"), scratch)
    launcher = scratch / "built" / "libvirtd"
    launcher.write_text(_LAUNCHER)
    launcher.chmod(0o755)
    run_program(os.fspath(launcher), "--version")


if __name__ == "__main__":
    for name in RELEASES:
        try:
            build_directory_once(cache_directory() / f"libvirt-{name}", partial(_build, name))
            sys.stdout.write(f"libvirtd of Debian {name} is ready\n")
        except MissingDependencyError as missing:
            sys.stdout.write(f"libvirtd of Debian {name} is not available, its tests are skipped: {missing}\n")
