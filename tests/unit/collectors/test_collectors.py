"""Collectors: samples from QEMU's replies, compared with the files in golden/collectors."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.collectors import ALL_COLLECTORS, PollIntervals, VmFacts
from agent.collectors.block import predict_images_listed_without_flat
from agent.collectors.disk_names import stable_disk_name
from agent.host.types import KernelFileContents, ProcessOrThread, VmHostInterface
from agent.model.family import FieldKind, Sample
from agent.model.metrics.memory import BALLOON
from agent.model.record import Record, RecordEncoder, Vm
from agent.qmp.errors import CommandError, QmpError, UnexpectedReplyTypeError
from tests.lab import golden_files
from tests.lab.fixtures import StartGuest

BY_NAME = {collector.name: collector for collector in ALL_COLLECTORS}
CASES = {name: golden_files.load(f"collectors/{name}.json") for name in BY_NAME}
INTERVALS = PollIntervals(poll=10, guest_memory=30, migrations_and_jobs=1, resync=300)


def decode_subject(encoded: Any) -> Any:
    """Return the subject of a file request from its JSON form in a golden file."""
    match encoded:
        case {"task": number, "name": name, "values": values}:
            return ProcessOrThread(number, name, values)
        case {"interface": name, "values": values, "swapped": directions_swapped, "near": same_netns}:
            return VmHostInterface(name, values, directions_swapped, same_netns)
        case list():
            return tuple(map(decode_subject, encoded))
    return encoded


def decode_replies(name: str, replies: list[dict[str, Any]]) -> list[Any]:
    """Return the replies in a golden file in the form in which a collector receives them."""
    if "file" in replies[0]:
        return decode_files(name, replies)
    decoded = decode_results(replies)
    return (
        [(tuple(reply["of"]), each) for reply, each in zip(replies, decoded, strict=True)]
        if "of" in replies[0]
        else decoded
    )


def decode_results(replies: list[dict[str, Any]]) -> list[Any]:
    """Return the results of commands in a golden file."""
    return [
        reply["return"] if "return" in reply else CommandError(reply["error"]["class"], reply["error"]["desc"])
        for reply in replies
    ]


def decode_files(name: str, replies: list[dict[str, Any]]) -> list[KernelFileContents]:
    """Return the replies to the collector's requests for files, given the content of each file in a golden file."""
    subjects = [decode_subject(reply["of"]) for reply in replies]
    distinct = [each for at, each in enumerate(subjects) if each not in subjects[:at]]
    facts = {
        "process": lambda: VmFacts(process=distinct[0]),
        "vcpu": lambda: VmFacts(vcpus=tuple(distinct)),
        "iothread": lambda: VmFacts(iothreads=tuple(distinct)),
        "cgroup": lambda: VmFacts(cgroup=distinct[0]),
        "net": lambda: VmFacts(interfaces=tuple(distinct[0] if isinstance(distinct[0], tuple) else distinct)),
    }[name]()
    texts = {reply["file"]: reply["text"] for reply in replies}

    def content(directory: str, file: str) -> bytes | None:
        text = texts.pop(f"{directory}/{file}".strip("/") if not directory.startswith("/") else f"{directory}/{file}")
        return None if text is None else text.encode()

    decoded = [
        KernelFileContents(request, [content(request.directory, file) for file in request.names])
        for request in BY_NAME[name].files(facts)
    ]
    assert not texts, "the collector requests each file of the golden file"
    return decoded


def collect(name: str, *replies: Any) -> list[Sample]:
    return list(BY_NAME[name].collect(replies))


def as_json(samples: list[Sample]) -> list[dict[str, Any]]:
    return [{"family": s.family.name, "labels": list(s.labels), "values": s.values} for s in samples]


@pytest.mark.parametrize("name", BY_NAME)
def test_replies_result_in_the_samples_of_the_golden_file(name: str) -> None:
    cases = CASES[name]
    for case in cases:
        samples = as_json(collect(name, *decode_replies(name, case["replies"])))
        if golden_files.WRITE and samples != case["samples"]:  # the order of keys does not matter
            case["samples"] = samples
        assert samples == case["samples"], case["case"]
    if golden_files.WRITE:
        golden_files.save(f"collectors/{name}.json", cases)


def test_samples_of_several_vms_share_short_texts_in_memory() -> None:
    text = orjson.dumps(CASES["block"][0]["replies"])
    first, second = (collect("block", *decode_replies("block", orjson.loads(text))) for _ in range(2))
    texts = [(a.values[name], b.values[name]) for a, b in zip(first, second, strict=True) for name in a.values]
    short = [(a, b) for a, b in texts if isinstance(a, str) and len(a) <= 32]
    assert short
    assert all(a is b for a, b in short)


# --- Unexpected replies ---


@pytest.mark.parametrize("name", ["block", "nodes", "drives", "jobs", "migration", "runstate"])
@pytest.mark.parametrize("wrong", [None, 5, 1.5, "x", True])
def test_a_reply_of_a_wrong_type_is_an_error(name: str, wrong: Any) -> None:
    with pytest.raises(UnexpectedReplyTypeError, match="expected"):
        collect(name, wrong)
    with pytest.raises(UnexpectedReplyTypeError, match="expected"):
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
    if "wrong" not in case["case"] and all("return" in reply and "of" not in reply for reply in case["replies"])
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
    for sample in collect(name, *decode_files(name, [*replies[:which], damaged, *replies[which + 1 :]])):
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
    assert stable_disk_name(disk) == name


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
        assert predict_images_listed_without_flat([chain]) == images
        commands = BY_NAME["nodes"].commands(VmFacts(version=(4, 2), images_listed_without_flat=images))
        assert len(commands) == (2 if layers == 3 else 1)
    with pytest.raises(UnexpectedReplyTypeError, match="backing chains are too long"):
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


# --- Events ---


def test_balloon_change_is_read_like_the_reply() -> None:
    read = BY_NAME["balloon"].from_event["BALLOON_CHANGE"]
    assert list(read({"actual": 5})) == collect("balloon", {"actual": 5}) == [Sample(BALLOON, (), {"actual_bytes": 5})]
    assert list(read({})) == list(read({"actual": None})) == []
