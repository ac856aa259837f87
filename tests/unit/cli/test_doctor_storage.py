"""The images in doctor's report. This process stands for a QEMU that has them open."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli.doctor.image_pools import MIN_BYTES, add_image_reports, find_open_images
from agent.cli.doctor.model import ImageReport, VmReport, VmWatchState
from agent.cli.doctor.rendering import render_reports
from agent.host.mounts import find_mount
from agent.host.pools.image_location import read_mounts_of_process
from agent.host.socket_permissions import User

PROC = Path("/proc")
NOBODY = User("nobody", 65534, frozenset({65534}))
ROOT = User("root", 0, frozenset({0}))
VM = VmReport("web-3", "", os.getpid(), "libvirt", VmWatchState.WATCHED, "", "", (), (), "")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can check the permissions of another user")


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    """An open image in a directory that only root may enter."""
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    path = folder / "web-3.qcow2"
    path.write_bytes(bytes(MIN_BYTES))
    with path.open("r+b"):
        yield path


def images(user: User, path: Path) -> list[ImageReport]:
    (vm,) = add_image_reports([VM], user, PROC)
    return [image for image in vm.images if image.path == str(path)]


def test_images_are_files_that_the_process_reads_or_reads_and_writes(tmp_path: Path, image: Path) -> None:
    log, small = tmp_path / "log", tmp_path / "small"
    with log.open("wb") as written, small.open("w+b") as short:
        written.write(bytes(MIN_BYTES))
        short.write(b"1")
        found = {path: driver for driver, path in find_open_images(os.getpid(), PROC)}
    assert found.get(str(image)) == "file"
    assert str(log) not in found
    assert str(small) not in found


def test_a_process_whose_files_are_hidden_has_no_images() -> None:
    assert list(find_open_images(0, PROC)) == []


def test_an_image_has_its_file_system(image: Path) -> None:
    mount = find_mount(read_mounts_of_process("self"), str(image))
    assert mount is not None
    assert images(User("", os.geteuid(), frozenset()), image) == [
        ImageReport(str(image), f"{mount.type} {mount.mount_point}")
    ]


@needs_root
def test_a_directory_that_the_agent_may_not_enter_is_named_with_the_command(image: Path) -> None:
    (report,) = images(NOBODY, image)
    assert report.problem.startswith("nobody may not enter /")
    assert f"setfacl -m u:nobody:x {image.parent}" in report.steps


def test_the_report_names_each_image_its_problem_and_the_steps() -> None:
    reports = (
        ImageReport("/srv/a.qcow2", "xfs /srv"),
        ImageReport(
            "/dev/pve/b", problem="/dev/pve/b is in the LVM thin pool pve-data: enable qmp-agent-storage.timer"
        ),
        ImageReport("/data/c", "ext4 /data", "nobody may not enter /data", ("setfacl -m u:nobody:x /data",)),
    )
    lines = list(
        render_reports([VmReport("web-3", "", 1, "libvirt", VmWatchState.WATCHED, "", "", (), (), "", images=reports)])
    )
    assert lines[3:] == [
        "  image /srv/a.qcow2: xfs /srv",
        "  image /dev/pve/b: pool unknown",
        "    /dev/pve/b is in the LVM thin pool pve-data: enable qmp-agent-storage.timer",
        "  image /data/c: ext4 /data",
        "    nobody may not enter /data; as root:",
        "      setfacl -m u:nobody:x /data",
    ]
