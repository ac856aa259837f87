"""Packages of other Debian releases, unpacked but not installed."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agent.cli.demo.images import MissingDependencyError, run_program

_KEYS: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


def unpack(release: str, packages: Sequence[str], scratch: Path, components: str = "main") -> None:
    """Unpack packages of a Debian release and their dependencies into `built/root`.

    Needs Debian for amd64. Needs no root and installs nothing. Blocks.

    Args:
        release: the release, such as `trixie`.
        packages: the packages.
        scratch: a directory for apt's state, lists and archives, and for the result.
        components: the archive's components.

    Raises:
        MissingDependencyError: the packages cannot be fetched.
    """
    for folder in ("state/lists/partial", "cache/archives/partial", "etc/parts", "built/root"):
        Path(scratch, folder).mkdir(parents=True)
    Path(scratch, "status").touch()  # no package counts as installed, so that apt fetches all dependencies
    Path(scratch, "etc/sources.list").write_text(f"deb [signed-by={_KEYS}] {_mirror()} {release} {components}\n")
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
    run_program(*apt, "update")
    run_program(*apt, "install", "--no-install-recommends", "--download-only", "-y", *packages)
    for package in sorted(Path(scratch, "cache/archives").glob("*.deb")):
        run_program("dpkg-deb", "-x", os.fspath(package), os.fspath(scratch / "built/root"))
    for unused in ("usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(scratch / "built/root" / unused, ignore_errors=True)


def _mirror() -> str:
    """Return the Debian mirror of this machine's apt configuration."""
    filters = ("Created-By: Packages", "Origin: Debian", "Label: Debian")
    uris = run_program("apt-get", "indextargets", "--format", "$(REPO_URI)", *filters).decode()
    if not uris:
        raise MissingDependencyError("apt has no Debian mirror: run 'apt-get update' as root")
    return uris.split()[0]
