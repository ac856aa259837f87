"""Capture files: their content, and the replay of a capture."""

import asyncio
import contextlib
import json
import resource
import socket
from collections.abc import AsyncIterator
from math import inf
from pathlib import Path
from typing import Any

import orjson
import pytest

from agent.cli.capture import CaptureError
from agent.cli.capture.agent_runner import RequestSplitter
from agent.cli.capture.capture_file import REMOVED, CaptureLine, CaptureWriter, read_capture, remove_secrets
from agent.cli.capture.replay import Capture, ReplayedMonitor
from agent.cli.capture.traffic_proxy import CapturingProxy, Stream
from tests.lab.waiting import DEADLINE_SECONDS

NAMES = (
    "password Passwd key-secret password-secret proxy-password psk tls_psk passphrase token cookie auth key private-key"
)


@pytest.mark.parametrize("key", NAMES.split())
def test_values_of_secret_keys_are_removed_at_any_depth(key: str) -> None:
    inner = {"value": "hunter2", "size": 7}
    message = {"event": "X", "data": {"list": [{key: "hunter2"}, {key: ["hunter2", inner]}], "device": "disk0"}}
    assert remove_secrets(message) == {
        "event": "X",
        "data": {
            "list": [{key: REMOVED}, {key: [REMOVED, {"value": REMOVED, "size": 7}]}],
            "device": "disk0",
        },
    }


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://joe:hunter2@host/disk.img", "https://(removed)@host/disk.img"),
        ("rbd:pool/img:password=hunter2:mon=x", "rbd:pool/img:password=(removed)"),
        (
            'json:{"driver": "ssh", "password": "hunter2", "path": "/x"}',
            'json:{"driver": "ssh", "password": "(removed)", "path": "/x"}',
        ),
        ("/var/lib/images/secretary.qcow2", "/var/lib/images/secretary.qcow2"),
        ("write-threshold", "write-threshold"),
    ],
)
def test_secrets_inside_texts_are_removed(text: str, kept: str) -> None:
    assert remove_secrets({"file": text})["file"].startswith(kept)
    assert "hunter2" not in str(remove_secrets({"file": text}))


@pytest.mark.parametrize("value", [0, 1.5, True, None, {"monkey": 3}, {"keys": 2, "keyboard": "us"}])
def test_other_values_are_kept(value: Any) -> None:
    assert remove_secrets({"x": value}) == {"x": value}


LINE = b'{"qmp-agent-capture":1}\n{"seconds":1,"from":"qemu","message":%b}\n'


def written(path: Path, max_bytes: int = 1 << 20) -> CaptureWriter:
    writer = CaptureWriter(path, "/run/vm1.qmp", max_bytes)
    writer.write_message("agent", {"execute": "query-status"})
    writer.write_message("qemu", {"return": {"status": "running", "password": "hunter2"}})
    writer.write_message("qemu", None)
    writer.close()
    return writer


def test_a_written_file_can_be_read_by_its_owner_only(tmp_path: Path) -> None:
    assert written(tmp_path / "f").message_count == 3
    assert [(line.sender, line.message) for line in read_capture(tmp_path / "f")] == [
        ("agent", {"execute": "query-status"}),
        ("qemu", {"return": {"status": "running", "password": REMOVED}}),
        ("qemu", None),
    ]
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600


def test_an_existing_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    with pytest.raises(CaptureError, match="File exists"):
        written(tmp_path / "f")
    assert (tmp_path / "f").read_text() == "mine"


def test_a_full_file_accepts_no_smaller_message(tmp_path: Path) -> None:
    writer = written(tmp_path / "f", 200)
    assert writer.is_full
    assert writer.message_count == len(read_capture(tmp_path / "f")) < 3
    assert (tmp_path / "f").stat().st_size <= 200


def test_an_incomplete_last_line_is_left_out(tmp_path: Path) -> None:
    written(tmp_path / "f")
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[:-5])
    assert len(read_capture(tmp_path / "f")) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}\n",
        b"no JSON\n",
        b"\xff\n",
        b'{"qmp-agent-capture":2}\n',
        b'{"qmp-agent-capture":1}\n1\n',
        b"[]\n",
        LINE % b"[]",
        LINE % b'{"id":[]}',
    ],
)
def test_a_file_of_another_kind_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(CaptureError, match="/f: "):
        read_capture(tmp_path / "f")


@pytest.mark.parametrize("sizes", [1, 2, 7, 1000])
def test_requests_do_not_depend_on_the_chunks(sizes: int) -> None:
    expected = [
        {"execute": "query-status"},
        {"exec-oob": "query-yank", "id": 1},
        {"execute": "x", "arguments": {"ä": "}{"}},
    ]
    data = b"".join(map(orjson.dumps, expected))
    requests = RequestSplitter()
    chunks = [data[at : at + sizes] for at in range(0, len(data), sizes)]
    assert [request for chunk in chunks for request in requests.receive(chunk)] == expected


STATUS = {"execute": "query-status"}
BALLOON = {"execute": "query-balloon"}
PROBE = {"exec-oob": "query-yank", "id": 7}
CAPTURE = Capture(
    [
        CaptureLine(0.0, "qemu", {"QMP": {"capabilities": ["oob"]}}),
        CaptureLine(1.0, "agent", STATUS),
        CaptureLine(1.0, "agent", BALLOON),
        CaptureLine(1.1, "qemu", {"event": "STOP", "timestamp": {}}),
        CaptureLine(1.2, "qemu", {"return": 1}),
        CaptureLine(1.3, "qemu", {"error": {"class": "GenericError"}}),
        CaptureLine(5.0, "agent", STATUS),
        CaptureLine(5.1, "agent", PROBE),
        CaptureLine(5.2, "qemu", {"return": [], "id": 7}),
        CaptureLine(9.0, "qemu", {"return": 2}),
        CaptureLine(10.0, "agent", STATUS),
        CaptureLine(11.0, "qemu", None),
    ]
)


@pytest.mark.parametrize(
    ("request_", "at", "reply", "seconds"),
    [
        (STATUS, 0.0, {"return": 1}, 0.2),
        (STATUS, 4.9, {"return": 1}, 0.2),
        (STATUS, 5.0, {"return": 2}, 4.0),
        (STATUS, 99.0, {}, inf),
        (BALLOON, 99.0, {"error": {"class": "GenericError"}}, 0.3),
        (PROBE | {"id": 1}, 0.0, {"return": [], "id": 7}, 0.1),
    ],
)
def test_a_command_gets_the_latest_recorded_reply(
    request_: dict[str, Any], at: float, reply: dict[str, Any], seconds: float
) -> None:
    exchange = CAPTURE.find_reply(request_, at)
    assert exchange is not None
    assert exchange.reply == reply
    assert exchange.replied_at - exchange.sent_at == pytest.approx(seconds)


def test_a_command_that_was_not_recorded_has_no_reply() -> None:
    assert CAPTURE.find_reply({"execute": "query-status", "arguments": {"x": 1}}, 5.0) is None


def test_a_recording_has_its_events_and_its_end() -> None:
    assert [line.seconds for line in CAPTURE.events] == [1.1]
    assert (CAPTURE.duration_seconds, CAPTURE.closed_by_qemu) == (11.0, True)


def test_a_failed_write_is_reported(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = CaptureWriter(tmp_path / "f", "/run/vm1.qmp", 1 << 20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            writer.write_message("agent", {"execute": "x" * 1000})
            writer.write_message("agent", {"execute": "x" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        writer.close()


@contextlib.asynccontextmanager
async def streams() -> AsyncIterator[tuple[Stream, Stream]]:
    """Two ends of a connection."""
    ends = [await asyncio.open_connection(sock=sock) for sock in socket.socketpair()]
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            yield ends[0], ends[1]
    finally:
        for _, writer in ends:
            writer.close()


async def test_the_replies_after_an_unreadable_one_belong_to_their_commands(tmp_path: Path) -> None:
    file = CaptureWriter(tmp_path / "f", "/run/vm1.qmp", 1 << 20)
    async with streams() as (agent, proxy_for_agent), streams() as (qemu, proxy_for_qemu):
        serving = asyncio.create_task(CapturingProxy(proxy_for_qemu, b"", file).serve(*proxy_for_agent))
        agent[1].write(b'{"execute": "query-a"}{"execute": "query-b"}')
        await qemu[0].readuntil(b'"query-b"}')
        qemu[1].write(b'{"return": {"a": nonsense}}\r\n{"return": {"b": 1}}\r\n')
        assert b"nonsense" in await agent[0].readline()
        await agent[0].readline()
        qemu[1].close()
        await serving
    file.close()
    capture = Capture(read_capture(tmp_path / "f"))
    exchanges = [capture.find_reply({"execute": name}, 1e9) for name in ("query-a", "query-b")]
    assert ["error" in exchange.reply for exchange in exchanges if exchange] == [True, False]
    assert exchanges[1] is not None
    assert exchanges[1].reply == {"return": {"b": 1}}


async def test_a_replayed_reply_has_the_id_of_its_request() -> None:
    lines = [
        CaptureLine(0.0, "qemu", {"QMP": {}}),
        CaptureLine(0.0, "agent", {"execute": "query-status", "id": 3}),
        CaptureLine(0.0, "qemu", {"return": {}, "id": 3}),
        CaptureLine(1e9, "qemu", None),
    ]
    async with streams() as (agent, monitor):
        serving = asyncio.create_task(ReplayedMonitor(Capture(lines), 1.0).serve(*monitor))
        await agent[0].readline()
        agent[1].write(b'{"execute": "query-status", "id": 7}{"execute": "query-status"}{"execute": "quit", "id": 8}')
        replies = [json.loads(await agent[0].readline()) for _ in range(3)]
        agent[1].close()
        await serving
    assert [reply.get("id") for reply in replies] == [7, None, 8]
