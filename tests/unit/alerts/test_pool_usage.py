"""Usage of pools: their images, what these may grow to, and their names."""

from dataclasses import replace
from typing import Any

import pytest

from agent.alerts.fully_allocated_image_size import fully_allocated_image_bytes
from agent.alerts.pool_usage import MAX_POOLS, Image, PoolRegistry, images_from_layer_samples
from agent.host.pools.base import READ_ONLY_PROBLEM, Pool, PoolKind, PoolReading, UnknownPool
from agent.model.family import Sample
from agent.model.metrics.block_layers import BLOCK_LAYER
from agent.model.record import Vm

GIB = 1 << 30
VM1, VM2 = (Vm("host1", f"00000000-0000-0000-0000-00000000000{n}", f"vm{n}", f"/run/vm{n}.qmp") for n in (1, 2))
IMAGES = Pool("filesystem:8:1", PoolKind.FILESYSTEM, "/images", "xfs", "/images")


def layer(device: str, name: str, **values: Any) -> Sample:
    return Sample(BLOCK_LAYER, (device, name), values)


def image(path: str = "/images/a", *, device: str = "disk0", name: str = "storage", most: int = GIB) -> Image:
    return Image(device, name, "file", path, most, 0, most)


def test_the_images_of_a_disk_are_its_storage_and_its_backing_chain() -> None:
    images = images_from_layer_samples(
        [
            layer(
                "disk0", "format", driver="qcow2", path="/a", size_bytes=4 * GIB, cluster_bytes=65536, read_only=False
            ),
            layer("disk0", "storage", driver="file", path="/a", size_bytes=GIB, allocated_bytes=GIB, read_only=False),
            layer("disk0", "backing-1", driver="qcow2", path="/base", size_bytes=4 * GIB, allocated_bytes=2 * GIB),
        ]
    )
    assert images == [
        Image("disk0", "storage", "file", "/a", 4 * GIB, GIB, fully_allocated_image_bytes("qcow2", 4 * GIB)),
        Image("disk0", "backing-1", "qcow2", "/base", 4 * GIB, 2 * GIB, 2 * GIB, writable=False),
    ]


def test_a_read_only_image_does_not_grow() -> None:
    (cdrom,) = images_from_layer_samples(
        [
            layer("cd0", "format", driver="raw", path="/iso", size_bytes=GIB, read_only=True),
            layer("cd0", "storage", driver="file", path="/iso", size_bytes=GIB, allocated_bytes=4096, read_only=True),
        ]
    )
    assert cdrom.max_bytes == 4096


@pytest.mark.parametrize(("writable", "problem"), [(True, "read_only"), (False, None)])
def test_a_read_only_file_system_is_a_problem_of_images_that_guests_write(
    writable: bool,  # noqa: FBT001 - a table
    problem: str | None,
) -> None:
    registry = PoolRegistry()
    registry.set_images_of_vm(VM1, [(replace(image(), writable=writable), IMAGES)], 100.0)
    (usage,) = registry
    usage.on_reading(PoolReading(10 * GIB, 5 * GIB, problem=READ_ONLY_PROBLEM), 100.0)
    assert usage.to_sample(100.0).values.get("problem") == problem


def test_an_image_with_internal_snapshots_counts_with_what_it_uses_already() -> None:
    (disk,) = images_from_layer_samples(
        [
            layer("disk0", "format", driver="raw", path="/a", size_bytes=GIB),
            layer("disk0", "storage", driver="file", path="/a", size_bytes=3 * GIB, allocated_bytes=3 * GIB),
        ]
    )
    assert disk.max_bytes == 3 * GIB


def test_an_image_that_several_vms_use_is_provisioned_once() -> None:
    registry = PoolRegistry()
    registry.set_images_of_vm(VM1, [(image("/images/a"), IMAGES), (image("/images/base", name="backing-1"), IMAGES)], 0)
    registry.set_images_of_vm(VM2, [(image("/images/b"), IMAGES), (image("/images/base", name="backing-1"), IMAGES)], 0)
    (usage,) = registry
    assert usage.provisioned == 3 * GIB
    assert usage.vm_names == ["vm1", "vm2"]


def test_the_commitment_ratio_compares_what_is_provisioned_with_the_size() -> None:
    registry = PoolRegistry()
    registry.set_images_of_vm(VM1, [(image(most=3 * GIB), IMAGES)], 0)
    (usage,) = registry
    usage.on_reading(PoolReading(2 * GIB, GIB), 10)
    values = usage.to_sample(10).values
    assert (values["commitment_ratio"], values["provisioned_bytes"], values["used_bytes"]) == (1.5, 3 * GIB, GIB)


def test_used_bytes_leave_out_the_blocks_that_are_reserved_for_root() -> None:
    registry = PoolRegistry()
    registry.set_images_of_vm(VM1, [(image(), IMAGES)], 0)
    (usage,) = registry
    usage.on_reading(PoolReading(100, 40, used_bytes=55), 10)
    assert (usage.used, usage.free) == (55, 40)


def test_a_figure_that_is_unknown_is_absent() -> None:
    registry = PoolRegistry()
    registry.set_images_of_vm(VM1, [(image(), IMAGES)], 0)
    (usage,) = registry
    values = usage.to_sample(0).values
    assert not {"size_bytes", "free_bytes", "inodes", "time_to_full_seconds", "commitment_ratio"} & values.keys()


def test_a_pool_without_a_vm_is_unused() -> None:
    registry = PoolRegistry()
    registry.set_images_of_vm(VM1, [(image(), IMAGES)], 1)
    (usage,) = registry
    registry.remove_vm(VM1, 5)
    assert usage.unused_since == 5
    registry.set_images_of_vm(VM2, [(image(), IMAGES)], 6)
    assert [usage.unused_since for usage in registry] == [None]


def test_an_image_that_moved_leaves_its_pool() -> None:
    registry, other = PoolRegistry(), Pool("filesystem:8:2", PoolKind.FILESYSTEM, "/fast", "ext4", "/fast")
    registry.set_images_of_vm(VM1, [(image("/images/a"), IMAGES)], 1)
    registry.set_images_of_vm(VM1, [(image("/fast/a"), other)], 2)
    assert [usage.name for usage in registry.pools_of_vm(VM1)] == ["/fast"]
    assert registry.pools[IMAGES.key].images == {}


def test_pools_of_one_name_are_distinguished_by_their_keys() -> None:
    registry, other = PoolRegistry(), Pool("filesystem:0:45", PoolKind.FILESYSTEM, "/images", "nfs4", "/images")
    registry.set_images_of_vm(VM1, [(image("/images/a"), IMAGES)], 1)
    registry.set_images_of_vm(VM2, [(image("/images/b"), other)], 1)
    assert [usage.name for usage in registry] == ["/images", "/images (0:45)"]


def test_the_storage_samples_join_each_image_to_its_pool() -> None:
    registry = PoolRegistry()
    unknown = UnknownPool("rbd storage is outside this host")
    registry.set_images_of_vm(VM1, [(image("/images/a"), IMAGES), (image("rbd:p/i", device="disk1"), unknown)], 1)
    assert [(sample.labels, sample.values) for sample in registry.block_storage_samples_of_vm(VM1)] == [
        (("disk0", "storage"), {"path": "/images/a", "pool": "/images", "kind": "filesystem"}),
        (("disk1", "storage"), {"path": "rbd:p/i", "unknown": unknown.reason}),
    ]
    assert registry.pool_of_image(VM1, "disk0", "/images/a") is registry.pools[IMAGES.key]
    assert registry.pool_of_image(VM1, "disk0", "/images/other") is None
    assert registry.pool_of_image(VM1, "disk1", "rbd:p/i") is unknown


def test_the_number_of_pools_is_bounded() -> None:
    registry = PoolRegistry()
    for number in range(MAX_POOLS):
        registry.add(Pool(f"device:9:{number}", PoolKind.DEVICE, f"/dev/{number}"), f"/dev/{number}")
    registry.set_images_of_vm(VM1, [(image(), IMAGES)], 0)
    assert len(registry.pools) == MAX_POOLS
    assert isinstance(registry.pool_of_image(VM1, "disk0", "/images/a"), UnknownPool)


def test_a_reason_of_qemu_is_sanitized_and_cut() -> None:
    registry = PoolRegistry()
    registry.set_images_of_vm(VM1, [(image("x"), UnknownPool("the path \n" + "y" * 10_000))], 0)
    (sample,) = registry.block_storage_samples_of_vm(VM1)
    assert "\n" not in sample.values["unknown"]
    assert len(sample.values["unknown"]) <= 500
