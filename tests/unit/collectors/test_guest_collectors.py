"""Collectors of the guest agent: samples from replies of real guest agents, and from any other reply."""

import copy
import importlib
import pkgutil
import sys
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.collectors import guest
from agent.collectors.guest import GUEST_COLLECTORS, GuestCollector, TimedGuestReply
from agent.collectors.guest.base import MAX_SUBJECTS, MAX_TEXT
from agent.collectors.guest.filesystems import IGNORED_TYPES
from agent.guest.config import GuestIntervalsConfig
from agent.model.family import FieldKind, Sample
from agent.model.metrics.guest import GUEST_ADDRESS, GUEST_CLOCK, GUEST_FILESYSTEM
from agent.model.record import Record, RecordEncoder, Vm
from agent.qga.commands import GUEST_READS
from agent.qga.errors import GuestAgentCommandError, GuestAgentError, UnreadableGuestReplyError
from agent.qga.protocol import MAX_REPLY_BYTES
from tests.lab import golden_files
from tests.lab.guest_transcript import load
from tests.unit.collectors.test_collectors import any_json, copy_with, paths_in

BY_NAME = {collector.name: collector for collector in GUEST_COLLECTORS}
SENT_NS = 1_796_022_059_300_000_000


def value_of(reply: dict[str, Any]) -> Any:
    return reply["return"] if "return" in reply else GuestAgentCommandError(error_class="CommandNotFound", desc="no")


def collect(name: str, *replies: Any) -> list[Sample]:
    exchanges = [TimedGuestReply(reply, SENT_NS, SENT_NS + 20_000_000) for reply in replies]
    return list(BY_NAME[name].collect(exchanges))


def check_guest_sample(sample: Sample) -> None:
    """Assert that a sample has its family's fields in the right types and can be encoded."""
    kinds = {field.name: field.kind for field in sample.family.fields}
    assert len(sample.labels) == len(sample.family.labels)
    assert all(type(label) is str and label and len(label) <= MAX_TEXT and "\n" not in label for label in sample.labels)
    for field, value in sample.values.items():
        if kinds[field] in (FieldKind.COUNTER, FieldKind.GAUGE):
            assert type(value) in (int, float)
        elif kinds[field] is not FieldKind.DETAIL:
            assert type(value) is (bool if kinds[field] is FieldKind.FLAG else str)
    assert RecordEncoder()(Record("qemu.sample.x", Vm("h", "u", "n"), sample.data, 0, sample.subject)).body


# --- Real replies ---


@pytest.mark.parametrize("release", ["7.2", "10.0", "11.1"])
def test_real_replies_result_in_the_samples_of_the_golden_file(release: str) -> None:
    replies = load(release)
    samples = {}
    for name, collector in BY_NAME.items():
        values = [value_of(replies[command]) for command in collector.commands]
        try:
            found = collect(name, *values)
        except GuestAgentCommandError:
            found = []  # an old guest agent lacks the command
        for sample in found:
            check_guest_sample(sample)
        samples[name] = [{"family": s.family.name, "labels": list(s.labels), "values": s.values} for s in found]
    file = f"guest_agent/samples-{release}.json"
    if golden_files.WRITE:
        golden_files.save(file, samples)
    assert samples == golden_files.load(file)


# --- File systems ---

ROOT: dict[str, Any] = {"name": "vda1", "type": "ext4", "mountpoint": "/", "total-bytes": 100, "used-bytes": 40}
DISK = [{"bus-type": "virtio", "dev": "/dev/vda1", "serial": "s1", "bus": 0, "unit": 0, "target": 0}]


def mountpoints(*entries: dict[str, Any]) -> list[str]:
    return [sample.subject for sample in collect("filesystems", list(entries))]


def test_a_file_system_that_is_mounted_thrice_is_reported_once() -> None:
    bind = [ROOT | {"disk": DISK, "mountpoint": path} for path in ("/var/lib/kubelet/pods/x", "/srv", "/var/x")]
    assert mountpoints(*bind) == ["/srv"]
    assert mountpoints(ROOT, ROOT | {"name": "vda2", "mountpoint": "/var"}) == ["/", "/var"]


def test_one_device_name_on_two_disks_is_two_file_systems() -> None:
    other = [DISK[0] | {"serial": "s2"}]
    assert mountpoints(ROOT | {"disk": DISK}, ROOT | {"disk": other, "mountpoint": "/b"}) == ["/", "/b"]


@pytest.mark.parametrize("kind", [*sorted(IGNORED_TYPES), "CDFS", "UDF"])
def test_pseudo_file_systems_are_left_out(kind: str) -> None:
    assert mountpoints(ROOT, ROOT | {"name": "x", "type": kind, "mountpoint": "/x"}) == ["/"]


@pytest.mark.parametrize(
    "change",
    [
        {"total-bytes": None},
        {"used-bytes": None},
        {"total-bytes": 0, "used-bytes": 0},
        {"used-bytes": 101},
        {"used-bytes": -1},
        {"total-bytes": 2**64},
        {"total-bytes": True},
        {"total-bytes": 100.0},
        {"mountpoint": ""},
    ],
)
def test_a_file_system_without_a_valid_size_is_absent_and_not_zero(change: dict[str, Any]) -> None:
    entry = {key: value for key, value in (ROOT | change).items() if value is not None}
    assert mountpoints(entry) == []


def test_windows_volumes_have_their_letter_and_unformatted_ones_no_type() -> None:
    volume = {
        "name": "\\\\?\\Volume{91d7ba8e}\\",
        "mountpoint": "C:\\",
        "type": "NTFS",
        "total-bytes": 10,
        "used-bytes": 9,
    }
    raw = {"name": "\\\\?\\Volume{00000000}\\", "mountpoint": "E:\\", "type": "", "total-bytes": 10, "used-bytes": 0}
    reserved = {"name": "\\\\?\\Volume{1111}\\", "mountpoint": "System Reserved", "type": "NTFS"}
    samples = collect("filesystems", [volume, raw, reserved])
    assert [sample.labels for sample in samples] == [
        ("C:\\", "\\\\?\\Volume{91d7ba8e}\\", "NTFS"),
        ("E:\\", "\\\\?\\Volume{00000000}\\", "unknown"),
    ]


def test_the_size_with_the_reserve_of_root_is_reported_if_known() -> None:
    (sample,) = collect("filesystems", [ROOT | {"total-bytes-privileged": 105}])
    assert sample.values["privileged_size_bytes"] == 105
    assert sample.values["available_bytes"] == 60


def test_the_disks_below_a_file_system_are_in_its_record() -> None:
    pci = {"domain": 0, "bus": 1, "slot": 2, "function": 3}
    (sample,) = collect("filesystems", [ROOT | {"disk": [DISK[0] | {"pci-controller": pci}]}])
    expected = {"device": "/dev/vda1", "serial": "s1", "bus": "virtio", "pci_address": "0000:01:02.3"}
    assert sample.values["disks"] == [expected]


# --- Other collectors ---


def test_the_clocks_offset_is_measured_from_the_middle_of_the_exchange() -> None:
    (sample,) = collect("clock", SENT_NS + 10_000_000 + 5 * 10**9)
    assert sample.family is GUEST_CLOCK
    assert sample.values == {"offset_seconds": 5.0, "uncertainty_seconds": 0.01}
    assert [collect("clock", wrong) for wrong in (2**63, -1, True)] == [[], [], []]


def test_the_operating_system_is_reported_without_the_commands_that_are_missing() -> None:
    missing = GuestAgentCommandError("CommandNotFound", "no")
    (sample,) = collect("os", missing, {"host-name": "web-3"}, missing)
    assert sample.values == {"hostname": "web-3"}
    assert collect("os", missing, missing, missing) == []


def test_users_are_counted_and_not_named() -> None:
    (sample,) = collect("users", [{"user": "alice", "login-time": 5}, {"user": "bob", "login-time": 6}])
    assert sample.values == {"logged_in": 2}


def test_addresses_are_valid_and_the_first_global_one_is_a_label() -> None:
    texts = ["fe80::1%eth0", "not an address", "2001:0db8::0001", "192.0.2.7", 5]
    entries = [{"ip-address": text, "prefix": 64 if ":" in str(text) else 24} for text in texts]
    samples = collect("network", [{"name": "eth0", "hardware-address": "02:00:00:00:00:01", "ip-addresses": entries}])
    (sample,) = [sample for sample in samples if sample.family is GUEST_ADDRESS]
    assert sample.values["ipv4"] == "192.0.2.7"
    assert sample.values["ipv6"] == "2001:db8::1"
    assert [entry["address"] for entry in sample.values["addresses"]] == ["fe80::1", "2001:db8::1", "192.0.2.7"]


def test_the_states_of_a_freeze() -> None:
    assert [collect("freeze", state)[0].values for state in ("frozen", "thawed")] == [
        {"frozen": True},
        {"frozen": False},
    ]
    assert collect("freeze", "melting") == []


# --- Hostile replies ---

ADDRESS = {"ip-address": "1::", "prefix": 64}
MAX_CALLS = 90_000
"""Calls of functions, those of C included, that one reply may cost. They take about ten milliseconds, in which the event loop waits."""


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("network", {"name": "e"}),
        ("network", {"name": "lo", "ip-addresses": [{"ip-address": "::1"}]}),
        ("network", {"name": "lo", "ip-addresses": [*[ADDRESS] * 31, {"ip-address": "::1"}]}),
        ("network", {"name": "e", "ip-addresses": [{"ip-address": "1:"}] * 32}),
        ("network", {"name": "", "ip-addresses": [ADDRESS] * 1000}),
        ("disks", {}),
        ("disks", {"name": "loop0", "stats": {"read-ios": 1}}),
        ("filesystems", ROOT),
        ("filesystems", ROOT | {"disk": [{"dev": "a", "serial": "b"}] * 8}),
        ("cpu", dict.fromkeys(("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"), 1)),
        ("users", {}),
    ],
)
def test_a_reply_of_the_maximum_size_costs_a_bounded_number_of_calls(name: str, entry: dict[str, Any]) -> None:
    reply = [entry] * (MAX_REPLY_BYTES // (len(orjson.dumps(entry)) + 1))
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        samples = collect(name, reply)
    finally:
        sys.setprofile(None)
    assert len(samples) <= MAX_SUBJECTS
    assert calls <= MAX_CALLS


def test_interfaces_after_those_with_too_many_addresses_still_have_their_traffic() -> None:
    crowded = [{"name": f"e{number}", "ip-addresses": [ADDRESS] * 32} for number in range(40)]
    last = {"name": "eth9", "ip-addresses": [ADDRESS], "statistics": {"rx-bytes": 7}}
    samples = collect("network", [*crowded, last])
    assert [sample.values["rx_bytes_total"] for sample in samples if sample.subject == "eth9"] == [7]


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("wrong", [None, 1.5, True, {"x": 1}, [5], "x", []])
def test_a_reply_of_a_wrong_type_is_an_error_or_has_no_sample(name: str, wrong: Any) -> None:
    try:
        samples = collect(name, *[wrong] * len(BY_NAME[name].commands))
    except UnreadableGuestReplyError:
        return
    for sample in samples:
        check_guest_sample(sample)


def test_a_guest_with_a_million_subjects_gets_few_samples() -> None:
    many = range(100_000)
    entries = [ROOT | {"name": f"d{number}", "mountpoint": f"/{number}"} for number in many]
    assert len(collect("filesystems", entries)) == MAX_SUBJECTS
    disks = [{"name": f"d{number}", "stats": {"read-ios": 1}} for number in many]
    assert len(collect("disks", disks)) == MAX_SUBJECTS
    stats = {"rx-bytes": 1}
    assert len(collect("network", [{"name": f"e{number}", "statistics": stats} for number in many])) == MAX_SUBJECTS


@pytest.mark.parametrize("text", ["a" * 10_000, 'x"} 1\nevil 1', "\x1b[31m", "\u202e", "\x00"])
def test_names_from_a_guest_are_short_and_harmless(text: str) -> None:
    (sample,) = collect("filesystems", [ROOT | {"mountpoint": text, "type": text, "name": text}])
    check_guest_sample(sample)
    assert sample.family is GUEST_FILESYSTEM
    assert not any(character in label for label in sample.labels for character in "\x00\n\x1b\u202e")


REAL = [
    (collector.name, [reply["return"] for reply in map(load().__getitem__, collector.commands)])
    for collector in GUEST_COLLECTORS
    if all("return" in load()[command] for command in collector.commands)
]


@given(st.data())
def test_samples_of_replies_with_any_replaced_part_have_valid_fields(data: st.DataObject) -> None:
    name, replies = data.draw(st.sampled_from(REAL))
    which = data.draw(st.integers(0, len(replies) - 1))
    path = data.draw(st.sampled_from(list(paths_in(replies[which]))))
    try:
        samples = collect(name, *copy_with(copy.deepcopy(replies), (which, *path), data.draw(any_json)))
    except GuestAgentError:
        return
    for sample in samples:
        check_guest_sample(sample)


# --- Tables ---


def test_every_guest_collector_is_listed_permitted_and_has_an_interval() -> None:
    written = {
        collector.name: collector
        for module in pkgutil.iter_modules(guest.__path__)
        for collector in vars(importlib.import_module(f"agent.collectors.guest.{module.name}")).values()
        if isinstance(collector, GuestCollector)
    }
    assert written == BY_NAME, "add it to GUEST_COLLECTORS"
    assert set(GuestIntervalsConfig.model_fields) == BY_NAME.keys()
    commands = {command for collector in GUEST_COLLECTORS for command in collector.commands}
    assert commands | {"guest-info"} == GUEST_READS
