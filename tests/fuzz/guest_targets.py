"""Fuzzing targets of the guest agent: bytes that a guest sends, and replies as JSON."""

import contextlib
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

import orjson

from agent.alerts.engine import AlertEngine
from agent.collectors.guest import GUEST_COLLECTORS, GuestCollector, TimedGuestReply
from agent.exposition.prometheus import render_metrics
from agent.exposition.snapshot import Snapshot
from agent.guest.session import MAX_GUEST_SAMPLES, parse_guest_info
from agent.model.record import Vm
from agent.monitors import Monitor
from agent.qga.errors import GuestAgentCommandError, GuestAgentError
from agent.qga.protocol import MAX_REPLY_BYTES, GuestAgentProtocol, GuestReply, SyncState
from agent.session.identity_and_features import QemuBuild
from agent.session.shared_types import MonitorState, MonitorStatus
from tests.lab.qmp_bytes import cut
from tests.lab.thin_disks import policy
from tests.unit.collectors.test_guest_collectors import check_guest_sample

VM: Final = Vm("hv7", "5f0c2c9e-1111-4111-8111-111111111111", "web-3", "/run/web-3.qmp")
_SERIES: Final = re.compile(r'[a-z0-9_]+(\{([a-z0-9_]+="([^"\\\n]|\\["\\n])*",?)+\})? (-?[0-9.e+-]+|\+Inf)')
_COLLECTORS: Final[Mapping[bytes, GuestCollector]] = {
    collector.name.encode(): collector for collector in GUEST_COLLECTORS
}


def guest_protocol(data: bytes) -> None:
    """Check that bytes from a guest result in the same replies however they are cut, within bounds, and that it can synchronize."""
    if not data:
        return
    size, stream = data[0] + 1, data[1:]
    assert _replies(stream, size) == _replies(stream, len(stream) + 1), "the replies depend on how the bytes are cut"


def _replies(stream: bytes, size: int) -> list[str]:
    """Feed bytes in chunks of `size` to a connection that sends a command whenever it is ready, and then synchronize it."""
    connection = GuestAgentProtocol(first_number=40)
    connection.start_synchronization()  # its number is 41, which inputs can reach
    seen: list[str] = []
    for chunk in cut(stream, [size] * (len(stream) // size)):
        for message in connection.receive(chunk):
            if connection.state is SyncState.READY:
                connection.start_command("guest-info")
            seen.append(
                repr(message) if not isinstance(message, GuestReply) else f"{message.value!r} {message.error!r}"
            )
        assert len(connection._buffer) <= MAX_REPLY_BYTES
    connection.start_synchronization()
    list(connection.receive(b'x\n\xff{"return": 42}\n'))
    assert connection.state is SyncState.READY
    return seen


def guest_collectors(data: bytes) -> None:
    """Check that a collector, given its name and the guest agent's replies as JSON, returns valid samples, series and alerts."""
    name, _, text = data.partition(b"\n")
    collector = _COLLECTORS.get(name)
    try:
        replies = orjson.loads(text)
    except orjson.JSONDecodeError:
        return
    with contextlib.suppress(GuestAgentError):
        parse_guest_info(replies)
    if collector is None or not isinstance(replies, list) or len(replies) != len(collector.commands):
        return
    values = [GuestAgentCommandError("GenericError", "x") if value == "error" else value for value in replies]
    try:
        exchanges = [TimedGuestReply(value, 10**18, 10**18 + 10**6) for value in values]
        samples = tuple(islice(collector.collect(exchanges), MAX_GUEST_SAMPLES))
    except GuestAgentError:
        return
    snapshot, alerts = Snapshot(), AlertEngine("hv7", lambda _vm, _disk: policy())
    monitor = Monitor(VM.monitor, (VM.monitor,), _no_connection)
    snapshot.update_monitor_status(MonitorStatus(monitor, MonitorState.UP, "", VM, QemuBuild("7.2.22", "Debian"), 1))
    snapshot.replace_samples(VM, collector.families, samples, 10**18)
    alerts.on_attached(VM)
    for time_ns in (10**18, 10**18 + 10**12):
        alerts.on_guest_samples(VM, collector.families, samples, time_ns)
    for sample in samples:
        check_guest_sample(sample)
    for series in render_metrics(snapshot).splitlines():
        assert series.startswith("# ") or _SERIES.fullmatch(series), series


async def _no_connection(*_: Any, **__: Any) -> Any:
    raise AssertionError("no target connects")
