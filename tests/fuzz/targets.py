"""Fuzzing targets: functions of bytes that fail if the agent breaks an invariant. `make fuzz` drives them by coverage.

The targets make no assumption about the input.
"""

import re
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

import orjson

from agent.app.builders import StartError, build_discoverers, build_sink, session_settings
from agent.cli.record_text import format_record
from agent.collectors import ALL_COLLECTORS, FACTS_WITH_ALL_FEATURES, PollIntervals
from agent.collectors.base import MAX_SAMPLES, PollResult
from agent.config.errors import ConfigError
from agent.config.loader import validate_yaml
from agent.config.model import Config
from agent.exposition.prometheus import render_metrics
from agent.exposition.snapshot import Snapshot
from agent.host.rtnetlink import NetlinkError, parse_link_reply
from agent.http.web_config import WebConfigFile
from agent.model.event_table import find_event_definition
from agent.model.record import Record, RecordEncoder, Vm
from agent.monitors import Monitor
from agent.qmp.commands import Command
from agent.qmp.errors import CommandError, ProtocolError, QmpError
from agent.qmp.protocol import Event, Message
from agent.session.identity_and_features import QemuBuild, identify
from agent.session.shared_types import MonitorState, MonitorStatus
from tests.fuzz.guest_targets import guest_collectors, guest_protocol
from tests.lab.qmp_bytes import cut, ready
from tests.unit.collectors.test_collectors import check_sample

MAX_BYTES: Final = 4096
"""Maximum length of a message in the fuzzed protocol: short, so that inputs reach it."""
INTERVALS: Final = PollIntervals(poll=10, guest_memory=30, migrations_and_jobs=1, resync=300)
VM: Final = Vm("hv7", "5f0c2c9e-1111-4111-8111-111111111111", "web-3", "/run/web-3.qmp")

_CONTROL_CHARACTERS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SERIES: Final = re.compile(r'[a-z0-9_]+(\{([a-z_]+="([^"\\\n]|\\["\\n])*",?)+\})? (-?[0-9.e+-]+|\+Inf)')


def protocol(data: bytes) -> None:
    """Check that bytes from a monitor parse to the same messages however they are cut, within bounds, and to valid records."""
    if not data:
        return
    size, stream = data[0] + 1, data[1:]
    whole = _receive(stream, len(stream) + 1)
    assert _receive(stream, size) == whole, "the messages depend on how the bytes are cut"
    for message in whole[0]:
        if isinstance(message, Event):
            row = find_event_definition(message.name)
            fields = {"event": row.name, "category": row.category.value, "qemu": message.data}
            kind, subject = f"qemu.event.{row.name.lower()}", row.subject_of(message.data)
            _encode(Record(kind, VM, fields, message.time_ns or 0, subject, row.severity_for(message.data)))


def _receive(stream: bytes, size: int) -> tuple[list[Message], str]:
    """Feed bytes in chunks of `size` to a connection with three pending commands and a probe.

    Returns:
        The messages, and the error that ended the connection, or an empty text.
    """
    connection = ready(bound=MAX_BYTES)
    messages: list[Message] = []
    connection.send([Command("query-status"), Command("query-blockstats"), Command("query-jobs")])
    connection.next_oob_probe()
    ended = ""
    for chunk in cut(stream, [size] * (len(stream) // size)):
        try:
            messages += connection.receive(chunk)
        except ProtocolError as error:
            ended = re.sub(r": .*", "", str(error))  # without the position in the JSON
            break
        frames = connection._frames
        # One byte past the limit shows that a line is too long.
        assert len(frames._buffer) <= MAX_BYTES + 1
        assert len(frames._lines) <= MAX_BYTES
    return [_plain(message) for message in messages], ended


def _plain(message: Message) -> Any:
    """Return a message in a form that compares by value: errors become their text."""
    error = getattr(message, "error", None)
    return message if error is None else ("error", str(error))


def collectors(data: bytes) -> None:
    """Check that a collector, given its name and QEMU's replies as JSON, returns valid samples or raises QmpError."""
    name, _, text = data.partition(b"\n")
    collector = _COLLECTORS.get(name)
    try:
        replies = orjson.loads(text)
    except orjson.JSONDecodeError:
        return
    if (
        collector is None
        or not isinstance(replies, list)
        or len(replies) != len(collector.commands(FACTS_WITH_ALL_FEATURES))
    ):
        return
    replies = [_reply(value) for value in replies]
    vm = identify("hv7", "/run/x.qmp", [{"UUID": VM.uuid}, {"name": replies[0]}])
    try:
        samples = tuple(
            islice(
                collector.collect(collector.pair_replies_with_subjects(FACTS_WITH_ALL_FEATURES, replies)), MAX_SAMPLES
            )
        )
        now = PollResult(samples, 10**18, 100.0)
        before = PollResult(
            tuple(collector.derive(PollResult(), PollResult(samples, 10**18 - 10**9, 99.0))), 10**18 - 10**9, 99.0
        )
        samples = tuple(collector.derive(before, now))
        notices = [
            *collector.transitions(PollResult(), now),
            *collector.transitions(PollResult(samples), PollResult((), 2 * 10**18, 200.0)),
        ]
        wait = collector.next_poll_delay(samples, FACTS_WITH_ALL_FEATURES, INTERVALS)
        collector.topology(samples)
    except QmpError:
        return
    assert wait is None or wait > 0
    snapshot = Snapshot()
    monitor = Monitor(vm.monitor, (vm.monitor,), _no_connection)
    snapshot.update_monitor_status(MonitorStatus(monitor, MonitorState.UP, "", vm, QemuBuild("7.2.22", "Debian"), 1))
    snapshot.replace_samples(vm, collector.families, samples, 10**18)
    for sample in samples:
        check_sample(collector.name, sample)
        _encode(Record(f"qemu.sample.{sample.family.name}", vm, sample.data, 10**18, sample.subject))
    for notice in notices:
        _encode(Record(f"qemu.{notice.family.name}", vm, dict(notice.values), 10**18))
    for series in render_metrics(snapshot).splitlines():
        assert series.startswith("# ") or _SERIES.fullmatch(series), series


_COLLECTORS: Final = {
    collector.name.encode(): collector for collector in ALL_COLLECTORS if not collector.reads_only_host_files
}


def _reply(value: Any) -> Any:
    match value:
        case {"class": str(kind), "desc": str(text)}:
            return CommandError(kind, text)
    return value


async def _no_connection(*_: Any, **__: Any) -> Any:
    raise AssertionError("no target connects")


def config(data: bytes) -> None:
    """Check that a config is accepted and usable as a whole, or refused with a place and a reason for each error."""
    text = data[1:].decode("utf-8", "replace")
    try:
        if data[:1] > b"\x7f":
            validate_yaml(text, "web.yml", WebConfigFile)
            return
        accepted = validate_yaml(text, "agent.yaml", Config)
    except ConfigError as error:
        assert error.problems
        assert all(problem.text for problem in error.problems)
        return
    assert Config.model_validate(accepted.model_dump()) == accepted
    session_settings(accepted)
    build_discoverers(accepted)
    try:
        build_sink(accepted)
    except StartError as error:
        assert str(error)


def rtnetlink(data: bytes) -> None:
    """Check that any reply of rtnetlink is refused, or results in a bounded number of functions with valid addresses and counters."""
    try:
        functions = parse_link_reply(data)
    except NetlinkError:
        return
    assert len(functions) * _MIN_FUNCTION_BYTES <= len(data)
    for function in functions:
        assert function.mac == "" or _MAC.fullmatch(function.mac)
        assert 0 <= function.number < 1 << 32
        assert all(0 <= count < 1 << 64 for count in function.counters.values())


_MIN_FUNCTION_BYTES: Final = 18
"""Size of the smallest attribute of a virtual function with a number."""
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def _encode(record: Record) -> None:
    body = _ENCODER(record).body
    assert body.count(b"\n") == 0
    text = format_record(orjson.loads(body))
    assert not _CONTROL_CHARACTERS.search(text), text


_ENCODER: Final = RecordEncoder(0)

TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "protocol": protocol,
    "collectors": collectors,
    "config": config,
    "rtnetlink": rtnetlink,
    "guest_protocol": guest_protocol,
    "guest_collectors": guest_collectors,
}
