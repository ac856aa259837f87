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
"""User of a QEMU that may not use the blocks that a file system reserves for root."""


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
    device = await _loop(folder, 320 * MIB)
    await run("mkfs.xfs", "-q", device)
    await run("mount", device, str(mount))
    return mount


async def _xfs_quota(folder: Path, mount: Path) -> Path:
    """Make an XFS with room for much more than the quota of the returned directory."""
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
    device = await _loop(folder, 256 * MIB)
    await run("mkfs.btrfs", "-q", "-m", "single", device)
    await run("mount", device, str(mount))
    return mount


async def _loop(folder: Path, size: int) -> str:
    file = folder / "device.raw"
    with file.open("wb") as image:
        image.truncate(size)
    return await run("losetup", "--find", "--show", str(file))


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
        for _ in range(50):
            with contextlib.suppress(AssertionError):
                if mount.is_mount():
                    await run("umount", str(mount))
            if not mount.is_mount():
                break
            await asyncio.sleep(0.1)  # QEMU has just ended
        devices = await run("losetup", "--associated", str(folder / "device.raw"), "--output", "NAME", "--noheadings")
        for device in devices.split():
            await run("losetup", "--detach", device)


def unprivileged_qemu(folder: Path) -> str:
    """Return a program that runs QEMU as a user without privileges. That user gets access to the folder."""
    folder.chmod(0o777)
    program = folder / "unprivileged-qemu"
    program.write_text(
        f'#!/bin/sh\nexec setpriv --reuid {UNPRIVILEGED} --regid {UNPRIVILEGED} --clear-groups qemu-system-x86_64 "$@"\n'
    )
    program.chmod(0o755)
    return str(program)
