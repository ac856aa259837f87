"""The profiles for AppArmor and SELinux, checked by their own compilers. No kernel enforces them here."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

from agent.cli.demo.images import MissingDependencyError
from tests.lab.machine import INSTALL_HINT, require

DEPLOY: Final = Path(__file__).parents[3] / "deploy"
LIBVIRT_PROFILE: Final = "abi <abi/3.0>,\nprofile libvirt-qemu {{\n  include <abstractions/base>\n{rules}}}\n"
"""A profile that includes the rules for libvirt's QEMUs, as libvirt's abstraction does."""


def compile_profile(profile: str, folder: Path) -> str:
    """Compile an AppArmor profile and return the compiler's errors."""
    require("apparmor_parser", "apparmor")
    (folder / "profile").write_text(profile)
    command = ["apparmor_parser", "--skip-kernel-load", "--skip-cache", "--quiet", str(folder / "profile")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stderr


def test_the_agents_apparmor_profile_compiles(folder: Path) -> None:
    text = (DEPLOY / "apparmor/usr.bin.qmp-agent").read_text()
    assert "syntax error" not in compile_profile(text, folder)
    assert "syntax error" in compile_profile(text.replace("ptrace read,", "ptrace everything,"), folder)


def test_the_addition_to_libvirts_apparmor_profile_compiles(folder: Path) -> None:
    rules = (DEPLOY / "apparmor/libvirt-qemu").read_text()
    assert "syntax error" not in compile_profile(LIBVIRT_PROFILE.format(rules=rules), folder)


def compile_module(folder: Path) -> subprocess.CompletedProcess[str]:
    """Compile the SELinux module in a folder to a package."""
    makefile = Path("/usr/share/selinux/devel/Makefile")
    if not makefile.exists():
        raise MissingDependencyError(f"selinux-policy-dev is missing: {INSTALL_HINT}")
    command = ["make", "-f", str(makefile), "qmp_agent.pp"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def test_the_agents_selinux_module_compiles_to_a_package(folder: Path) -> None:
    for file in (DEPLOY / "selinux").iterdir():
        shutil.copy(file, folder)
    result = compile_module(folder)
    assert result.returncode == 0, result.stderr
    assert (folder / "qmp_agent.pp").stat().st_size > 0

    policy = folder / "qmp_agent.te"
    policy.write_text(policy.read_text().replace("dev_read_sysfs(", "dev_read_everything("))
    assert "dev_read_everything" in compile_module(folder).stderr
