"""The mount of a path, as the kernel walks the path."""

import pytest

from agent.host.mounts import find_mount, parse_mountinfo

TABLE = """\
24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 24 0:25 / /proc rw - proc proc rw
40 24 8:17 / /var/lib rw,relatime - xfs /dev/sdb1 rw
41 40 0:44 /images /var/lib/libvirt/images rw master:9 propagate_from:1 - nfs4 filer:/export rw
42 24 8:17 /vms /srv/with\\040space\\134and\\011tab rw - xfs /dev/sdb1 rw
"""


def point(table: str, path: str) -> str | None:
    mount = find_mount(parse_mountinfo(table), path)
    return mount.mount_point if mount is not None else None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("/var", "/"),
        ("/var/lib", "/var/lib"),
        ("/var/library/x", "/"),
        ("/var/lib/libvirt/images", "/var/lib/libvirt/images"),
        ("/var/lib/libvirt/images/a.qcow2", "/var/lib/libvirt/images"),
        ("/srv/with space\\and\ttab/a", "/srv/with space\\and\ttab"),
    ],
)
def test_the_longest_mount_point_above_a_path_is_its_mount(path: str, expected: str) -> None:
    assert point(TABLE, path) == expected


def test_a_mount_has_its_device_root_type_and_source() -> None:
    mount = parse_mountinfo(TABLE)[3]
    assert (mount.device, mount.root, mount.type, mount.source) == ("0:44", "/images", "nfs4", "filer:/export")


@pytest.mark.parametrize(
    ("mount", "file_system", "read_only"),
    [
        ("rw", "rw,errors=remount-ro", False),
        ("rw", "ro,errors=remount-ro", True),
        ("rw", "rw,emergency_ro", True),
        ("ro", "rw", False),
    ],
)
def test_a_file_system_is_read_only_if_it_is_so_in_all_of_its_mounts(
    mount: str,
    file_system: str,
    read_only: bool,  # noqa: FBT001 - a table
) -> None:
    (parsed,) = parse_mountinfo(f"40 24 8:17 / /srv {mount},relatime - ext4 /dev/sdb1 {file_system}\n")
    assert parsed.read_only is read_only


def test_bind_mounts_of_a_file_system_share_its_device() -> None:
    mounts = parse_mountinfo(TABLE)
    assert mounts[2].device == mounts[4].device


def test_the_mount_on_top_of_another_one_is_the_visible_one() -> None:
    mount = find_mount(parse_mountinfo(TABLE + "50 40 0:60 / /var/lib rw - tmpfs tmpfs rw\n"), "/var/lib/x")
    assert mount is not None
    assert mount.type == "tmpfs"


def test_a_mount_hides_those_below_it_that_are_older() -> None:
    assert point(TABLE + "50 24 0:60 / /var rw - tmpfs tmpfs rw\n", "/var/lib/libvirt/images/a") == "/var"


@pytest.mark.parametrize("line", ["", "x", "1 2 8:1 / /", "a b 8:1 / / rw - ext4 /dev/sda rw", "1 2 8:1 / / rw - ext4"])
def test_a_line_that_is_no_mount_is_left_out(line: str) -> None:
    assert parse_mountinfo(line) == ()


def test_no_mounts_mean_no_mount() -> None:
    assert find_mount((), "/a") is None
