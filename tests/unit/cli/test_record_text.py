"""Formatting of records as readable lines."""

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from agent.cli.record_text import format_record
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


def formatted(kind: str, data: dict[str, Any], subject: str = "", vm: Vm = VM, **options: Any) -> str:
    severity = options.pop("severity", Severity.INFO)
    return format_record(json.loads(RecordEncoder()(Record(kind, vm, data, NOON, subject, severity)).body), **options)


def event(qemu: dict[str, Any]) -> dict[str, Any]:
    return {"event": "X", "category": "block", "qemu": qemu}


def test_an_event_line_has_time_vm_type_subject_and_values() -> None:
    data = event({"node-name": "n", "action": "stop", "nospace": True, "operation": "write"})
    text = formatted("qemu.event.block_io_error", data, "disk0")
    head = "12:00:00.123  vm1           event.block_io_error        disk0       "
    assert text == f"{head}node-name=n  action=stop  nospace=true  operation=write"


def test_a_sample_line_has_nonzero_values_in_readable_units() -> None:
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
    assert formatted("qemu.sample.block", data, "disk0").split("disk0", 1)[1].split() == [
        *["writes=12345", "write=1.5", "KiB", "write_seconds=0.1235", "throughput_bytes_per_second=1", "MiB/s"],
        "last_update=12:00:00",
    ]


def test_a_vm_without_a_name_is_shown_by_its_monitor() -> None:
    assert "  /run/vm9.qmp  vm.busy " in formatted(
        "qemu.vm.busy", {"reason": "x"}, vm=Vm("host1", "", "", "/run/vm9.qmp")
    )


def test_a_line_is_cut_to_the_width_without_trailing_blanks() -> None:
    assert len(formatted("qemu.event.x", event({"a": "x" * 500}), width=80)) == 80
    assert formatted("qemu.event.x", event({})) == formatted("qemu.event.x", event({})).rstrip()
    assert len(formatted("qemu.event.x", event({"a": "x" * 50_000}))) <= 4096


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
def test_the_colour_depends_on_the_severity(kind: str, severity: Severity, code: str | None) -> None:
    plain = formatted(kind, {}, severity=severity)
    assert formatted(kind, {}, severity=severity, colour=True) == (f"\x1b[{code}m{plain}\x1b[0m" if code else plain)
    assert "\x1b" not in plain


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "\r", "\u202e", "\x9b31m"])
def test_text_of_a_guest_cannot_control_the_terminal(text: str) -> None:
    hostile = Vm("host1", VM.uuid, text, text)
    shown = formatted("qemu.event.x", event({text: text, "b": [text], "c": {text: 1}}), text, hostile)
    assert not set(shown) & set("\n\r\x1b\u202e\x9b")


def test_qemus_own_sizes_are_shown_in_readable_units() -> None:
    text = formatted("qemu.event.block_write_threshold", event({"write-threshold": 1441792, "amount-exceeded": 65536}))
    assert text.endswith("  write-threshold=1.38 MiB  amount-exceeded=64 KiB")


def test_an_event_field_named_qemu_is_shown() -> None:
    assert "qemu=5" in formatted("qemu.event.x", event({"qemu": 5}))


def test_a_timestamp_out_of_range_is_shown() -> None:
    assert formatted("qemu.sample.guest_memory", {"last_update_timestamp_seconds": 2**63 - 1})
