"""Collectors: QEMU's replies in, samples out, as the files in golden/collectors say."""

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
from agent.collectors import ALL, Collector, Facts, Intervals
from agent.collectors.block import stable_name
from agent.host.types import FileReply, FileRequest, Interface, Task
from agent.model.family import Kind, Sample
from agent.model.metrics import FAMILIES
from agent.model.metrics.about import ABOUT
from agent.model.metrics.block import BLOCK_SPACE
from agent.model.metrics.memory import BALLOON
from agent.model.record import Record, RecordEncoder, Vm
from agent.qmp.errors import CommandError, QmpError, UnexpectedReplyError
from tests.lab import golden_files
from tests.lab.fixtures import StartGuest

BY_NAME = {collector.name: collector for collector in ALL}
CASES = {name: golden_files.load(f"collectors/{name}.json") for name in BY_NAME}
HOUR = Intervals(poll=10, guest_memory=30, migration=1, resync=300)


def subject(of: Any) -> Any:
    """Return what a file is about, as a golden file has it."""
    match of:
        case {"task": number, "name": name, "values": values}:
            return Task(number, name, values)
        case {"interface": name, "values": values, "swapped": directions_swapped, "near": same_netns}:
            return Interface(name, values, directions_swapped, same_netns)
        case list():
            return tuple(map(subject, of))
    return of


def answer(reply: dict[str, Any]) -> Any:
    """Return what the client makes of a reply, or what the host's kernel answers."""
    if "file" in reply:
        return FileReply(FileRequest(reply["file"], subject(reply["of"])), reply["text"])
    return reply["return"] if "return" in reply else CommandError(reply["error"]["class"], reply["error"]["desc"])


def collect(name: str, *answers: Any) -> list[Sample]:
    return list(BY_NAME[name].collect(answers))


def shown(samples: list[Sample]) -> list[dict[str, Any]]:
    return [{"family": s.family.name, "labels": list(s.labels), "values": s.values} for s in samples]


@pytest.mark.parametrize("name", BY_NAME)
def test_replies_make_the_samples_that_the_golden_file_says(name: str) -> None:
    cases = CASES[name]
    for case in cases:
        made = shown(collect(name, *map(answer, case["replies"])))
        if golden_files.WRITE and made != case["samples"]:  # the order of keys is no difference
            case["samples"] = made
        assert made == case["samples"], case["case"]
    if golden_files.WRITE:
        golden_files.save(f"collectors/{name}.json", cases)


# --- Answers that make no sense ---


@pytest.mark.parametrize("name", ["block", "nodes", "drives", "jobs", "migration", "runstate"])
@pytest.mark.parametrize("wrong", [None, 5, 1.5, "x", True])
def test_an_answer_of_a_wrong_type_fails(name: str, wrong: Any) -> None:
    with pytest.raises(UnexpectedReplyError, match="expected"):
        collect(name, wrong)
    with pytest.raises(UnexpectedReplyError, match="expected"):
        collect("nodes", [], wrong)


@pytest.mark.parametrize("name", ["block", "nodes", "drives", "jobs", "migration", "runstate"])
def test_an_error_fails_with_qemus_own_words(name: str) -> None:
    with pytest.raises(CommandError, match="GenericError: no"):
        collect(name, CommandError("GenericError", "no"))


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where every value inside a value is."""
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*place, key))


def replaced(value: Any, place: tuple[Any, ...], by: Any) -> Any:
    """Return a copy that has something else at a place."""
    if not place:
        return by
    value = copy.copy(value)
    value[place[0]] = replaced(value[place[0]], place[1:], by)
    return value


REAL = [
    (name, [reply["return"] for reply in case["replies"]])
    for name, cases in CASES.items()
    for case in cases
    if "wrong" not in case["case"] and all("return" in reply for reply in case["replies"])
]
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([-1, 0, 2**64 - 1, -(2**63), 1e308, -1e308, 5e-324])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
)
anything = (
    leaves | st.lists(leaves, max_size=3) | st.dictionaries(st.sampled_from(["stats", "ram", "x"]), leaves, max_size=2)
)


def well_formed(name: str, sample: Sample) -> None:
    """Fail unless a collector's sample has its family's fields in their types, and can be a record."""
    kinds = {field.name: field.kind for field in sample.family.fields}
    assert sample.family in BY_NAME[name].families
    assert len(sample.labels) == len(sample.family.labels)
    assert all(type(label) is str and label for label in sample.labels)
    for field, value in sample.values.items():
        if kinds[field] in (Kind.COUNTER, Kind.GAUGE):
            assert type(value) in (int, float) and math.isfinite(value)
        elif kinds[field] is Kind.HISTOGRAM:
            assert len(value["counts"]) == len(value["boundaries_seconds"]) + 1
        elif kinds[field] is not Kind.DETAIL:
            assert type(value) is (bool if kinds[field] is Kind.FLAG else str)
    assert RecordEncoder()(Record("qemu.sample.x", Vm("h", "u", "n"), sample.data, 0, sample.subject)).body


KERNEL = [(name, case["replies"]) for name, cases in CASES.items() for case in cases if "file" in case["replies"][0]]


@given(st.data())
def test_whatever_a_file_holds_the_samples_have_only_their_familys_fields_in_their_types(data: st.DataObject) -> None:
    name, replies = data.draw(st.sampled_from(KERNEL))
    which = data.draw(st.integers(0, len(replies) - 1))
    text = replies[which]["text"] or ""
    cut = data.draw(st.integers(0, len(text)))
    junk = data.draw(
        st.text(max_size=20) | st.sampled_from([" -1 ", "(", ")", ":", "total=", "9" * 5000, "\x00", "\n: :"])
    )
    hurt = {**replies[which], "text": text[:cut] + junk + text[cut:]}
    for sample in BY_NAME[name].collect([answer(reply if at != which else hurt) for at, reply in enumerate(replies)]):
        well_formed(name, sample)


@given(st.data())
def test_whatever_one_field_is_the_samples_have_only_their_familys_fields_in_their_types(data: st.DataObject) -> None:
    name, replies = data.draw(st.sampled_from(REAL))
    which = data.draw(st.integers(0, len(replies) - 1))
    place = data.draw(st.sampled_from(list(places(replies[which]))))
    try:
        samples = collect(name, *replaced(replies, (which, *place), data.draw(anything)))
    except QmpError:
        return
    BY_NAME[name].topology(samples)
    wait = BY_NAME[name].next_poll_delay(samples, Facts(guest_stats_seconds=5), HOUR)
    assert wait is None or wait > 0
    for sample in samples:
        well_formed(name, sample)


@pytest.mark.parametrize("speed", [1e308, -1e308, 2**64 - 1, -(2**63)])
def test_a_figure_that_is_past_all_measure_in_base_units_stays_one_that_json_can_hold(speed: float) -> None:
    (sample,) = collect("migration", {"status": "active", "ram": {"mbps": speed, "total": 1}})
    assert math.isfinite(sample.values.get("throughput_bytes_per_second", 0))
    assert RecordEncoder()(Record("qemu.sample.migration", Vm("h", "u", "n"), sample.data, 0)).body


# --- Disks ---


def test_a_chain_without_end_makes_samples_with_an_end() -> None:
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
def test_a_disks_name_is_one_that_outlives_snapshots(disk: dict[str, Any], name: str) -> None:
    assert stable_name(disk) == name


def test_a_disk_is_of_another_shape_when_its_nodes_are_others() -> None:
    shape = BY_NAME["block"].topology
    disk = {"qdev": "d", "node-name": "a", "stats": {"rd_bytes": 1}, "parent": {"node-name": "b"}}
    same = collect("block", [disk | {"stats": {"rd_bytes": 2}}])
    assert shape(collect("block", [disk])) == shape(same)
    for changed in (disk | {"node-name": "c"}, disk | {"parent": {"node-name": "c"}}, disk | {"qdev": "e"}):
        assert shape(collect("block", [changed])) != shape(same)
    assert shape(collect("block", [disk, disk | {"qdev": "e"}])) != shape(same)


@pytest.mark.parametrize(
    ("version", "arguments"), [((4, 2), None), ((5, 0), {"flat": True}), ((11, 1), {"flat": True})]
)
def test_each_nodes_copy_of_its_chain_is_left_out_where_qemu_can(version: tuple[int, int], arguments: Any) -> None:
    assert BY_NAME["nodes"].commands(Facts(version=version))[0].arguments == arguments


async def test_a_real_writers_figures_are_those_of_its_own_reply(start_guest: StartGuest) -> None:
    guest = await start_guest(kind="writer")
    await guest.booted()
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


# --- When to ask again ---


@pytest.mark.parametrize("status", ["none", "completed", "failed", "cancelled"])
def test_a_migration_that_has_ended_is_asked_for_only_where_no_event_will_tell(status: str) -> None:
    samples = collect("migration", {"status": status})
    assert BY_NAME["migration"].next_poll_delay(samples, Facts(migration_events=True), HOUR) is None
    assert BY_NAME["migration"].next_poll_delay(samples, Facts(migration_events=False), HOUR) == 10


@pytest.mark.parametrize(
    "status", ["setup", "active", "cancelling", "failing", "pre-switchover", "device", "teleporting", ""]
)
@pytest.mark.parametrize("events", [True, False])
def test_a_migration_that_is_in_any_other_state_is_asked_for_each_second(status: str, events: bool) -> None:  # noqa: FBT001
    samples = collect("migration", {"status": status})
    assert BY_NAME["migration"].next_poll_delay(samples, Facts(migration_events=events), HOUR) == 1


def test_guest_memory_is_asked_for_no_more_often_than_the_guest_tells() -> None:
    again = BY_NAME["guest_memory"].next_poll_delay
    assert again((), Facts("/b", guest_stats_seconds=5), HOUR) == 30
    assert again((), Facts("/b", guest_stats_seconds=90), HOUR) == 90
    assert again((), Facts("/b", guest_stats_seconds=0), HOUR) is None


def test_only_disks_are_asked_of_qemu_by_the_clock_alone() -> None:
    quiet = Facts("/b", guest_stats_seconds=0, migration_events=True)
    asked = {c.name: c.next_poll_delay((), quiet, HOUR) for c in ALL if not c.host_only}
    assert asked == dict.fromkeys(asked) | {"block": 10}


def test_what_the_hosts_kernel_knows_is_asked_for_at_each_poll_and_qemu_is_asked_nothing_for_it() -> None:
    beside = [c for c in ALL if c.host_only]
    assert [c.name for c in beside] == ["vcpu", "iothread", "process", "cgroup", "net"]
    task, same_netns, far = Task(5), Interface("tap0"), Interface("tap1", same_netns=False)
    facts = Facts("/b", 5, process=task, vcpus=(task,), iothreads=(task,), cgroup="/c", interfaces=(same_netns, far))
    assert all(c.files(facts) and not c.commands(facts) and c.next_poll_delay((), facts, HOUR) == 10 for c in beside)
    assert not [c.name for c in ALL if c.files(Facts("/b", 5))]


ALWAYS = {collector.name for collector in ALL if not collector.host_only} - {"balloon", "guest_memory", "hv_balloon"}


@pytest.mark.parametrize(
    ("facts", "asked"),
    [
        (Facts(), ALWAYS),
        (Facts("/b"), {*ALWAYS, "balloon"}),
        (Facts("/b", 5), {*ALWAYS, "balloon", "guest_memory"}),
        (Facts(None, 5), ALWAYS),
        (Facts(hv_balloon=True), {*ALWAYS, "hv_balloon"}),
        (
            Facts(commands=frozenset({"query-status", "query-blockstats"})),
            ALWAYS - {"dirty", "kvm", "tpm", "vnc", "spice"},
        ),
    ],
)
def test_only_what_a_vm_has_is_asked_for(facts: Facts, asked: set[str]) -> None:
    assert {collector.name for collector in ALL if collector.commands(facts)} == asked


def test_the_balloons_event_is_read_as_its_answer_is() -> None:
    read = BY_NAME["balloon"].from_event["BALLOON_CHANGE"]
    assert list(read({"actual": 5})) == collect("balloon", {"actual": 5}) == [Sample(BALLOON, (), {"actual_bytes": 5})]
    assert list(read({})) == list(read({"actual": None})) == []


def test_collectors_have_names_of_their_own_and_share_no_family() -> None:
    def families(collector: Collector) -> list[str]:
        return [family.name for family in collector.families]

    assert len(BY_NAME) == len(ALL)
    named = [name for collector in ALL for name in families(collector)]
    assert len(named) == len(set(named))


def test_every_collector_that_is_written_is_named_and_so_is_every_family() -> None:
    written = {
        collector.name: collector
        for module in pkgutil.iter_modules(collectors.__path__)
        for collector in vars(importlib.import_module(f"agent.collectors.{module.name}")).values()
        if isinstance(collector, Collector)
    }
    assert written == BY_NAME, "name it in ALL"
    by_hand = {BLOCK_SPACE, ABOUT}  # made by alerts and at attach
    assert {family for collector in ALL for family in collector.families} | by_hand == set(FAMILIES)
