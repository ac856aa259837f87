"""The QEMUs that the tests run: the machine's own, and others of Debian's, unpacked beside it and never installed.

`python -m tests.lab.qemus` fetches them ahead of time.
"""

import os
import re
import shutil
import sys
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Final

from agent.cli.demo.images import LabMissing, cache_folder, kept, output
from tests.lab.machine import CURE

PROGRAM: Final = "qemu-system-x86_64"

OTHERS: Final = ("trixie", "sid")
"""Debian's releases whose QEMU is run beside the machine's own: 10.0, and the newest."""

_KEYS: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"

_LAUNCHER: Final = f"""\
#!/bin/sh
# By its own loader and libraries: the machine's are older. Its modules are its own too.
root=${{0%/*}}/root
export QEMU_MODULE_DIR="$root/usr/lib/x86_64-linux-gnu/qemu"
exec "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu" \\
    "$root/usr/bin/{PROGRAM}" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
"""


@dataclass(frozen=True, slots=True)
class Qemu:
    """One QEMU.

    Attributes:
        version: such as (10, 0, 13).
        binary: what to run.
    """

    version: tuple[int, int, int]
    binary: str

    def __str__(self) -> str:
        """Name it as people do."""
        return ".".join(map(str, self.version[:2]))


@cache
def qemu_of(release: str = "") -> Qemu:
    """Return the QEMU of a release of Debian's that was fetched; empty: the machine's own.

    Raises:
        LabMissing: there is none, and what helps.
    """
    launcher = cache_folder() / f"qemu-{release}" / PROGRAM
    if release and not launcher.exists():
        raise LabMissing(f"no QEMU of Debian's {release} was fetched: {CURE}")
    return _look(str(launcher) if release else PROGRAM)


def fetch(release: str) -> None:
    """Have a release's QEMU where `qemu_of` looks, which takes a minute and 42 MB to load.

    Needs a Debian for amd64; needs no root and installs nothing. Blocks.

    Raises:
        LabMissing: it cannot be had, and why.
    """
    kept(cache_folder() / f"qemu-{release}", partial(_build, release))


def _build(release: str, scratch: Path) -> None:
    _unpack(release, scratch)
    launcher = scratch / "built" / PROGRAM
    launcher.write_text(_LAUNCHER)
    launcher.chmod(0o755)
    _look(str(launcher))


def _look(binary: str) -> Qemu:
    said = re.match(r"QEMU emulator version (\d+)\.(\d+)\.(\d+)", output(binary, "--version").decode())
    if said is None:
        raise LabMissing(f"{binary} does not tell its version")
    major, minor, micro = map(int, said.groups())
    return Qemu((major, minor, micro), binary)


def _unpack(release: str, scratch: Path) -> None:
    """Unpack a release's QEMU and all that it needs into `built/root`, with apt's state, lists and archives in folders of our own."""
    for folder in ("state/lists/partial", "cache/archives/partial", "etc/parts", "built/root"):
        Path(scratch, folder).mkdir(parents=True)
    Path(scratch, "status").touch()  # nothing is installed: so all that it needs is fetched
    Path(scratch, "etc/sources.list").write_text(f"deb [signed-by={_KEYS}] {_mirror()} {release} main\n")
    places = {
        "Dir::State": "state",
        "Dir::State::status": "status",
        "Dir::Cache": "cache",
        "Dir::Etc": "etc",
        "Dir::Etc::sourcelist": "etc/sources.list",
        "Dir::Etc::sourceparts": "etc/parts",
        "Dir::Etc::preferencesparts": "etc/parts",
    }
    settings = [f"{name}={scratch / place}" for name, place in places.items()]
    settings += ["APT::Sandbox::User=", "APT::Update::Error-Mode=any", "Acquire::Languages=none"]
    apt = ("apt-get", "-qq", *(word for setting in settings for word in ("-o", setting)))
    output(*apt, "update")
    wanted = ("--no-install-recommends", "--download-only", "-y", "qemu-system-x86")
    output(*apt, "install", *wanted)
    for package in sorted(Path(scratch, "cache/archives").glob("*.deb")):
        output("dpkg-deb", "-x", os.fspath(package), os.fspath(scratch / "built/root"))
    for unused in ("usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(scratch / "built/root" / unused, ignore_errors=True)


def _mirror() -> str:
    """Return where this machine has its Debian from."""
    wanted = ("Created-By: Packages", "Origin: Debian", "Label: Debian")
    found = output("apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted).decode()
    if not found:
        raise LabMissing("apt knows of no Debian: run 'apt-get update' as root")
    return found.split()[0]


if __name__ == "__main__":
    for name in OTHERS:
        try:
            fetch(name)
            sys.stdout.write(f"QEMU {qemu_of(name)} of Debian's {name} is there\n")
        except LabMissing as missing:
            sys.stdout.write(f"without the QEMU of Debian's {name}, whose tests are skipped: {missing}\n")
