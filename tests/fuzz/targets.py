"""What is fuzzed, each as a function of bytes that fails where a promise is broken. `make fuzz` drives them by coverage.

Nothing here says what an input is to be: whatever it is, the agent keeps its promises.
"""

import re
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

import orjson

from agent.app.builders import StartError, build_discoverers, build_sink, session_settings
from agent.cli.format import line
from agent.collectors import ALL, ALL_FEATURES, Intervals
from agent.collectors.base import Poll
from agent.config.loader import ConfigError, validate
from agent.config.model import Config
from agent.exposition.prometheus import render
from agent.exposition.snapshot import Snapshot
from agent.http.web_config import WebConfigFile
from agent.model.events import row_of
from agent.model.record import Record, RecordEncoder, Vm
from agent.monitors import Monitor
from agent.qmp.commands import Command
from agent.qmp.errors import CommandError, ProtocolError, QmpError
from agent.qmp.protocol import Event, Message
from agent.session.api import MonitorState, MonitorStatus
from agent.session.identity import Build, identify
from agent.session.poller import MAX_SAMPLES
from tests.lab.qmp_bytes import cut, ready
from tests.unit.collectors.test_collectors import well_formed

MOST_BYTES: Final = 4096
"""The longest message that the fuzzed protocol takes, so that the bound is within an input's reach."""
INTERVALS: Final = Intervals(poll=10, guest_memory=30, migration=1, resync=300)
VM: Final = Vm("hv7", "5f0c2c9e-1111-4111-8111-111111111111", "web-3", "/run/web-3.qmp")

_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SERIES: Final = re.compile(r'[a-z0-9_]+(\{([a-z_]+="([^"\\\n]|\\["\\n])*",?)+\})? (-?[0-9.e+-]+|\+Inf)')


def protocol(data: bytes) -> None:
    """Bytes from a monitor: whole, and cut in pieces, they are the same messages, in bounds, and can all be told."""
    if not data:
        return
    size, stream = data[0] + 1, data[1:]
    whole = _heard(stream, len(stream) + 1)
    assert _heard(stream, size) == whole, "how it is cut makes a difference"
    for message in whole[0]:
        if isinstance(message, Event):
            row = row_of(message.name)
            told = {"event": row.name, "category": row.category.value, "qemu": message.data}
            kind, subject = f"qemu.event.{row.name.lower()}", row.subject_of(message.data)
            _tell(Record(kind, VM, told, message.time_ns or 0, subject, row.severity_for(message.data)))


def _heard(stream: bytes, size: int) -> tuple[list[Message], str]:
    """Return what a connection with three open questions and a probe makes of bytes in chunks of a size, and how it ended."""
    connection = ready(bound=MOST_BYTES)
    heard: list[Message] = []
    connection.ask([Command("query-status"), Command("query-blockstats"), Command("query-jobs")])
    connection.probe()
    ended = ""
    for chunk in cut(stream, [size] * (len(stream) // size)):
        try:
            heard += connection.receive(chunk)
        except ProtocolError as error:
            ended = re.sub(r": .*", "", str(error))  # where in the JSON it is wrong
            break
        frames = connection._frames
        assert len(frames._buffer) + frames._lines_bytes <= MOST_BYTES
    return [_plain(message) for message in heard], ended


def _plain(message: Message) -> Any:
    """Return it as it can be compared: two errors that say the same are one."""
    error = getattr(message, "error", None)
    return message if error is None else ("error", str(error))


def collectors(data: bytes) -> None:
    """A collector's name and a QEMU's answers as JSON: samples have their families' fields in their types, and are told in order."""
    name, _, said = data.partition(b"\n")
    collector = _ASKED.get(name)
    try:
        answers = orjson.loads(said)
    except orjson.JSONDecodeError:
        return
    if collector is None or not isinstance(answers, list) or len(answers) != len(collector.commands(ALL_FEATURES)):
        return
    answers = [_answer(value) for value in answers]
    vm = identify("hv7", "/run/x.qmp", [{"UUID": VM.uuid}, {"name": answers[0]}])
    try:
        samples = tuple(islice(collector.collect(answers), MAX_SAMPLES))
        now = Poll(samples, 10**18, 100.0)
        before = Poll(tuple(collector.derive(Poll(), Poll(samples, 10**18 - 10**9, 99.0))), 10**18 - 10**9, 99.0)
        samples = tuple(collector.derive(before, now))
        notices = [
            *collector.transitions(Poll(), now),
            *collector.transitions(Poll(samples), Poll((), 2 * 10**18, 200.0)),
        ]
        wait = collector.next_poll_delay(samples, ALL_FEATURES, INTERVALS)
        collector.topology(samples)
    except QmpError:
        return
    assert wait is None or wait > 0
    snapshot = Snapshot()
    monitor = Monitor(vm.monitor, (vm.monitor,), _nobody)
    snapshot.status(MonitorStatus(monitor, MonitorState.UP, "", vm, Build("7.2.22", "Debian"), 1))
    snapshot.samples(vm, collector.families, samples, 10**18)
    for sample in samples:
        well_formed(collector.name, sample)
        _tell(Record(f"qemu.sample.{sample.family.name}", vm, sample.data, 10**18, sample.subject))
    for notice in notices:
        _tell(Record(f"qemu.{notice.family.name}", vm, dict(notice.values), 10**18))
    for text in render(snapshot).splitlines():
        assert text.startswith("# ") or _SERIES.fullmatch(text), text


_ASKED: Final = {collector.name.encode(): collector for collector in ALL if not collector.host_only}


def _answer(value: Any) -> Any:
    match value:
        case {"class": str(kind), "desc": str(text)}:
            return CommandError(kind, text)
    return value


async def _nobody(*_: Any, **__: Any) -> Any:
    raise AssertionError("nobody connects here")


def config(data: bytes) -> None:
    """A config's bytes: it is taken, and all of it can be used, or refused with a place and a reason for each thing that is wrong."""
    text = data[1:].decode("utf-8", "replace")
    try:
        if data[:1] > b"\x7f":
            validate(text, "web.yml", WebConfigFile)
            return
        taken = validate(text, "agent.yaml", Config)
    except ConfigError as error:
        assert error.problems
        assert all(problem.text for problem in error.problems)
        return
    assert Config.model_validate(taken.model_dump()) == taken
    session_settings(taken)
    build_discoverers(taken)
    try:
        build_sink(taken)
    except StartError as error:
        assert str(error)


def _tell(record: Record) -> None:
    body = _STAMP(record).body
    assert body.count(b"\n") == 0
    told = line(orjson.loads(body))
    assert not _UNFIT.search(told), told


_STAMP: Final = RecordEncoder(0)

TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "protocol": protocol,
    "collectors": collectors,
    "config": config,
}
