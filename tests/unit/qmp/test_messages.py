"""The protocol after the handshake: commands, replies, probes and events."""

from typing import Any

import pytest

from agent.qmp.commands import AllowList, Command
from agent.qmp.errors import CommandError, CommandNotAllowedError, ProtocolError, StalledError
from agent.qmp.protocol import Event, Message, OobProbeReply, QmpProtocol, Reply
from tests.lab.qmp_bytes import DONE, HELLO, STATUS, line, ready, receive

NAME = Command("query-name")
UNKNOWN = {"error": {"class": "CommandNotFound", "desc": "no such thing"}}


def receive_one(connection: QmpProtocol, raw: bytes) -> Message:
    (message,) = connection.receive(raw)
    return message


# --- Commands and replies ---


def test_commands_are_sent_in_one_write_and_replies_arrive_in_order() -> None:
    connection = ready()
    assert connection.send([STATUS, NAME]) == b'{"execute":"query-status"}{"execute":"query-name"}'
    assert connection.pending_command_count == 2
    assert receive(connection, {"return": 1}, {"event": "STOP"}) == [Reply(1), Event("STOP", {}, None)]
    assert connection.pending_command_count == 1
    assert receive(connection, {"return": None}) == [Reply(None)]
    assert connection.pending_command_count == 0


def test_sending_while_replies_are_due_fails_and_sends_nothing() -> None:
    connection = ready()
    connection.send([STATUS, NAME])
    receive(connection, {"return": {}})
    with pytest.raises(StalledError, match="1 replies are still due, the first to query-name"):
        connection.send([STATUS])
    receive(connection, {"return": {}})
    assert connection.send([STATUS])


def test_one_refused_command_prevents_the_whole_batch() -> None:
    connection = ready()
    with pytest.raises(CommandNotAllowedError):
        connection.send([STATUS, Command("quit")])
    with pytest.raises(CommandNotAllowedError):
        connection.check_allowed([STATUS, Command("quit")])
    connection.check_allowed([STATUS, NAME])
    assert connection.pending_command_count == 0
    with pytest.raises(ProtocolError, match="a reply without a command"):
        receive(connection, {"return": {}})


def test_an_error_is_the_reply_to_one_command() -> None:
    connection = ready()
    connection.send([STATUS, NAME])
    first, second = receive(connection, UNKNOWN, {"return": 2})
    assert isinstance(first, Reply)
    assert isinstance(first.error, CommandError)
    assert (first.error.error_class, first.error.desc) == ("CommandNotFound", "no such thing")
    assert second == Reply(2)


def test_a_reply_without_a_command_ends_the_connection() -> None:
    with pytest.raises(ProtocolError, match="a reply without a command"):
        receive(ready(), DONE)
    with pytest.raises(ProtocolError, match="a reply without a command"):
        receive(QmpProtocol(AllowList()), DONE)


@pytest.mark.parametrize("number", [0, 2, -1, "1", None, True, 1.0, [1], {"a": 1}])
def test_a_reply_with_an_unknown_id_is_counted_and_dropped(number: Any) -> None:
    connection = ready()
    connection.next_oob_probe()
    connection.send([STATUS])
    assert receive(connection, {"return": {}, "id": number}, UNKNOWN | {"id": number}) == []
    assert connection.skipped.stray == 2
    assert connection.pending_command_count == 1


def test_probe_replies_are_separate_from_commands_and_can_be_errors() -> None:
    connection = ready()
    connection.send([STATUS])
    assert connection.next_oob_probe() == (1, b'{"exec-oob":"query-yank","id":1}')
    assert connection.next_oob_probe() == (2, b'{"exec-oob":"query-yank","id":2}')
    messages = receive(connection, {"return": [], "id": 2}, UNKNOWN | {"id": 1}, {"return": 5})
    assert messages == [OobProbeReply(2), OobProbeReply(1), Reply(5)]


# --- Events ---


@pytest.mark.parametrize(
    ("stamp", "time_ns"),
    [
        ({"seconds": 1_700_000_000, "microseconds": 999_999}, 1_700_000_000_999_999_000),
        ({"seconds": 0, "microseconds": 0}, 0),
        ({"seconds": -1, "microseconds": -1}, None),  # QEMU could not read its clock
        ({"seconds": 5, "microseconds": 1_000_000}, None),
        ({"seconds": (1 << 33) - 1, "microseconds": 0}, ((1 << 33) - 1) * 1_000_000_000),
        ({"seconds": 1 << 33, "microseconds": 0}, None),  # beyond the year 2242
        ({"seconds": 5.0, "microseconds": 0}, None),
        ({"seconds": True, "microseconds": 0}, None),
        ({"seconds": "5", "microseconds": 0}, None),
        ({"seconds": 5}, None),
        ({}, None),
        (5, None),
        (None, None),
    ],
)
def test_an_event_has_qemus_timestamp_or_none(stamp: Any, time_ns: int | None) -> None:
    assert receive(ready(), {"event": "STOP", "timestamp": stamp}) == [Event("STOP", {}, time_ns)]


def test_an_events_data_is_complete() -> None:
    data = {"a": [1, {"b": None}], "c": 2**64 - 1, "d": "é\u2028\u0000"}
    assert receive(ready(), {"event": "X", "data": data}) == [Event("X", data, None)]


# --- Other messages ---


@pytest.mark.parametrize("body", [{"QMP": 7}, {"QMP": None}, {"QMP": ["oob"]}])
def test_a_greeting_that_is_not_an_object_ends_the_connection(body: Any) -> None:
    with pytest.raises(ProtocolError, match="greeting"):
        receive(QmpProtocol(AllowList()), body)


@pytest.mark.parametrize(
    ("body", "error_class", "desc"),
    [({}, "GenericError", ""), ({"class": 5, "desc": None}, "5", "None"), ({"class": ["x"]}, "['x']", "")],
)
def test_an_error_without_class_or_description_is_still_an_error(body: Any, error_class: str, desc: str) -> None:
    connection = ready()
    connection.send([STATUS])
    reply = receive_one(connection, line({"error": body}))
    assert isinstance(reply, Reply)
    assert isinstance(reply.error, CommandError)
    assert (reply.error.error_class, reply.error.desc) == (error_class, desc)


def test_the_last_of_duplicate_keys_wins() -> None:
    connection = ready()
    connection.send([STATUS])
    assert receive_one(connection, b'{"return":1,"return":2}\n') == Reply(2)


def test_blank_lines_and_bare_newlines_are_ignored() -> None:
    connection = ready()
    connection.send([STATUS])
    assert receive_one(connection, b'\r\n \t\r\n\n  {"return":1} \t\n\n') == Reply(1)


def test_two_connections_share_no_state() -> None:
    first, second = ready(), ready(oob=False)
    first.send([STATUS])
    assert (first.oob, second.oob, second.pending_command_count) == (True, False, 0)
    assert list(second.receive(b'{"event":')) == []
    assert receive(first, {"return": HELLO}) == [Reply(HELLO)]
