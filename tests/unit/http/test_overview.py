"""The overview has the present state of the whole host."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from agent.http.overview import OverviewBuilder
from agent.model.family import Sample
from agent.model.json_encoding import encode_json
from agent.model.metrics.block import BLOCK, BLOCK_SPACE
from agent.model.metrics.memory import BALLOON, GUEST_MEMORY
from agent.model.metrics.storage_pool import POOL
from agent.session.shared_types import MonitorState
from tests.lab.snapshots import OneVmSource, disk_counters, status, vm


@pytest.fixture
def source() -> OneVmSource:
    return OneVmSource()


async def overview(source: OneVmSource, uuid: str = "") -> Any:
    """Return the decoded overview."""
    return orjson.loads(encode_json(await OverviewBuilder(source).build(uuid)))


async def test_the_overview_has_all_parts_and_the_latest_values(source: OneVmSource) -> None:
    known = OverviewBuilder(source)
    assert (await known.build()).keys() == {"vms", "monitors", "alerts", "pools", "resources", "agent"}
    for size in (100, 200):
        source.put(BALLOON, 10, ((), {"actual_bytes": size}))
        vms = orjson.loads(encode_json(await known.build()))["vms"]
        assert vms[vm().uuid]["memory"] == {"total_bytes": size}
    source.snapshot.update_monitor_status(replace(status(vm()), state=MonitorState.GONE))
    assert (await known.build())["vms"] == {}


async def test_pools_are_listed_by_name_without_devices_of_one_image(source: OneVmSource) -> None:
    for name, kind in (("/srv", "filesystem"), ("/dev/vg/lv", "device"), ("/data", "filesystem")):
        source.snapshot.replace_host_sample(Sample(POOL, (name, kind), {"size_bytes": 100, "free_bytes": 40}))
    figures = {"kind": "filesystem", "size_bytes": 100, "free_bytes": 40}
    assert (await overview(source))["pools"] == [{"pool": "/data", **figures}, {"pool": "/srv", **figures}]
    source.snapshot.remove_host_sample(POOL, ("/data", "filesystem"))
    assert (await overview(source))["pools"] == [{"pool": "/srv", **figures}]


async def test_a_vm_has_its_collectors_that_are_off_with_their_causes(source: OneVmSource) -> None:
    assert "degraded" not in (await overview(source))["vms"][vm().uuid]
    source.snapshot.update_monitor_status(replace(status(vm()), degraded=(("block", "not JSON"),)))
    assert (await overview(source))["vms"][vm().uuid]["degraded"] == [{"collector": "block", "cause": "not JSON"}]


async def test_a_thin_disk_has_its_levels(source: OneVmSource) -> None:
    source.put(BLOCK, 10, (("disk0",), disk_counters()), (("disk1",), disk_counters()))
    source.put(BLOCK_SPACE, 10, (("disk0",), {"used_bytes": 85, "limit_bytes": 100}))
    disks = (await overview(source))["vms"][vm().uuid]["disks"]
    assert [disk.get("levels") for disk in disks] == [[["80%", 80], ["90%", 90]], None]


async def test_the_detail_of_a_vm_has_every_family_with_the_help_of_its_fields(source: OneVmSource) -> None:
    for at, write in ((10, 0), (12, 200)):
        source.put(BLOCK, at, (("disk0",), disk_counters(write=write) | {"node": "n"}))
    (family,) = (await overview(source, vm().uuid))["detail"]["families"]
    assert (family["name"], family["labels"], family["source"]) == ("block", ["device"], "query-blockstats")
    fields = {field["name"]: (field["kind"], field["help"]) for field in family["fields"]}
    assert fields["write_bytes_total"] == (
        "counter",
        next(f.help for f in BLOCK.fields if f.name == "write_bytes_total"),
    )
    (subject,) = family["subjects"]
    assert (subject["labels"], subject["values"]["node"]) == (["disk0"], "n")
    assert subject["rates"]["write_bytes_total"] == 100
    assert "detail" not in await overview(source)


async def test_figures_beyond_64_bits_do_not_break_the_overview(source: OneVmSource) -> None:
    source.put(GUEST_MEMORY, 10, ((), {"total_bytes": 2**64 - 2, "available_bytes": -(2**63)}))
    memory = (await overview(source))["vms"][vm().uuid]["memory"]
    assert memory == {"total_bytes": 2**64 - 2, "used_bytes": float(2**64 - 2 + 2**63)}
