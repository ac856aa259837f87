"""Collectors: samples from QEMU's replies, compared with the files in golden/collectors."""

import copy
import importlib
import math
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import collectors
from agent.collectors import ALL, Collector, PollIntervals, VmFacts
from agent.collectors.block import count_repeated_images
from agent.collectors.block_graph import stable_name
from agent.collectors.guest import GUEST_COLLECTORS
from agent.host.types import FileReply, FileRequest, Interface, Task
from agent.model.family import FieldKind, Sample
from agent.model.metrics import FAMILIES
from agent.model.metrics.about import ABOUT
from agent.model.metrics.block import BLOCK_SPACE
from agent.model.metrics.guest import GUEST_AGENT_SESSION
from agent.model.metrics.memory import BALLOON
from agent.model.metrics.pool import BLOCK_STORAGE, POOL
from agent.model.record import Record, RecordEncoder, Vm
from agent.qmp.errors import CommandError, QmpError, UnexpectedReplyError
from tests.lab import golden_files
from tests.lab.fixtures import StartGuest

BY_NAME = {collector.name: collector for collector in ALL}
CASES = {name: golden_files.load(f"collectors/{name}.json") for name in BY_NAME}
INTERVALS = PollIntervals(poll=10, guest_memory=30, migration=1, resync=300)


def decode_subject(encoded: Any) -> Any:
    """Return the subject of a file request from its JSON form in a golden file."""
    match encoded:
        case {"task": number, "name": name, "values": values}:
            return Task(number, name, values)
        case {"interface": name, "values": values, "swapped": directions_swapped, "near": same_netns}:
            return Interface(name, values, directions_swapped, same_netns)
        case list():
            return tuple(map(decode_subject, encoded))
    return encoded


def decode_reply(reply: dict[str, Any]) -> Any:
    """Return a reply in a golden file in the form in which a collector receives it."""
    if "file" in reply:
        return FileReply(FileRequest(reply["file"], decode_subject(reply["of"])), reply["text"])
    return reply["return"] if "return" in reply else CommandError(reply["error"]["class"], reply["error"]["desc"])


def collect(name: str, *replies: Any) -> list[Sample]:
    return list(BY_NAME[name].collect(replies))


def as_json(samples: list[Sample]) -> list[dict[str, Any]]:
    return [{"family": s.family.name, "labels": list(s.labels), "values": s.values} for s in samples]


@pytest.mark.parametrize("name", BY_NAME)
def test_replies_result_in_the_samples_of_the_golden_file(name: str) -> None:
    cases = CASES[name]
    for case in cases:
        samples = as_json(collect(name, *map(decode_reply, case["replies"])))
        if golden_files.WRITE and samples != case["samples"]:  # the order of keys does not matter
            case["samples"] = samples
        assert samples == case["samples"], case["case"]
    if golden_files.WRITE:
        golden_files.save(f"collectors/{name}.json", cases)


# --- Unexpected replies ---


@pytest.mark.parametrize("name", ["block", "nodes", "drives", "jobs", "migration", "runstate"])
@pytest.mark.parametrize("wrong", [None, 5, 1.5, "x", True])
def test_a_reply_of_a_wrong_type_is_an_error(name: str, wrong: Any) -> None:
    with pytest.raises(UnexpectedReplyError, match="expected"):
        collect(name, wrong)
    with pytest.raises(UnexpectedReplyError, match="expected"):
        collect("nodes", [], wrong)


@pytest.mark.parametrize("name", ["block", "nodes", "drives", "jobs", "migration", "runstate"])
def test_an_error_reply_raises_qemus_error(name: str) -> None:
    with pytest.raises(CommandError, match="GenericError: no"):
        collect(name, CommandError("GenericError", "no"))


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of a JSON value and of every value inside it."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_in(inner, (*path, key))


def copy_with(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy of a JSON value with another value at a path."""
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = copy_with(value[path[0]], path[1:], new)
    return value


QEMU_REPLIES = [
    (name, [reply["return"] for reply in case["replies"]])
    for name, cases in CASES.items()
    for case in cases
    if "wrong" not in case["case"] and all("return" in reply for reply in case["replies"])
]
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([-1, 0, 2**64 - 1, -(2**63), 1e308, -1e308, 5e-324])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
)
any_json = (
    scalars
    | st.lists(scalars, max_size=3)
    | st.dictionaries(st.sampled_from(["stats", "ram", "x"]), scalars, max_size=2)
)


def check_sample(name: str, sample: Sample) -> None:
    """Assert that a sample has its family's fields in the right types and can be encoded."""
    kinds = {field.name: field.kind for field in sample.family.fields}
    assert sample.family in BY_NAME[name].families
    assert len(sample.labels) == len(sample.family.labels)
    assert all(type(label) is str and label for label in sample.labels)
    for field, value in sample.values.items():
        if kinds[field] in (FieldKind.COUNTER, FieldKind.GAUGE):
            assert type(value) in (int, float) and math.isfinite(value)
        elif kinds[field] is FieldKind.HISTOGRAM:
            assert len(value["counts"]) == len(value["boundaries_seconds"]) + 1
        elif kinds[field] is not FieldKind.DETAIL:
            assert type(value) is (bool if kinds[field] is FieldKind.FLAG else str)
    assert RecordEncoder()(Record("qemu.sample.x", Vm("h", "u", "n"), sample.data, 0, sample.subject)).body


FILE_REPLIES = [
    (name, case["replies"]) for name, cases in CASES.items() for case in cases if "file" in case["replies"][0]
]


@given(st.data())
def test_samples_of_any_file_content_have_valid_fields(data: st.DataObject) -> None:
    name, replies = data.draw(st.sampled_from(FILE_REPLIES))
    which = data.draw(st.integers(0, len(replies) - 1))
    text = replies[which]["text"] or ""
    cut = data.draw(st.integers(0, len(text)))
    junk = data.draw(
        st.text(max_size=20) | st.sampled_from([" -1 ", "(", ")", ":", "total=", "9" * 5000, "\x00", "\n: :"])
    )
    damaged = {**replies[which], "text": text[:cut] + junk + text[cut:]}
    for sample in BY_NAME[name].collect(
        [decode_reply(reply if at != which else damaged) for at, reply in enumerate(replies)]
    ):
        check_sample(name, sample)


@given(st.data())
def test_samples_of_replies_with_any_replaced_field_have_valid_fields(data: st.DataObject) -> None:
    name, replies = data.draw(st.sampled_from(QEMU_REPLIES))
    which = data.draw(st.integers(0, len(replies) - 1))
    path = data.draw(st.sampled_from(list(paths_in(replies[which]))))
    try:
        samples = collect(name, *copy_with(replies, (which, *path), data.draw(any_json)))
    except QmpError:
        return
    BY_NAME[name].topology(samples)
    delay = BY_NAME[name].next_poll_delay(samples, VmFacts(guest_stats_seconds=5), INTERVALS)
    assert delay is None or delay > 0
    for sample in samples:
        check_sample(name, sample)


@pytest.mark.parametrize("unit", [["second"], {"second": 1}, 5, None])
def test_a_dirty_rate_without_a_valid_unit_has_no_duration(unit: Any) -> None:
    reply = {"status": "measured", "dirty-rate": 1, "calc-time": 2, "calc-time-unit": unit}
    (sample,) = collect("dirty", reply, [])
    assert sample.values == {"status": "measured", "bytes_per_second": 1 << 20}


@pytest.mark.parametrize("speed", [1e308, -1e308, 2**64 - 1, -(2**63)])
def test_huge_figures_stay_finite_in_base_units(speed: float) -> None:
    (sample,) = collect("migration", {"status": "active", "ram": {"mbps": speed, "total": 1}})
    assert math.isfinite(sample.values.get("throughput_bytes_per_second", 0))
    assert RecordEncoder()(Record("qemu.sample.migration", Vm("h", "u", "n"), sample.data, 0)).body


# --- Disks ---


def test_an_endless_backing_chain_results_in_a_bounded_number_of_samples() -> None:
    disk: dict[str, Any] = {"qdev": "d", "stats": {}}
    for _ in range(200):
        disk = {"qdev": "d", "stats": {}, "backing": disk}
    samples = collect("block", [disk])
    assert [sample.labels for sample in samples] == [("d",), *(("d", str(depth)) for depth in range(1, 65))]


@pytest.mark.parametrize(
    ("disk", "name"),
    [
        ({"qdev": "/machine/peripheral/disk0/virtio-backend", "device": "drive0"}, "disk0"),
        ({"qdev": "/machine/peripheral/disk0", "node-name": "x"}, "disk0"),
        ({"qdev": "/machine/peripheral-anon/device[0]/virtio-backend"}, "device[0]"),
        ({"qdev": "/machine/peripheral-anon/device[10]"}, "device[10]"),
        ({"qdev": "/machine/unattached/device[22]"}, "/machine/unattached/device[22]"),
        ({"qdev": "sd0", "device": "drive0"}, "sd0"),
        ({"device": "drive-virtio-disk0", "node-name": "#block118"}, "drive-virtio-disk0"),
        ({"device": "", "node-name": "fmt0"}, "fmt0"),
        ({"qdev": None, "device": 5, "node-name": "fmt0"}, "fmt0"),
        ({"device": ""}, ""),
        ({"qdev": "a\x00b\u2028"}, "a\ufffdb\ufffd"),
        ({"qdev": "x" * 1000}, "x" * 255),
    ],
)
def test_a_disks_stable_name_is_device_id_then_backend_then_node(disk: dict[str, Any], name: str) -> None:
    assert stable_name(disk) == name


def test_a_disks_topology_changes_with_its_nodes_only() -> None:
    topology = BY_NAME["block"].topology
    disk = {"qdev": "d", "node-name": "a", "stats": {"rd_bytes": 1}, "parent": {"node-name": "b"}}
    same = collect("block", [disk | {"stats": {"rd_bytes": 2}}])
    assert topology(collect("block", [disk])) == topology(same)
    for changed in (disk | {"node-name": "c"}, disk | {"parent": {"node-name": "c"}}, disk | {"qdev": "e"}):
        assert topology(collect("block", [changed])) != topology(same)
    assert topology(collect("block", [disk, disk | {"qdev": "e"}])) != topology(same)


@pytest.mark.parametrize(
    ("version", "arguments"), [((4, 2), None), ((5, 0), {"flat": True}), ((11, 1), {"flat": True})]
)
def test_flat_node_lists_are_requested_where_qemu_supports_them(version: tuple[int, int], arguments: Any) -> None:
    assert BY_NAME["nodes"].commands(VmFacts(version=version))[0].arguments == arguments


def test_a_long_chain_is_not_listed_without_flat() -> None:
    disk: dict[str, Any] = {"node-name": "base"}
    for number in range(214):
        disk = {"node-name": f"n{number}", "backing": disk}
    for layers, images in ((3, 6), (215, 65 * 66 // 2)):
        chain = disk
        for _ in range(215 - layers):
            chain = chain["backing"]
        assert count_repeated_images([chain]) == images
        commands = BY_NAME["nodes"].commands(VmFacts(version=(4, 2), repeated_images=images))
        assert len(commands) == (2 if layers == 3 else 1)
    with pytest.raises(UnexpectedReplyError, match="backing chains are too long"):
        list(BY_NAME["nodes"].collect([[disk]]))


async def test_a_real_writers_samples_match_its_reply(start_guest: StartGuest) -> None:
    guest = await start_guest(kind="writer")
    await guest.wait_until_booted()
    await guest.command("stop")
    reply = await guest.command("query-blockstats")
    raw = next(disk for disk in reply if "disk0" in disk["qdev"])
    (disk,) = [sample for sample in collect("block", reply) if sample.labels == ("disk0",)]
    stats = raw["stats"]
    assert stats["wr_operations"] > 0
    assert {
        "write_bytes_total": stats["wr_bytes"],
        "writes_total": stats["wr_operations"],
        "write_seconds_total": stats["wr_total_time_ns"] / 1e9,
        "reads_total": stats["rd_operations"],
        "failed_writes_total": 0,
        "write_highest_offset_bytes": stats["wr_highest_offset"],
        "storage_write_highest_offset_bytes": raw["parent"]["stats"]["wr_highest_offset"],
        "node": "disk0-format",
        "storage_node": "disk0-storage",
        "account_failed": True,
    }.items() <= disk.values.items()


# --- Poll delays ---


@pytest.mark.parametrize("status", ["none", "completed", "failed", "cancelled"])
def test_an_ended_migration_is_polled_only_without_migration_events(status: str) -> None:
    samples = collect("migration", {"status": status})
    assert BY_NAME["migration"].next_poll_delay(samples, VmFacts(migration_events=True), INTERVALS) is None
    assert BY_NAME["migration"].next_poll_delay(samples, VmFacts(migration_events=False), INTERVALS) == 10


@pytest.mark.parametrize(
    "status", ["setup", "active", "cancelling", "failing", "pre-switchover", "device", "teleporting", ""]
)
@pytest.mark.parametrize("events", [True, False])
def test_a_migration_in_any_other_state_is_polled_each_second(status: str, events: bool) -> None:  # noqa: FBT001
    samples = collect("migration", {"status": status})
    assert BY_NAME["migration"].next_poll_delay(samples, VmFacts(migration_events=events), INTERVALS) == 1


def test_guest_memory_is_polled_no_more_often_than_the_guest_updates_it() -> None:
    delay = BY_NAME["guest_memory"].next_poll_delay
    assert delay((), VmFacts("/b", guest_stats_seconds=5), INTERVALS) == 30
    assert delay((), VmFacts("/b", guest_stats_seconds=90), INTERVALS) == 90
    assert delay((), VmFacts("/b", guest_stats_seconds=0), INTERVALS) is None


def test_only_disks_are_polled_from_qemu_at_an_interval() -> None:
    quiet = VmFacts("/b", guest_stats_seconds=0, migration_events=True)
    delays = {c.name: c.next_poll_delay((), quiet, INTERVALS) for c in ALL if not c.host_only}
    assert delays == dict.fromkeys(delays) | {"block": 10}


def test_host_collectors_read_files_at_each_poll_and_send_no_command() -> None:
    host_only = [c for c in ALL if c.host_only]
    assert [c.name for c in host_only] == ["vcpu", "iothread", "process", "cgroup", "net"]
    task, same_netns, far = Task(5), Interface("tap0"), Interface("tap1", same_netns=False)
    facts = VmFacts("/b", 5, process=task, vcpus=(task,), iothreads=(task,), cgroup="/c", interfaces=(same_netns, far))
    assert all(
        c.files(facts) and not c.commands(facts) and c.next_poll_delay((), facts, INTERVALS) == 10 for c in host_only
    )
    assert not [c.name for c in ALL if c.files(VmFacts("/b", 5))]


COLLECTORS_OF_ALL_VMS = {collector.name for collector in ALL if not collector.host_only} - {
    "balloon",
    "guest_agent",
    "guest_memory",
    "hv_balloon",
}


@pytest.mark.parametrize(
    ("facts", "applicable"),
    [
        (VmFacts(), COLLECTORS_OF_ALL_VMS),
        (VmFacts("/b"), {*COLLECTORS_OF_ALL_VMS, "balloon"}),
        (VmFacts("/b", 5), {*COLLECTORS_OF_ALL_VMS, "balloon", "guest_memory"}),
        (VmFacts(None, 5), COLLECTORS_OF_ALL_VMS),
        (VmFacts(hv_balloon=True), {*COLLECTORS_OF_ALL_VMS, "hv_balloon"}),
        (VmFacts(guest_agent_port="/machine/peripheral/p0"), {*COLLECTORS_OF_ALL_VMS, "guest_agent"}),
        (
            VmFacts(commands=frozenset({"query-status", "query-blockstats"})),
            COLLECTORS_OF_ALL_VMS - {"dirty", "kvm", "tpm", "vnc", "spice"},
        ),
    ],
)
def test_collectors_apply_only_to_vms_with_their_feature(facts: VmFacts, applicable: set[str]) -> None:
    assert {collector.name for collector in ALL if collector.commands(facts)} == applicable


def test_balloon_change_is_read_like_the_reply() -> None:
    read = BY_NAME["balloon"].from_event["BALLOON_CHANGE"]
    assert list(read({"actual": 5})) == collect("balloon", {"actual": 5}) == [Sample(BALLOON, (), {"actual_bytes": 5})]
    assert list(read({})) == list(read({"actual": None})) == []


def test_collectors_have_unique_names_and_share_no_family() -> None:
    def families(collector: Collector) -> list[str]:
        return [family.name for family in collector.families]

    assert len(BY_NAME) == len(ALL)
    named = [name for collector in ALL for name in families(collector)]
    assert len(named) == len(set(named))


def test_every_collector_is_in_all_and_every_family_has_a_collector() -> None:
    written = {
        collector.name: collector
        for module in pkgutil.iter_modules(collectors.__path__)
        for collector in vars(importlib.import_module(f"agent.collectors.{module.name}")).values()
        if isinstance(collector, Collector)
    }
    assert written == BY_NAME, "add it to ALL"
    by_hand = {BLOCK_SPACE, ABOUT, BLOCK_STORAGE, POOL}  # made by alerts, at attach and by the storage monitor
    by_hand |= {GUEST_AGENT_SESSION, *(family for collector in GUEST_COLLECTORS for family in collector.families)}
    assert {family for collector in ALL for family in collector.families} | by_hand == set(FAMILIES)
