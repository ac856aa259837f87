"""Unreadable messages: each fails the command that it may be the reply to, and later messages are received."""

import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.qmp.commands import AllowList, Command
from agent.qmp.errors import AmbiguousReplyError, ProtocolError, UnreadableReplyError
from agent.qmp.protocol import MAX_COMMANDS_IN_FLIGHT, Event, Message, OobProbeReply, QmpProtocol, Reply
from tests.lab.qmp_bytes import DONE, HELLO, STATUS, cut, line, ready, receive

BLOCK, MIGRATE = Command("query-block"), Command("query-migrate")
PANIC = {"timestamp": {"seconds": 1, "microseconds": 2}, "event": "GUEST_PANICKED", "data": {"action": "pause"}}
PANICKED = Event("GUEST_PANICKED", {"action": "pause"}, 1_000_002_000)
TRAILING_COMMA = b'{"return":[{"device":"d","locked":false,}]}\r\n'
NOT_A_NUMBER = b'{"return": {"status": "active", "ram": {"mbps": nan, "total": 1}}}\r\n'
LOST_BRACE = b'{"return": {"status": "active", "ram": {"total": 1}}\r\n'


def receive_all(connection: QmpProtocol, *chunks: bytes) -> list[Message]:
    return [message for chunk in chunks for message in connection.receive(chunk)]


def summarize(messages: Iterable[Message]) -> list[Any]:
    """Return the messages, with the name of an error's type in place of each failed reply."""
    return [
        type(message.error).__name__ if isinstance(message, Reply) and message.error is not None else message
        for message in messages
    ]


FAILED = UnreadableReplyError.__name__
UNCLEAR = AmbiguousReplyError.__name__


@pytest.mark.parametrize(
    "reply",
    [
        TRAILING_COMMA,
        NOT_A_NUMBER,
        LOST_BRACE,
        LOST_BRACE.replace(b"\r", b""),
        b'{"return": {"name": "\xff"}}\r\n',
        b'{"return": {"name": "\\ud800"}}\r\n',
        b'{"return": {"name": "a\x01b"}}\r\n',
        b'{"return": 01}\r\n',
        b'{"return": 1}}\r\n',
        b'{"return": "\r\n',
        b'{"return": ' + b"[" * 5000 + b"]" * 5000 + b"}\r\n",
        b'{"error": {"class": "GenericError", "desc": }}\r\n',
        b'{"error": "x"}\r\n',
        b'{"error": null}\r\n',
        b'{\r\n    "return": {\r\n        "mbps": nan\r\n    }\r\n}\r\n',
        b'{\r\n    "return": {\r\n        "total": 1\r\n    },\r\n}\r\n',
    ],
)
@pytest.mark.parametrize("indent", [None, 4])
def test_an_unreadable_reply_fails_its_own_command_and_nothing_else(reply: bytes, indent: int | None) -> None:
    connection = ready()
    connection.send([STATUS, BLOCK, MIGRATE])
    first, event, third = (line(message, indent=indent) for message in ({"return": 1}, PANIC, {"return": 3}))
    messages = receive_all(connection, first + reply + event + third)
    assert summarize(messages) == [Reply(1), FAILED, PANICKED, Reply(3)]
    assert connection.pending_command_count == 0
    assert (connection.skipped.unreadable, connection.skipped.oversized) == (1, 0)
    failed = messages[1]
    assert isinstance(failed, Reply)
    assert str(failed.error).startswith("unreadable reply to query-block: ")
    assert connection.send([STATUS]) == b'{"execute":"query-status"}'
    assert receive(connection, {"return": 4}) == [Reply(4)]


@pytest.mark.parametrize(
    "damaged",
    [
        b'{\r\n    "return": {\r\n        "total": 1\r\n    }\r\n',
        b'{\r\n    "return": {\r\n        "total": 1\r\n',
        b'{\r\n    "return": {\r\n        "total": 1\r\n}\r\n',
    ],
)
@pytest.mark.parametrize("indent", [None, 4])
def test_a_pretty_printed_reply_without_its_end_does_not_swallow_the_next_message(
    damaged: bytes, indent: int | None
) -> None:
    connection = ready()
    connection.send([BLOCK])
    assert summarize(receive_all(connection, damaged + line(PANIC, indent=indent) * 2)) == [FAILED, PANICKED, PANICKED]
    assert connection.skipped.unreadable == 1


@pytest.mark.parametrize(
    "event",
    [
        line(PANIC).replace(b"}}", b"}"),
        line(PANIC).replace(b"pause", b"\xff"),
        line({"event": 5}),
        line({"event": None}),
        line({"event": "A", "data": [1]}),
        line({"event": "A", "data": None}),
    ],
)
def test_an_unreadable_event_is_counted_and_fails_no_command(event: bytes) -> None:
    connection = ready()
    connection.send([STATUS])
    assert receive_all(connection, event + line(PANIC) + line({"return": 1})) == [PANICKED, Reply(1)]
    assert connection.skipped.unreadable == 1


@pytest.mark.parametrize(
    "reply", [b'{"return": [], "id": 1\r\n', b'{"id": 1, "error": }\r\n', b'{"error": 5, "id": 1}\r\n']
)
def test_an_unreadable_reply_to_a_probe_counts_as_its_reply_and_fails_no_command(reply: bytes) -> None:
    connection = ready()
    connection.send([STATUS])
    connection.next_oob_probe()
    assert receive_all(connection, reply + line({"return": 1})) == [OobProbeReply(1), Reply(1)]
    connection.send([BLOCK])
    assert summarize(receive_all(connection, TRAILING_COMMA)) == [FAILED], "no reply to a probe is due"
    number, _ = connection.next_oob_probe()
    assert receive(connection, {"return": [], "id": number}) == [OobProbeReply(number)]


def test_only_the_newest_probe_stays_due_after_the_reply_to_an_earlier_one() -> None:
    connection = ready()
    earlier, newest = connection.next_oob_probe()[0], connection.next_oob_probe()[0]
    assert receive(connection, {"return": [], "id": earlier}) == [OobProbeReply(earlier)]
    assert receive_all(connection, b'{"return": [], "id": 2\r\n') == [OobProbeReply(newest)]


def test_after_the_reply_to_a_probe_an_unreadable_reply_fails_its_own_command_only() -> None:
    connection = ready()
    connection.send([STATUS, BLOCK])
    number, _ = connection.next_oob_probe()
    assert receive(connection, {"return": [], "id": number}) == [OobProbeReply(number)]
    assert summarize(receive_all(connection, TRAILING_COMMA + line({"return": 2}))) == [FAILED, Reply(2)]


def test_an_unreadable_reply_without_an_id_fails_all_commands_while_a_probe_is_due() -> None:
    connection = ready()
    connection.send([STATUS])
    connection.next_oob_probe()
    assert summarize(receive_all(connection, b'{"return": [], "i\r\n')) == [OobProbeReply(1), FAILED]
    assert connection.next_reply_sync_request() == b'{"execute":"query-status","id":2}'
    assert receive(connection, {"return": "status"}, {"return": {}, "id": 2}) == []
    connection.send([BLOCK])
    assert receive(connection, {"return": "block"}) == [Reply("block")]


def test_an_id_inside_an_unreadable_reply_is_not_taken_for_the_reply_to_a_probe() -> None:
    connection = ready()
    connection.send([STATUS, BLOCK])
    assert summarize(receive_all(connection, b'{"return": [{"id": 5}}\r\n' + line({"return": 2}))) == [FAILED, Reply(2)]
    assert connection.pending_command_count == 0


@pytest.mark.parametrize(("reply", "failed"), [(b'{"error": 5}\r\n', [FAILED]), (b'{"error": 5, "id": 1}\r\n', [])])
def test_a_malformed_error_with_an_id_is_the_reply_to_the_probe(reply: bytes, failed: list[str]) -> None:
    connection = ready()
    connection.send([STATUS])
    connection.next_oob_probe()
    assert summarize(receive_all(connection, reply)) == [OobProbeReply(1), *failed]


@pytest.mark.parametrize(
    "merged",
    [b'{"return": 1}{"return": 2}\r\n', b'{"return": 1} {"error": {}}\r\n', line(PANIC).strip() + b'{"return": 1}\r\n'],
)
def test_messages_without_a_line_end_between_them_leave_no_command_waiting(merged: bytes) -> None:
    connection = ready()
    connection.send([STATUS, BLOCK])
    assert summarize(receive_all(connection, merged)) == [UNCLEAR, UNCLEAR]
    connection.next_reply_sync_request()
    assert receive(connection, {"return": {}, "id": 1}) == []
    connection.send([MIGRATE])
    assert receive(connection, {"return": 3}) == [Reply(3)]


# --- Messages that can be anything ---

NOISE = (
    b"5",
    b"null",
    b'"event"',
    b"[]",
    b'[{"event":"A"}]',
    b"{}",
    b'{"id":1}',
    b"\x00",
    b"RFB 003.008",
    b"}",
    b'"return": 1}',
)


@pytest.mark.parametrize("noise", NOISE)
def test_noise_fails_every_pending_command_because_any_reply_can_be_missing(noise: bytes) -> None:
    connection = ready()
    connection.send([STATUS, BLOCK])
    assert summarize(receive_all(connection, noise + b"\r\n")) == [UNCLEAR, UNCLEAR]
    assert connection.pending_command_count == 0
    assert connection.next_reply_sync_request() == b'{"execute":"query-status","id":1}'
    assert connection.next_reply_sync_request() is None, "one is enough"
    assert receive(connection, {"return": 1}, {"return": 2}, PANIC, {"return": {}, "id": 1}) == [PANICKED]
    assert connection.skipped.stray == 2
    assert connection.next_reply_sync_request() is None
    assert connection.send([MIGRATE]) == b'{"execute":"query-migrate"}'
    assert receive(connection, {"return": 3}) == [Reply(3)]


@pytest.mark.parametrize("noise", NOISE)
def test_noise_without_a_pending_command_is_only_counted(noise: bytes) -> None:
    connection = ready()
    assert receive_all(connection, noise + b"\r\n" + line(PANIC)) == [PANICKED]
    assert connection.skipped.unreadable == 1
    assert connection.send([STATUS]) == b'{"execute":"query-status"}'


def test_noise_before_the_markers_reply_sends_another_marker() -> None:
    connection = ready()
    connection.send([STATUS])
    assert summarize(receive_all(connection, b"5\r\n")) == [FAILED]
    connection.next_reply_sync_request()
    assert summarize(receive_all(connection, b"5\r\n")) == []
    assert connection.next_reply_sync_request() == b'{"execute":"query-status","id":2}'
    assert receive(connection, {"return": 1}, {"return": {}, "id": 1}) == []
    assert connection.out_of_sync, "the reply to the newest marker is still due"
    assert receive(connection, {"return": {}, "id": 2}) == []
    connection.send([STATUS])
    assert receive(connection, {"return": 3}) == [Reply(3)]


def test_an_unreadable_reply_to_the_marker_leaves_no_command_waiting() -> None:
    connection = ready()
    connection.send([STATUS])
    receive_all(connection, b"5\r\n")
    connection.next_reply_sync_request()
    assert summarize(receive_all(connection, line({"return": 1}) + b'{"return": {}, "i\r\n')) == []
    connection.next_reply_sync_request()
    assert receive(connection, {"return": {}, "id": 2}) == []
    connection.send([BLOCK])
    assert receive(connection, {"return": 3}) == [Reply(3)]


@pytest.mark.parametrize("count", [1, MAX_COMMANDS_IN_FLIGHT])
def test_a_connection_on_which_not_even_a_marker_can_be_read_ends(count: int) -> None:
    connection = ready()
    connection.send([STATUS] * count)
    with pytest.raises(ProtocolError, match="no reply can be read"):
        for _ in range(2 * MAX_COMMANDS_IN_FLIGHT):
            receive_all(connection, b"5\r\n")
            connection.next_reply_sync_request()


def test_unreadable_messages_before_the_markers_reply_do_not_count_after_it() -> None:
    connection = ready()
    connection.send([STATUS])
    receive_all(connection, b"5\r\n")
    connection.next_reply_sync_request()
    receive(connection, {"return": 1}, {"return": {}, "id": 1})
    assert receive_all(connection, b"5\r\n") == []
    connection.send([STATUS] * MAX_COMMANDS_IN_FLIGHT)
    receive_all(connection, *[b"5\r\n"] * (MAX_COMMANDS_IN_FLIGHT - 1))
    assert connection.out_of_sync, "one of the seven replies may still be readable"
    with pytest.raises(ProtocolError, match="no reply can be read"):
        receive_all(connection, b"5\r\n")


def test_a_marker_waits_while_qemu_may_hold_seven_commands() -> None:
    connection = ready()
    connection.send([STATUS] * MAX_COMMANDS_IN_FLIGHT)
    assert summarize(receive_all(connection, b"5\r\n")) == [UNCLEAR] * MAX_COMMANDS_IN_FLIGHT
    assert connection.next_reply_sync_request() is None, "the noise may have been no reply"
    receive(connection, {"return": 1})
    assert connection.next_reply_sync_request() is not None
    receive_all(connection, b"5\r\n")
    assert connection.next_reply_sync_request() is None, "QEMU may hold six commands and the marker"
    receive(connection, {"return": 2})
    assert connection.next_reply_sync_request() is not None
    receive(connection, *[{"return": n} for n in range(5)], {"return": {}, "id": 1}, {"return": {}, "id": 2})
    assert not connection.out_of_sync


@pytest.mark.parametrize("noise", [*NOISE, TRAILING_COMMA, LOST_BRACE])
@pytest.mark.parametrize("before", [[], [HELLO]])
def test_an_unreadable_message_during_the_handshake_ends_the_connection(noise: bytes, before: list[Any]) -> None:
    connection = QmpProtocol(AllowList())
    receive(connection, *before)
    with pytest.raises(ProtocolError):
        receive_all(connection, noise + b"\r\n")


# --- Messages over the size limit ---

LIMIT = 4096
LONG = {"return": [{"name": "x" * 100}] * 100}


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(line(LONG), id="one line"),
        pytest.param(line(LONG, indent=4), id="many lines"),
        pytest.param(line({"return": "x" * 10_000}), id="one string"),
        pytest.param(line({"return": {"a": "x" * 10_000, "b": 1}}, indent=4), id="one long line of many"),
    ],
)
@pytest.mark.parametrize("size", [1 << 16, 1000, 7])
def test_an_oversized_reply_is_skipped_within_bounded_memory(shape: bytes, size: int) -> None:
    connection = ready(bound=LIMIT)
    connection.send([STATUS, BLOCK, MIGRATE])
    data = line({"return": 1}) + shape + line(PANIC) + line({"return": 3})
    messages = []
    for chunk in cut(data, [size] * (len(data) // size)):
        messages += receive_all(connection, chunk)
        frames = connection._frames
        assert len(frames._buffer) + len(frames._lines) <= 2 * LIMIT + 2
    assert summarize(messages) == [Reply(1), FAILED, PANICKED, Reply(3)]
    assert (connection.skipped.unreadable, connection.skipped.oversized) == (0, 1)
    assert "query-block: the message is longer than 4096 bytes" in str(messages[1].error)  # type: ignore[union-attr]


def test_an_oversized_event_is_skipped_and_the_next_one_is_read() -> None:
    connection = ready(bound=LIMIT)
    connection.send([STATUS])
    long = line({"timestamp": {"seconds": 1, "microseconds": 1}, "event": "X", "data": {"x": "y" * 10_000}})
    assert receive_all(connection, long + line(PANIC) + line(DONE)) == [PANICKED, Reply({})]
    assert connection.skipped.oversized == 1


def test_an_endless_line_takes_bounded_memory_and_fails_no_command_before_its_end() -> None:
    connection = ready(bound=LIMIT)
    connection.send([STATUS])
    assert receive_all(connection, b'{"return": "', *[b"x" * 1000] * 1000) == []
    assert len(connection._frames._buffer) == LIMIT + 1
    assert summarize(receive_all(connection, b'"}\r\n')) == [FAILED]


def test_many_short_lines_take_no_more_memory_than_their_bytes() -> None:
    connection = ready()
    tracemalloc.start()
    try:
        receive_all(connection, b"{\r\n", *[b"ab\n" * 10_000] * 40)
        assert tracemalloc.get_traced_memory()[0] < 3 << 20
    finally:
        tracemalloc.stop()


# --- Any damage ---

damaged_messages = st.sampled_from([TRAILING_COMMA, NOT_A_NUMBER, LOST_BRACE, *(noise + b"\r\n" for noise in NOISE)])
good_messages = st.sampled_from([PANIC, {"event": "STOP"}, {"event": "RESUME", "data": {"x": '"}{\r\n'}}])


@given(
    st.lists(
        st.tuples(good_messages, st.sampled_from([None, 4])).map(lambda m: line(m[0], indent=m[1])) | damaged_messages,
        max_size=8,
    ),
    st.lists(st.integers(0, 60), max_size=30),
    st.integers(0, 3),
)
def test_every_good_event_around_damaged_messages_is_received(parts: list[bytes], sizes: list[int], count: int) -> None:
    names = [part for part in parts if b"event" in part and b"[{" not in part and part != b'"event"\r\n']
    results = []
    for chunks in ([b"".join(parts)], cut(b"".join(parts), sizes)):
        connection = ready()
        connection.send([STATUS] * count)
        results.append(list(map(repr, receive_all(connection, *chunks))))
    assert results[0] == results[1]
    assert len([message for message in results[0] if message.startswith("Event(")]) == len(names)
