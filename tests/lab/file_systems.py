"""Small real file systems for tests: tmpfs, ext4 with reserved blocks, XFS with and without a project quota, and Btrfs. They need root."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest

from tests.lab.thin_guests import MIB, LoopDevice, run

UNPRIVILEGED: Final = 65534
"""User that QEMU runs as in some tests. It may not use the blocks that a file system reserves for root."""


LARGE: Final = 1024 * MIB
"""Size of an XFS and of a Btrfs. The file of the device is sparse, so only written blocks take space."""

MEMORY: Final = "memory"
"""Name of the directory of a loop device's file."""


async def _tmpfs(folder: Path, mount: Path) -> Path:
    await run("mount", "-t", "tmpfs", "-o", "size=60M", "tmpfs", str(mount))
    return mount


async def _ext4(folder: Path, mount: Path) -> Path:
    """Make an ext4 whose reserved blocks are a fifth of it."""
    device = await _loop(folder, 96 * MIB)
    await run("mkfs.ext4", "-q", "-m", "20", device)
    await run("mount", device, str(mount))
    return mount


async def _xfs(folder: Path, mount: Path) -> Path:
    device = await _loop(folder, LARGE)
    await run("mkfs.xfs", "-q", device)
    await run("mount", device, str(mount))
    return mount


async def _xfs_quota(folder: Path, mount: Path) -> Path:
    """Make an XFS that is much larger than the quota of the returned directory."""
    device = await _loop(folder, 512 * MIB)
    await run("mkfs.xfs", "-q", device)
    try:
        await run("mount", "-o", "prjquota", device, str(mount))
    except AssertionError:
        pytest.skip("this kernel has no quotas of XFS (CONFIG_XFS_QUOTA)")
    images = mount / "images"
    images.mkdir()
    await run("xfs_quota", "-x", "-c", f"project -s -p {images} 42", str(mount))
    await run("xfs_quota", "-x", "-c", "limit -p bhard=60m 42", str(mount))
    return images


async def _btrfs(folder: Path, mount: Path) -> Path:
    """Make a Btrfs that commits every second.

    At a commit, Btrfs frees the old copies of overwritten extents. The default interval of 30 s is longer than the windows of forecasts in
    tests.
    """
    device = await _loop(folder, LARGE)
    await run("mkfs.btrfs", "-q", device)
    await run("mount", "-o", "commit=1", device, str(mount))
    return mount


async def _loop(folder: Path, size: int) -> str:
    """Return a loop device whose file is in memory. On a busy disk, each flush of a guest would take seconds."""
    memory = folder / MEMORY
    memory.mkdir()
    await run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(memory))
    with (memory / "device.raw").open("wb") as image:
        image.truncate(size)
    return await run("losetup", "--find", "--show", str(memory / "device.raw"))


FILE_SYSTEMS: Final[dict[str, tuple[str, Callable[[Path, Path], Awaitable[Path]]]]] = {
    "tmpfs": ("mount", _tmpfs),
    "ext4": ("mkfs.ext4", _ext4),
    "xfs": ("mkfs.xfs", _xfs),
    "xfs_quota": ("xfs_quota", _xfs_quota),
    "btrfs": ("mkfs.btrfs", _btrfs),
}
"""By name: the program that it needs, and the function that makes it."""


@contextlib.asynccontextmanager
async def file_system(kind: str, folder: Path) -> AsyncIterator[Path]:
    """Mount a file system while the `with` block runs; yield the directory for images, which every user may write.

    Args:
        kind: a key of FILE_SYSTEMS.
        folder: an existing directory for the mount point and the device's file.
    """
    program, make = FILE_SYSTEMS[kind]
    if os.geteuid() != 0 or shutil.which(program) is None or (kind != "tmpfs" and not LoopDevice.is_available()):
        pytest.skip(f"{kind} needs root, loop devices and {program}")
    mount = folder / kind
    mount.mkdir()
    try:
        images = await make(folder, mount)
        images.chmod(0o777)
        yield images
    finally:
        await _unmount(mount)
        device = folder / MEMORY / "device.raw"
        for loop in (await run("losetup", "--associated", str(device), "--output", "NAME", "--noheadings")).split():
            await run("losetup", "--detach", loop)
        if _is_mounted(folder / MEMORY):
            await run("umount", "--lazy", str(folder / MEMORY))  # the kernel may close the file of a loop device later


def _is_mounted(point: Path) -> bool:
    return point.is_mount()


async def _unmount(point: Path) -> None:
    for _ in range(600):
        if not _is_mounted(point):
            break
        with contextlib.suppress(AssertionError):
            await run("umount", str(point))
            break
        await asyncio.sleep(0.1)  # QEMU or the loop device has just ended


def unprivileged_qemu(folder: Path) -> str:
    """Return a program that runs QEMU as a user without privileges. That user gets access to the folder."""
    folder.chmod(0o777)
    program = folder / "unprivileged-qemu"
    program.write_text(
        f'#!/bin/sh\nexec setpriv --reuid {UNPRIVILEGED} --regid {UNPRIVILEGED} --clear-groups qemu-system-x86_64 "$@"\n'
    )
    program.chmod(0o755)
    return str(program)
