"""Records as lines for people."""

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from agent.cli.format import line
from agent.model.record import Record, RecordEncoder, Severity, Vm

VM = Vm("host1", "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1", "vm1", "/run/vm1.qmp")
NOON = 1_700_049_600_123_456_789


@pytest.fixture(autouse=True)
def in_utc() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    yield
    os.environ.pop("TZ")
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


def shown(kind: str, data: dict[str, Any], subject: str = "", vm: Vm = VM, **how: Any) -> str:
    severity = how.pop("severity", Severity.INFO)
    return line(json.loads(RecordEncoder()(Record(kind, vm, data, NOON, subject, severity)).body), **how)


def event(qemu: dict[str, Any]) -> dict[str, Any]:
    return {"event": "X", "category": "block", "qemu": qemu}


def test_an_event_says_when_who_what_about_whom_and_its_figures() -> None:
    data = event({"node-name": "n", "action": "stop", "nospace": True, "operation": "write"})
    text = shown("qemu.event.block_io_error", data, "disk0")
    head = "12:00:00.123  vm1           event.block_io_error     disk0       "
    assert text == f"{head}node-name=n  action=stop  nospace=True  operation=write"


def test_a_sample_says_what_is_not_zero_in_units_for_people() -> None:
    data = {
        "device": "disk0",
        "qdev": "/machine/peripheral/disk0/virtio-backend",
        "reads_total": 0,
        "writes_total": 12345,
        "write_bytes_total": 1536,
        "write_seconds_total": 0.123456,
        "throughput_bytes_per_second": 1 << 20,
        "last_update_timestamp_seconds": 1_700_049_600,
        "account_failed": True,
        "error": "",
        "running": False,
    }
    assert shown("qemu.sample.block", data, "disk0").split("disk0", 1)[1].split() == [
        *["writes=12345", "write=1.5", "KiB", "write_seconds=0.1235", "throughput_bytes_per_second=1", "MiB/s"],
        "last_update=12:00:00",
    ]


def test_a_monitor_that_has_not_told_goes_by_its_address() -> None:
    assert "  /run/vm9.qmp  vm.busy " in shown("qemu.vm.busy", {"reason": "x"}, vm=Vm("host1", "", "", "/run/vm9.qmp"))


def test_a_line_is_cut_to_the_width_and_has_no_blanks_at_its_end() -> None:
    assert len(shown("qemu.event.x", event({"a": "x" * 500}), width=80)) == 80
    assert shown("qemu.event.x", event({})) == shown("qemu.event.x", event({})).rstrip()
    assert len(shown("qemu.event.x", event({"a": "x" * 50_000}))) <= 4096


@pytest.mark.parametrize(
    ("kind", "severity", "code"),
    [
        ("qemu.event.stop", Severity.DEBUG, "2"),
        ("qemu.event.stop", Severity.INFO, None),
        ("qemu.event.stop", Severity.WARNING, "33"),
        ("qemu.event.stop", Severity.ERROR, "31"),
        ("qemu.event.stop", Severity.CRITICAL, "1;31"),
        ("qemu.alert.write_threshold", Severity.WARNING, "1;35"),
    ],
)
def test_colour_tells_how_severe_it_is(kind: str, severity: Severity, code: str | None) -> None:
    plain = shown(kind, {}, severity=severity)
    assert shown(kind, {}, severity=severity, colour=True) == (f"\x1b[{code}m{plain}\x1b[0m" if code else plain)
    assert "\x1b" not in plain


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "\r", "\u202e", "\x9b31m"])
def test_nothing_a_guest_says_moves_the_cursor(text: str) -> None:
    hostile = Vm("host1", VM.uuid, text, text)
    for made in (shown("qemu.event.x", event({text: text, "b": [text], "c": {text: 1}}), text, hostile),):
        assert not set(made) & set("\n\r\x1b\u202e\x9b")


def test_an_event_whose_own_data_is_called_as_ours_is_shown() -> None:
    assert "qemu=5" in shown("qemu.event.x", event({"qemu": 5}))


def test_a_time_past_all_measure_is_shown() -> None:
    assert shown("qemu.sample.guest_memory", {"last_update_timestamp_seconds": 2**63 - 1})
