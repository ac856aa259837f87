"""A client of the overview gets the whole state first, and then only changes."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from agent.http.overview import Overview, OverviewCursor
from agent.model.family import Sample
from agent.model.json_encoding import encode_json
from agent.model.metrics.block import BLOCK, BLOCK_SPACE
from agent.model.metrics.memory import BALLOON, GUEST_MEMORY
from agent.model.metrics.pool import POOL
from tests.lab.snapshots import OneVmSource, disk_counters, status, vm


@pytest.fixture
def source() -> OneVmSource:
    return OneVmSource()


def new_cursor(source: OneVmSource) -> OverviewCursor:
    """Return the cursor of a new client."""
    return OverviewCursor(Overview(source))


def decoded(changes: dict[str, Any] | None) -> Any:
    return orjson.loads(orjson.dumps(changes))


def test_a_client_gets_everything_then_the_changes_then_nothing(source: OneVmSource) -> None:
    cursor = new_cursor(source)
    assert decoded(cursor.changes()).keys() == {"vms", "history", "monitors", "alerts", "pools", "agent"}
    assert cursor.changes() is None
    source.put(BALLOON, 10, ((), {"actual_bytes": 100}))
    assert decoded(cursor.changes())["vms"][vm().uuid]["memory"] == {"total_bytes": 100}
    source.error = "x"
    assert decoded(cursor.changes()) == {"agent": {"error": "x"}}


def test_pools_are_listed_by_name_without_devices_of_one_image(source: OneVmSource) -> None:
    cursor = new_cursor(source)
    cursor.changes()
    for name, kind in (("/srv", "filesystem"), ("/dev/vg/lv", "device"), ("/data", "filesystem")):
        source.snapshot.replace_host_sample(Sample(POOL, (name, kind), {"size_bytes": 100, "free_bytes": 40}))
    figures = {"kind": "filesystem", "size_bytes": 100, "free_bytes": 40}
    assert decoded(cursor.changes()) == {"pools": [{"pool": "/data", **figures}, {"pool": "/srv", **figures}]}
    source.snapshot.remove_host_sample(POOL, ("/data", "filesystem"))
    assert decoded(cursor.changes()) == {"pools": [{"pool": "/srv", **figures}]}


def test_a_slow_client_gets_only_the_last_of_several_changes(source: OneVmSource) -> None:
    cursor = new_cursor(source)
    cursor.changes()
    for size in range(5):
        source.put(BALLOON, 10 + size, ((), {"actual_bytes": size}))
    assert decoded(cursor.changes())["vms"][vm().uuid]["memory"] == {"total_bytes": 4}
    assert cursor.changes() is None


def test_a_new_vm_comes_with_its_history_and_a_vm_that_left_is_reported_gone(source: OneVmSource) -> None:
    cursor, other = new_cursor(source), vm(1, "vm2", "/run/vm2.qmp")
    cursor.changes()
    source.snapshot.update_status(status(other, key=1))
    for at in (10, 12, 14):
        source.put(BLOCK, at, (("disk0",), disk_counters(write=at)), owner=other)
    changes = decoded(cursor.changes())
    assert changes["vms"].keys() == {other.uuid}
    assert [point[0] for point in changes["history"][other.uuid]] == [12, 14]
    gone = status(other, key=1)
    source.snapshot.update_status(type(gone)(gone.monitor, type(gone.state).GONE, "", other, gone.build, 0))
    assert decoded(cursor.changes())["gone"] == [other.uuid]


def test_a_vm_has_its_collectors_that_are_off_with_their_causes(source: OneVmSource) -> None:
    cursor = new_cursor(source)
    assert "degraded" not in decoded(cursor.changes())["vms"][vm().uuid]
    source.snapshot.update_status(replace(status(vm()), degraded=(("block", "not JSON"),)))
    assert decoded(cursor.changes())["vms"][vm().uuid]["degraded"] == [{"collector": "block", "cause": "not JSON"}]


def test_a_thin_disk_has_its_levels(source: OneVmSource) -> None:
    source.put(BLOCK, 10, (("disk0",), disk_counters()), (("disk1",), disk_counters()))
    source.put(BLOCK_SPACE, 10, (("disk0",), {"used_bytes": 85, "limit_bytes": 100}))
    disks = decoded(new_cursor(source).changes())["vms"][vm().uuid]["disks"]
    assert [disk.get("levels") for disk in disks] == [[["80%", 80], ["90%", 90]], None]


def test_the_detail_of_a_vm_has_every_family_with_the_help_of_its_fields(source: OneVmSource) -> None:
    for at, write in ((10, 0), (12, 200)):
        source.put(BLOCK, at, (("disk0",), disk_counters(write=write) | {"node": "n"}))
    cursor = new_cursor(source)
    (family,) = decoded(cursor.changes(vm().uuid))["detail"]["families"]
    assert (family["name"], family["labels"], family["source"]) == ("block", ["device"], "query-blockstats")
    fields = {field["name"]: (field["kind"], field["help"]) for field in family["fields"]}
    assert fields["write_bytes_total"] == (
        "counter",
        next(f.help for f in BLOCK.fields if f.name == "write_bytes_total"),
    )
    (subject,) = family["subjects"]
    assert (subject["labels"], subject["values"]["node"]) == (["disk0"], "n")
    assert subject["rates"]["write_bytes_total"] == 100
    assert cursor.changes(vm().uuid) is None
    assert "detail" not in decoded(new_cursor(source).changes())


def test_figures_beyond_64_bits_do_not_break_the_overview(source: OneVmSource) -> None:
    source.put(GUEST_MEMORY, 10, ((), {"total_bytes": 2**64 - 2, "available_bytes": -(2**63)}))
    changes = new_cursor(source).changes(vm().uuid)
    assert changes is not None
    overview = orjson.loads(encode_json(changes))["vms"][vm().uuid]
    assert overview["memory"] == {"total_bytes": 2**64 - 2, "used_bytes": float(2**64 - 2 + 2**63)}
