"""The event table: complete, with the right severity and subject for each event."""

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.collectors import ALL_COLLECTORS
from agent.model.event_definition import EventCategory, device_name_from_qom_path
from agent.model.event_table import EVENT_DEFINITIONS, EVENT_DEFINITIONS_BY_NAME, find_event_definition
from agent.model.record import Severity
from agent.session.session import DISCOVER_PROCESS
from tests.lab import golden_files

DEBUG, INFO, WARNING, ERROR, CRITICAL = Severity
QEMU = golden_files.load("events.json")


@pytest.mark.parametrize("version", QEMU)
def test_the_table_has_every_event_of_a_qemu_version(version: str) -> None:
    assert len(QEMU[version]) > 50
    assert set(QEMU[version]) <= EVENT_DEFINITIONS_BY_NAME.keys()


@pytest.mark.parametrize("version", QEMU)
def test_no_event_is_older_than_its_row_says(version: str) -> None:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(".")))

    for name in QEMU[version]:
        assert not EVENT_DEFINITIONS_BY_NAME[name].since or numbers(EVENT_DEFINITIONS_BY_NAME[name].since) <= numbers(
            version
        ), name


def test_each_event_has_one_row_and_its_help_is_a_sentence() -> None:
    assert [name for name, count in Counter(row.name for row in EVENT_DEFINITIONS).items() if count > 1] == []
    for row in EVENT_DEFINITIONS:
        assert re.fullmatch(r"[A-Z][^\n]*\.", row.help), row.name
        assert row.category is not EventCategory.UNKNOWN
        assert re.fullmatch(r"(\d+\.\d+)?", row.since)


def test_events_invalidate_existing_collectors_only() -> None:
    assert {name for row in EVENT_DEFINITIONS for name in row.invalidates} <= {
        DISCOVER_PROCESS,
        *(collector.name for collector in ALL_COLLECTORS),
    }


@pytest.mark.parametrize(
    ("name", "data", "severity"),
    [
        ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}, INFO),
        ("SHUTDOWN", {"guest": False, "reason": "host-error"}, CRITICAL),
        ("SHUTDOWN", {"guest": True, "reason": "guest-panic"}, ERROR),
        ("SHUTDOWN", {}, INFO),  # QEMU 2.6
        ("RESET", {"guest": True, "reason": "guest-reset"}, INFO),
        ("RESET", {"guest": True, "reason": "guest-panic"}, WARNING),
        ("RESET", {"guest": True, "reason": "subsystem-reset"}, WARNING),
        ("STOP", {}, INFO),
        ("WATCHDOG", {"action": "reset"}, ERROR),
        ("GUEST_PANICKED", {"action": "pause"}, CRITICAL),
        ("MEMORY_FAILURE", {"recipient": "guest", "action": "fatal"}, CRITICAL),
        ("MEMORY_FAILURE", {"recipient": "guest", "action": "reset"}, CRITICAL),
        ("MEMORY_FAILURE", {"recipient": "guest", "action": "inject"}, ERROR),
        ("BLOCK_IO_ERROR", {"action": "report", "nospace": False}, ERROR),
        ("BLOCK_IO_ERROR", {"action": "ignore"}, ERROR),
        ("BLOCK_IO_ERROR", {"action": "stop", "nospace": False}, CRITICAL),
        ("BLOCK_IO_ERROR", {"action": "report", "nospace": True}, CRITICAL),
        ("BLOCK_IMAGE_CORRUPTED", {"fatal": True}, CRITICAL),
        ("BLOCK_IMAGE_CORRUPTED", {"fatal": False}, ERROR),
        ("BLOCK_IMAGE_CORRUPTED", {}, CRITICAL),
        ("BLOCK_WRITE_THRESHOLD", {"node-name": "n"}, WARNING),
        ("PR_MANAGER_STATUS_CHANGED", {"connected": False}, WARNING),
        ("PR_MANAGER_STATUS_CHANGED", {"connected": True}, INFO),
        ("JOB_STATUS_CHANGE", {"status": "running"}, DEBUG),
        ("JOB_STATUS_CHANGE", {"status": "aborting"}, WARNING),
        ("BLOCK_JOB_COMPLETED", {"device": "j"}, INFO),
        ("BLOCK_JOB_COMPLETED", {"device": "j", "error": "No space left on device"}, ERROR),
        ("BLOCK_JOB_CANCELLED", {}, WARNING),
        ("MIGRATION", {"status": "active"}, INFO),
        *(("MIGRATION", {"status": status}, ERROR) for status in ("failing", "failed", "cancelled", "postcopy-paused")),
        ("COLO_EXIT", {"mode": "primary", "reason": "request"}, INFO),
        ("COLO_EXIT", {"mode": "secondary", "reason": "error"}, ERROR),
        ("COLO_EXIT", {"mode": "primary", "reason": "none"}, ERROR),
        ("COLO_EXIT", {}, ERROR),
        ("DUMP_COMPLETED", {"result": {"status": "failed"}, "error": "x"}, ERROR),
        ("DUMP_COMPLETED", {"result": {"status": "completed"}}, INFO),
        ("ACPI_DEVICE_OST", {"info": {"status": 0}}, INFO),
        ("ACPI_DEVICE_OST", {"info": {"status": 1}}, WARNING),
        ("ACPI_DEVICE_OST", {}, INFO),
        ("NETDEV_VHOST_USER_DISCONNECTED", {}, ERROR),
        ("NIC_RX_FILTER_CHANGED", {}, DEBUG),
        ("NOT_IN_THE_TABLE", {"status": "failed"}, INFO),
    ],
)
def test_severity_depends_on_the_events_data(name: str, data: dict[str, Any], severity: Severity) -> None:
    assert find_event_definition(name).severity_for(data) is severity


@pytest.mark.parametrize(
    ("name", "data", "subject"),
    [
        ("BLOCK_IO_ERROR", {"qom-path": "/machine/peripheral/disk0/virtio-backend", "device": ""}, "disk0"),
        ("BLOCK_IO_ERROR", {"device": "drive0", "node-name": "n"}, "drive0"),
        ("BLOCK_IO_ERROR", {"device": "", "node-name": "#block118"}, "#block118"),
        ("BLOCK_IO_ERROR", {"qom-path": 5, "device": None, "node-name": ["x"]}, ""),
        ("BLOCK_WRITE_THRESHOLD", {"node-name": "disk0-storage"}, "disk0-storage"),
        ("DEVICE_DELETED", {"device": "net1", "path": "/machine/peripheral/net1"}, "net1"),
        ("DEVICE_DELETED", {"path": "/machine/peripheral/net1"}, "net1"),
        ("DEVICE_DELETED", {"path": "/machine/peripheral/net1/virtio-backend"}, "net1"),
        ("DEVICE_TRAY_MOVED", {"device": "", "id": "cd0", "tray-open": True}, "cd0"),
        ("ACPI_DEVICE_OST", {"info": {"device": "dimm1", "slot": "0"}}, "dimm1"),
        ("ACPI_DEVICE_OST", {"info": {"slot": "0"}}, "0"),
        ("ACPI_DEVICE_OST", {"info": 5}, ""),
        ("VNC_CONNECTED", {"client": {"host": "192.0.2.7"}, "server": {"host": "x"}}, "192.0.2.7"),
        ("JOB_STATUS_CHANGE", {"id": "job\n0"}, "job\ufffd0"),
        ("STOP", {"id": "x"}, ""),
        ("NOT_IN_THE_TABLE", {"id": "x"}, ""),
    ],
)
def test_an_events_subject_has_the_name_that_samples_use(name: str, data: dict[str, Any], subject: str) -> None:
    assert find_event_definition(name).subject_of(data) == subject


@pytest.mark.parametrize(
    ("qdev", "name"),
    [
        ("/machine/peripheral/disk0/virtio-backend", "disk0"),
        ("/machine/peripheral/disk0", "disk0"),
        ("/machine/peripheral-anon/device[0]/virtio-backend", "device[0]"),
        ("/machine/peripheral/usb0/usb0.0/legacy[0]", "usb0"),
        ("/machine/peripheral-anon/device[2]/scsi.0/legacy[0]", "device[2]"),
        ("/machine/peripheral/lsi0/lsi0.0/legacy[3]", "lsi0/lsi0.0/legacy[3]"),
        ("/machine/peripheral/", "/machine/peripheral/"),
        ("/machine/unattached/device[1]", "/machine/unattached/device[1]"),
        ("disk0", "disk0"),
        ("", ""),
    ],
)
def test_device_name_returns_the_id_of_any_qom_path(qdev: str, name: str) -> None:
    assert device_name_from_qom_path(qdev) == name


def test_an_unknown_event_is_passed_through_under_its_own_name() -> None:
    row = find_event_definition("SOMETHING_NEW_2")
    assert (row.name, row.category, row.invalidates) == ("SOMETHING_NEW_2", EventCategory.UNKNOWN, ())


@pytest.mark.parametrize("name", ["", "stop", "A" * 65, "A-B", "A\n", "2A", "É", "A B", '"', "../X", "_X"])
def test_an_invalid_event_name_becomes_unknown(name: str) -> None:
    assert find_event_definition(name).name == "UNKNOWN"


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda v: (
        st.lists(v, max_size=2) | st.dictionaries(st.sampled_from(["info", "client", "host", "status"]), v, max_size=2)
    ),
    max_leaves=5,
)
fields = sorted(
    {path.split(".")[0] for row in EVENT_DEFINITIONS for path in row.subject_paths}
    | {"reason", "action", "status", "error"}
)


@given(
    st.sampled_from(EVENT_DEFINITIONS),
    st.dictionaries(st.sampled_from([*fields, "nospace", "fatal", "connected"]), json, max_size=4),
)
def test_any_event_with_any_data_has_a_severity_and_a_subject(row: Any, data: dict[str, Any]) -> None:
    assert row.severity_for(data) in Severity
    assert isinstance(row.subject_of(data), str)
