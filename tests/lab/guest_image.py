"""The Linux guest with the guest agent of another Debian release."""

import re
import shutil
import tempfile
from pathlib import Path

from agent.cli.demo.images import cache_directory, linux_image, run_program
from tests.lab.guest_agent import find_guest_agent

_LIBRARY_FOLDERS = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
_LOADER = "usr/lib64/ld-linux-x86-64.so.2"


def guest_agent_initramfs(release: str) -> bytes:
    """Return the initramfs of the Linux guest with the guest agent of a Debian release.

    For an empty name, it has the installed guest agent.

    Raises:
        MissingDependencyError: the guest agent was not fetched.
    """
    image = linux_image().guest_agent_initramfs.read_bytes()
    if not release:
        return image
    find_guest_agent(release)
    return image + _overlay(
        cache_directory() / f"qemu-ga-{release}" / "root"
    )  # files of a later archive replace earlier ones


def _overlay(root: Path) -> bytes:
    """Return an archive with qemu-ga, its loader and its libraries, which replace those of the machine's own."""
    program, loader = root / "usr/sbin/qemu-ga", root / _LOADER
    path = ":".join(str(root / folder) for folder in _LIBRARY_FOLDERS)
    listing = run_program(str(loader), "--library-path", path, "--list", str(program)).decode()
    with tempfile.TemporaryDirectory(prefix="qmp-") as scratch:
        target = Path(scratch)
        for folder in ("bin", "lib64", "lib/x86_64-linux-gnu"):
            (target / folder).mkdir(parents=True)
        shutil.copy(program, target / "bin/qemu-ga")
        shutil.copy(loader, target / "lib64")
        for library in re.findall(rf"=> ({re.escape(str(root))}/\S+)", listing):
            if Path(library) != loader:
                shutil.copy(library, target / "lib/x86_64-linux-gnu")
        names = sorted(str(each.relative_to(target)) for each in target.rglob("*"))
        return run_program(
            "cpio", "-o", "-H", "newc", "-R", "0:0", "--quiet", cwd=target, stdin="\n".join(names).encode()
        )
