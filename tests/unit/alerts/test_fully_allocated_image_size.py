"""The size to which an image file can grow, against `qemu-img measure`."""

import json
import subprocess

import pytest

from agent.alerts.fully_allocated_image_size import fully_allocated_image_bytes


@pytest.mark.parametrize("cluster", [512, 4096, 65536, 2 << 20])
@pytest.mark.parametrize("size", [0, 512, 1 << 20, (1 << 30) + 512, 100 << 30, 10 << 40])
def test_a_qcow2_file_grows_to_what_qemu_img_measures(size: int, cluster: int) -> None:
    if size > cluster << 26:
        pytest.skip("qemu-img refuses so many clusters")
    command = (
        "qemu-img",
        "measure",
        "--output=json",
        "-O",
        "qcow2",
        "-o",
        f"cluster_size={cluster}",
        "--size",
        str(size),
    )
    measured = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["fully-allocated"]
    assert fully_allocated_image_bytes("qcow2", size, cluster) == measured


def test_a_raw_file_grows_to_its_size() -> None:
    assert fully_allocated_image_bytes("raw", 5 << 30) == 5 << 30


def test_an_unknown_cluster_size_is_the_default() -> None:
    assert fully_allocated_image_bytes("qcow2", 1 << 30, 0) == fully_allocated_image_bytes("qcow2", 1 << 30, 65536)
