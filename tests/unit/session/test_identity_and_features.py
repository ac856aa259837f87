"""Identity and features of a VM, from valid and invalid answers."""

import uuid
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.qmp.errors import CommandError
from agent.qmp.protocol import Greeting
from agent.session import identity_and_features

UUID = "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1"
NIL = "00000000-0000-0000-0000-000000000000"
REFUSED = CommandError("GenericError", "no")
TYPE_PROPERTY = {"name": "type", "type": "string"}


def uuid_and_name(
    uuid_answer: Any, name_answer: Any = None, *, host: str = "host1", monitor: str = "/run/vm1.qmp"
) -> tuple[str, str]:
    vm = identity_and_features.identify(host, monitor, [uuid_answer, name_answer])
    assert (vm.host, vm.monitor) == (host, monitor)
    return vm.uuid, vm.name


def qom_child(kind: str, name: str = "balloon0") -> dict[str, str]:
    return {"name": name, "type": f"child<{kind}>"}


def test_a_vm_has_its_uuid_and_name() -> None:
    assert uuid_and_name({"UUID": UUID}, {"name": "vm1"}) == (UUID, "vm1")
    assert uuid_and_name({"UUID": UUID.upper()}, {"name": "vm1"}) == (UUID, "vm1")


@pytest.mark.parametrize("name_answer", [{}, {"name": ""}, {"name": 5}, {"name": None}, REFUSED, None, []])
def test_a_vm_without_a_name_is_named_by_its_uuid(name_answer: Any) -> None:
    assert uuid_and_name({"UUID": UUID}, name_answer) == (UUID, UUID)


def test_a_name_is_sanitized_and_truncated() -> None:
    assert uuid_and_name({"UUID": UUID}, {"name": "a\nb\x1b" + "x" * 1000})[1] == "a\ufffdb\ufffd" + "x" * 251


@pytest.mark.parametrize(
    "uuid_answer", [{"UUID": NIL}, {"UUID": ""}, {"UUID": "x"}, {"UUID": 5}, {"UUID": None}, {}, REFUSED, None, [UUID]]
)
def test_a_vm_without_a_uuid_gets_a_stable_and_unique_one(uuid_answer: Any) -> None:
    vm_uuid, name = uuid_and_name(uuid_answer)
    assert vm_uuid == name == uuid_and_name({"UUID": NIL})[0]
    assert uuid.UUID(vm_uuid).version == 5
    assert vm_uuid != uuid_and_name(uuid_answer, monitor="/run/vm2.qmp")[0]
    assert vm_uuid != uuid_and_name(uuid_answer, host="host2")[0]


ADDRESS = "/run/agent.sock"


def inbound_uuid(
    pid: int, name: str = "", arguments: tuple[str, ...] = (), *, address: str = ADDRESS, vm_uuid: str = NIL
) -> str:
    """Return the UUID of a VM that connects to the agent."""
    answers = [{"UUID": vm_uuid}, {"name": name}]
    return identity_and_features.identify(
        "host1", f"{ADDRESS} pid {pid}", answers, shared_address=address, arguments=lambda: arguments
    ).uuid


def test_an_inbound_vm_without_a_uuid_keeps_its_uuid_with_its_name() -> None:
    assert inbound_uuid(7, "web") == inbound_uuid(8, "web", ("qemu-kvm", "-m", "2G"))
    assert inbound_uuid(7, "web") != inbound_uuid(7, "db")
    assert inbound_uuid(7, "web") != inbound_uuid(7, "web", address="tcp:0.0.0.0:4445 from 192.0.2.7")
    assert inbound_uuid(7, "web", vm_uuid=UUID) == UUID


def test_an_inbound_vm_without_uuid_and_name_keeps_its_uuid_with_its_command_line() -> None:
    first, other = ("qemu-kvm", "-drive", "file=/a"), ("qemu-kvm", "-drive", "file=/b")
    assert inbound_uuid(7, arguments=first) == inbound_uuid(8, arguments=first)
    assert inbound_uuid(7, arguments=first) != inbound_uuid(7, arguments=other)
    assert inbound_uuid(7, arguments=("qemu-kvm",)) != inbound_uuid(7, "qemu-kvm"), "a name is no command line"
    assert inbound_uuid(7, arguments=("a", "b c")) != inbound_uuid(7, arguments=("a b", "c"))


def test_an_inbound_vm_of_which_nothing_is_known_is_not_mistaken_for_another() -> None:
    assert inbound_uuid(7) == inbound_uuid(7)
    assert inbound_uuid(7) != inbound_uuid(8)


@pytest.mark.parametrize(
    ("version", "package", "build"),
    [
        ((7, 2, 22), "Debian 1:7.2", identity_and_features.QemuBuild("7.2.22", "Debian 1:7.2")),
        ((0, 0, 0), "", identity_and_features.QemuBuild("", "")),
        ((11, 1, 3), "a\nb" + "x" * 500, identity_and_features.QemuBuild("11.1.3", "a\ufffdb" + "x" * 125)),
    ],
)
def test_the_build_comes_from_the_greeting(
    version: tuple[int, int, int], package: str, build: identity_and_features.QemuBuild
) -> None:
    assert identity_and_features.qemu_build_of(Greeting(version, package, oob=True)) == build


@pytest.mark.parametrize("bus", ["pci", "ccw", "device", "pci-transitional", "pci-non-transitional"])
def test_a_balloon_is_found_on_any_bus_with_or_without_an_id(bus: str) -> None:
    balloon = qom_child(f"virtio-balloon-{bus}")
    assert (
        identity_and_features.balloon_path([[], [TYPE_PROPERTY, qom_child("virtio-blk-pci", "disk0"), balloon], []])
        == "/machine/peripheral/balloon0"
    )
    anonymous = balloon | {"name": "device[3]"}
    assert (
        identity_and_features.balloon_path([[], [TYPE_PROPERTY], [TYPE_PROPERTY, anonymous]])
        == "/machine/peripheral-anon/device[3]"
    )


@pytest.mark.parametrize(
    "children",
    [
        REFUSED,
        None,
        {},
        "x",
        [],
        [5],
        [None],
        [{}],
        [{"name": "b"}],
        [{"name": 5, "type": "child<virtio-balloon-pci>"}],
        [{"name": "b", "type": 5}],
        [{"name": "b", "type": "link<virtio-balloon-pci>"}],
        [qom_child("virtio-net-pci")],
    ],
)
def test_another_device_is_not_a_balloon(children: Any) -> None:
    assert identity_and_features.balloon_path([[], children, children]) is None


@pytest.mark.parametrize(
    ("capabilities", "on"),
    [
        ([{"capability": "xbzrle", "state": True}, {"capability": "events", "state": True}], True),
        ([{"capability": "events", "state": False}], False),
        ([{"capability": "events", "state": 1}], False),
        ([{"capability": "events"}], False),
        ([{"capability": "xbzrle", "state": True}], False),
        ([5, None, []], False),
        ([], False),
        ({}, False),
        (REFUSED, False),
    ],
)
def test_migration_events_are_enabled_only_if_qemu_reports_it(capabilities: Any, on: bool) -> None:  # noqa: FBT001 - the expected result
    assert identity_and_features.migration_events_enabled([capabilities, [], []]) is on


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [(10, 10), (0, 0), (-1, 0), (1 << 40, 0), ("10", 0), (True, 0), (1.5, 0), (None, 0), (REFUSED, 0)],
)
def test_a_stats_interval_is_a_positive_number_of_seconds_or_zero(answer: Any, seconds: int) -> None:
    assert identity_and_features.parse_stats_interval(answer) == seconds


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda v: (
        st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["UUID", "name", "type", "state"]), v, max_size=3)
    ),
    max_leaves=6,
)


@given(json, json, json)
def test_no_answer_raises(first: Any, second: Any, third: Any) -> None:
    vm = identity_and_features.identify("host1", "/run/vm1.qmp", [first, second])
    assert uuid.UUID(vm.uuid)
    assert vm.name
    identity_and_features.balloon_path([first, second, third])
    identity_and_features.migration_events_enabled([first, second, third])


@pytest.mark.parametrize(
    ("container", "name", "namespace"),
    [
        ("virt-launcher-web-1-x2x", "shop_web-1", "shop"),
        ("virt-launcher-web-1-x2x", "web-1", ""),
        ("", "shop_web-1", ""),
        ("another-pod", "shop_web-1", ""),
    ],
)
def test_a_vm_of_kubevirt_has_the_namespace_in_its_domains_name(container: str, name: str, namespace: str) -> None:
    vm = identity_and_features.identify("host1", "monitor", ({"UUID": UUID}, {"name": name}), container=container)
    assert (vm.name, vm.namespace) == (name, namespace)
    assert ("vmnamespace" in orjson.loads(vm.json_prefix + b"}")) is bool(namespace)
