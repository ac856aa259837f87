"""The allow-list: only permitted commands with permitted arguments are encoded."""

from typing import Any

import orjson
import pytest

from agent.qmp.commands import (
    MAX_HISTOGRAM_BOUNDARIES,
    OWN_MONITOR_ID,
    QMP_READS,
    AllowList,
    Command,
    OptInQemuChange,
    commands_to_add_own_monitor,
    commands_to_remove_own_monitor,
)
from agent.qmp.errors import CommandNotAllowedError
from agent.session import identity_and_features
from tests.lab.fixtures import StartGuest

INTERVAL = {"path": "/machine/peripheral/balloon0", "property": "guest-stats-polling-interval", "value": 10}
EVENTS = {"capabilities": [{"capability": "events", "state": True}]}
OWN_SOCKET, OWN_MONITOR = (command.arguments for command in commands_to_add_own_monitor("/run/qmp-agent/own/7.qmp"))
THRESHOLD = {"node-name": "disk0-storage", "write-threshold": 1 << 30}
QUEUE = {"path": "/machine/peripheral/disk0/virtio-backend", "queue": 0}
ALL = AllowList(OptInQemuChange)


def is_refused(allow: AllowList, command: str, arguments: Any = None) -> bool:
    try:
        allow.encode(Command(command, arguments))
    except CommandNotAllowedError:
        return True
    return False


async def test_only_permitted_commands_of_a_real_qemu_can_be_encoded(start_guest: StartGuest) -> None:
    guest = await start_guest()
    names = {command["name"] for command in await guest.command("query-commands")}
    assert len(names) > 100
    assert names - (QMP_READS - {"qom-get"}) == {name for name in names if is_refused(AllowList(), name)}
    # With every change permitted, each form of arguments encodes its own command only.
    for arguments, change in (
        (None, set()),
        ({}, set()),
        (INTERVAL, {"qom-set"}),
        (EVENTS, {"migrate-set-capabilities"}),
        (THRESHOLD, {"block-set-write-threshold"}),
        (OWN_SOCKET, {"chardev-add"}),
        (OWN_MONITOR, {"object-add"}),
        ({"id": OWN_MONITOR_ID}, {"object-del", "chardev-remove"}),
        (QUEUE, {"x-query-virtio-queue-status"}),
    ):
        assert {name for name in names if not is_refused(ALL, name, arguments)} - QMP_READS == change


@pytest.mark.parametrize(
    "command", ["quit", "cont", "human-monitor-command", "qom-list-types", "query-cpus", "", "QUERY-STATUS"]
)
def test_commands_that_are_not_listed_are_refused(command: str) -> None:
    with pytest.raises(CommandNotAllowedError, match="allow-list"):
        ALL.encode(Command(command))


@pytest.mark.parametrize("command", sorted(QMP_READS - {"qom-get"}))
def test_a_read_is_encoded_compactly_without_id_and_newline(command: str) -> None:
    data = AllowList().encode(Command(command))
    assert data == b'{"execute":"%b"}' % command.encode()
    data = AllowList().encode(Command(command, {"path": "/machine", "n": "a\nb"}))
    assert orjson.loads(data) == {"execute": command, "arguments": {"path": "/machine", "n": "a\nb"}}
    assert not set(b" \r\n") & set(data)


@pytest.mark.parametrize("property_name", ["data", "loaded", "", None, ["guest-stats"], "guest-stats "])
def test_only_listed_properties_can_be_read(property_name: Any) -> None:
    assert not is_refused(AllowList(), "qom-get", {"path": "/machine/peripheral/b", "property": "guest-stats"})
    assert is_refused(ALL, "qom-get", {"path": "/objects/secret0", "property": property_name})
    assert is_refused(ALL, "qom-get")


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        {},
        {"path": QUEUE["path"]},
        QUEUE | {"extra": 1},
        QUEUE | {"path": "/machine/peripheral/net0"},
        QUEUE | {"path": ["/virtio-backend"]},
        QUEUE | {"queue": -1},
        QUEUE | {"queue": 1024},
        QUEUE | {"queue": True},
        QUEUE | {"queue": "0"},
    ],
)
def test_a_virtio_queue_is_read_only_if_allowed_and_only_by_path_and_number(arguments: Any) -> None:
    assert is_refused(ALL, "x-query-virtio-queue-status", arguments)
    assert is_refused(
        AllowList(set(OptInQemuChange) - {OptInQemuChange.VIRTIO_QUEUES}), "x-query-virtio-queue-status", QUEUE
    )
    assert AllowList([OptInQemuChange.VIRTIO_QUEUES]).encode(Command("x-query-virtio-queue-status", QUEUE))
    for command in ("x-query-virtio", "x-query-virtio-status", "x-query-virtio-vhost-queue-status"):
        assert is_refused(ALL, command, QUEUE)


def test_a_change_is_refused_until_it_is_permitted_by_name() -> None:
    assert is_refused(AllowList(), "qom-set", INTERVAL)
    assert is_refused(AllowList(), "migrate-set-capabilities", EVENTS)
    assert is_refused(AllowList(), "block-set-write-threshold", THRESHOLD)
    assert is_refused(
        AllowList([OptInQemuChange.GUEST_STATS_INTERVAL, OptInQemuChange.MIGRATION_EVENTS]),
        "block-set-write-threshold",
        THRESHOLD,
    )
    assert is_refused(AllowList([OptInQemuChange.MIGRATION_EVENTS]), "qom-set", INTERVAL)
    assert is_refused(AllowList([OptInQemuChange.GUEST_STATS_INTERVAL]), "migrate-set-capabilities", EVENTS)


def test_every_command_that_the_agent_sends_is_permitted() -> None:
    for command in (
        *identity_and_features.IDENTITY_COMMANDS,
        *identity_and_features.FEATURE_COMMANDS,
        identity_and_features.get_stats_interval_command("/machine/peripheral/balloon0"),
    ):
        assert AllowList().encode(command)
    assert AllowList([OptInQemuChange.GUEST_STATS_INTERVAL]).encode(
        identity_and_features.set_stats_interval_command("/machine/peripheral/b", 10)
    )
    assert AllowList([OptInQemuChange.MIGRATION_EVENTS]).encode(identity_and_features.ENABLE_MIGRATION_EVENTS)


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        {},
        INTERVAL | {"property": "guest-stats"},
        INTERVAL | {"property": ["guest-stats-polling-interval"]},
        INTERVAL | {"value": -1},
        INTERVAL | {"value": 3601},
        INTERVAL | {"value": True},
        INTERVAL | {"value": 10.0},
        INTERVAL | {"value": "10"},
        INTERVAL | {"value": None},
        INTERVAL | {"extra": 1},
        {"property": "guest-stats-polling-interval", "value": 10},
        EVENTS,
    ],
)
def test_the_guest_stats_interval_is_permitted_in_one_form_only(arguments: Any) -> None:
    assert not is_refused(ALL, "qom-set", INTERVAL)
    assert is_refused(ALL, "qom-set", arguments)


def histograms(**boundaries: Any) -> dict[str, Any]:
    """Return arguments that set the latency histograms, with other boundaries of some of them."""
    names = ("read", "write", "flush")
    return {"id": "disk0"} | {f"boundaries-{name}": boundaries.get(name, [1, 2]) for name in names}


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        {},
        {"id": "disk0"},  # removes all histograms
        {"id": "disk0", "boundaries": [1, 2]},
        {"id": "disk0", "boundaries-read": [1, 2]},
        histograms() | {"boundaries-zap": [1, 2]},
        histograms() | {"id": 5},
        histograms(write=None),
        histograms(write=[]),
        histograms(write=[0]),
        histograms(read=[-1, 2]),
        histograms(read=[2, 1]),
        histograms(flush=[1, 1]),
        histograms(flush=[True, 2]),
        histograms(flush=[1.5]),
        histograms(flush=["1"]),
        histograms(flush=[2**63]),
        histograms(read=list(range(1, MAX_HISTOGRAM_BOUNDARIES + 2))),
    ],
)
def test_latency_histograms_are_permitted_in_one_form_only(arguments: Any) -> None:
    assert not is_refused(ALL, "block-latency-histogram-set", histograms())
    assert is_refused(ALL, "block-latency-histogram-set", arguments)
    everything_else = set(OptInQemuChange) - {OptInQemuChange.LATENCY_HISTOGRAMS}
    assert is_refused(AllowList(everything_else), "block-latency-histogram-set", histograms())


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        {},
        {"capabilities": []},
        {"capabilities": [{"capability": "events", "state": False}]},
        {"capabilities": [{"capability": "events", "state": 1}]},
        {"capabilities": [{"capability": "postcopy-ram", "state": True}]},
        {"capabilities": [*EVENTS["capabilities"], {"capability": "xbzrle", "state": True}]},
        {"capabilities": [EVENTS["capabilities"][0] | {"more": 1}]},
        EVENTS | {"more": 1},
        {"capabilities": EVENTS["capabilities"][0]},
    ],
)
def test_migration_events_are_permitted_in_one_form_only(arguments: Any) -> None:
    assert not is_refused(ALL, "migrate-set-capabilities", EVENTS)
    assert is_refused(ALL, "migrate-set-capabilities", arguments)


def chardev_arguments(path: object = "/run/own/7.qmp", **data: Any) -> dict[str, Any]:
    """Return the arguments of the agent's chardev-add with a path; `data` replaces parts of the backend's data."""
    address = {"type": "unix", "data": {"path": path}}
    return {
        "id": OWN_MONITOR_ID,
        "backend": {"type": "socket", "data": {"addr": address, "server": True, "wait": False} | data},
    }


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        {},
        {"id": OWN_MONITOR_ID},
        chardev_arguments("own/7.qmp"),
        chardev_arguments("/etc/passwd"),
        chardev_arguments(None),
        chardev_arguments(addr={"type": "inet", "data": {"host": "0.0.0.0", "port": "1"}}),
        chardev_arguments(addr=5),
        chardev_arguments(server=False),
        chardev_arguments(server=1),
        chardev_arguments(telnet=True),
        chardev_arguments() | {"id": "serial0"},
        chardev_arguments() | {"backend": {"type": "file", "data": {"out": "/etc/passwd"}}},
        chardev_arguments() | {"more": 1},
    ],
)
def test_the_agents_own_monitor_is_permitted_in_one_form_only(arguments: Any) -> None:
    assert not is_refused(ALL, "chardev-add", chardev_arguments())
    assert is_refused(ALL, "chardev-add", arguments)
    assert is_refused(
        AllowList(set(OptInQemuChange) - {OptInQemuChange.OWN_MONITOR}), "chardev-add", chardev_arguments()
    )


@pytest.mark.parametrize("command", ["object-add", "object-del", "chardev-remove"])
@pytest.mark.parametrize(
    "arguments",
    [
        None,
        {},
        {"id": "secret0"},
        {"qom-type": "secret", "id": OWN_MONITOR_ID, "data": "x"},
        {"id": OWN_MONITOR_ID, "more": 1},
    ],
)
def test_objects_of_other_clients_can_be_neither_added_nor_removed(command: str, arguments: Any) -> None:
    assert is_refused(ALL, command, arguments)
    assert not any(
        is_refused(ALL, other.name, other.arguments)
        for other in (*commands_to_add_own_monitor("/a.qmp"), *commands_to_remove_own_monitor())
    )


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        {},
        THRESHOLD | {"write-threshold": 0},  # clears another client's threshold
        THRESHOLD | {"write-threshold": -1},  # QEMU takes it for 2^64 - 1
        THRESHOLD | {"write-threshold": 1 << 63},
        THRESHOLD | {"write-threshold": True},
        THRESHOLD | {"write-threshold": 1.5},
        THRESHOLD | {"write-threshold": "1"},
        THRESHOLD | {"node-name": None},
        THRESHOLD | {"node-name": ["disk0-storage"]},
        THRESHOLD | {"extra": 1},
        {"write-threshold": 5},
    ],
)
def test_a_write_threshold_is_permitted_in_one_form_only(arguments: Any) -> None:
    assert not is_refused(ALL, "block-set-write-threshold", THRESHOLD)
    assert not is_refused(ALL, "block-set-write-threshold", THRESHOLD | {"write-threshold": 2**63 - 1})
    assert is_refused(ALL, "block-set-write-threshold", arguments)
