"""Paths of images on the command line of a QEMU."""

import pytest

from agent.host.command_line_images import command_line_image_paths


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("/images/a.qcow2", ["/images/a.qcow2"]),
        ("file=/images/a b.qcow2,if=none,id=d0", ["/images/a b.qcow2"]),
        ("driver=qcow2,file.driver=file,file.filename=/images/a", ["/images/a"]),
        ('{"driver":"file","filename":"/images/a","node-name":"n"}', ["/images/a"]),
        ("fat:rw:/images/dir", ["/images/dir"]),
        ("socket,path=/run/vm1.qmp,server=on", []),
        ("/dev/vg/lv", []),
        ("-enable-kvm", []),
        ("nbd://server/export", []),
    ],
)
def test_a_path_is_found_in_each_form_of_an_option(argument: str, expected: list[str]) -> None:
    assert command_line_image_paths([argument]) == expected


def test_each_path_is_named_once_and_their_number_is_bounded() -> None:
    assert command_line_image_paths(["/a", "file=/a", "/b"]) == ["/a", "/b"]
    assert len(command_line_image_paths(f"/images/{number}" for number in range(5000))) == 256
