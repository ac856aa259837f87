"""The protocol core: questions, replies, probes and events once the handshake is done."""

from typing import Any

import pytest

from agent.qmp.commands import AllowList, Command
from agent.qmp.errors import CommandError, CommandRefusedError, ProtocolError, StalledError
from agent.qmp.protocol import Connection, Event, Message, ProbeReply, Reply
from tests.lab.qmp_bytes import DONE, HELLO, STATUS, line, ready, receive

NAME = Command("query-name")
UNKNOWN = {"error": {"class": "CommandNotFound", "desc": "no such thing"}}


def one(connection: Connection, raw: bytes) -> Message:
    (message,) = connection.receive(raw)
    return message


# --- Questions and replies ---


def test_questions_go_out_in_one_write_and_replies_are_theirs_in_order() -> None:
    connection = ready()
    assert connection.ask([STATUS, NAME]) == b'{"execute":"query-status"}{"execute":"query-name"}'
    assert connection.replies_due == 2
    assert receive(connection, {"return": 1}, {"event": "STOP"}) == [Reply(STATUS, 1), Event("STOP", {}, None)]
    assert connection.replies_due == 1
    assert receive(connection, {"return": None}) == [Reply(NAME, None)]
    assert connection.replies_due == 0


def test_asking_while_replies_are_due_is_refused_and_sends_nothing() -> None:
    connection = ready()
    connection.ask([STATUS, NAME])
    receive(connection, {"return": {}})
    with pytest.raises(StalledError, match="1 replies are still due, first query-name"):
        connection.ask([STATUS])
    receive(connection, {"return": {}})
    assert connection.ask([STATUS])


def test_one_refused_question_lets_none_out() -> None:
    connection = ready()
    with pytest.raises(CommandRefusedError):
        connection.ask([STATUS, Command("quit")])
    assert connection.replies_due == 0
    with pytest.raises(ProtocolError, match="reply to nothing"):
        receive(connection, {"return": {}})


def test_an_error_is_the_answer_to_one_question_only() -> None:
    connection = ready()
    connection.ask([STATUS, NAME])
    first, second = receive(connection, UNKNOWN, {"return": 2})
    assert isinstance(first, Reply)
    assert isinstance(first.error, CommandError)
    assert (first.error.error_class, first.error.desc) == ("CommandNotFound", "no such thing")
    assert second == Reply(NAME, 2)


def test_a_reply_that_nobody_asked_for_ends_the_connection() -> None:
    with pytest.raises(ProtocolError, match="reply to nothing"):
        receive(ready(), DONE)
    with pytest.raises(ProtocolError, match="reply to nothing"):
        receive(Connection(AllowList()), DONE)


@pytest.mark.parametrize("number", [0, 2, -1, "1", None, True, 1.0, [1], {"a": 1}])
def test_a_reply_with_an_id_that_is_not_ours_is_counted_and_dropped(number: Any) -> None:
    connection = ready()
    connection.probe()
    connection.ask([STATUS])
    assert receive(connection, {"return": {}, "id": number}, UNKNOWN | {"id": number}) == []
    assert connection.strays == 2
    assert connection.replies_due == 1


def test_a_probe_is_answered_beside_the_questions_even_by_an_error() -> None:
    connection = ready()
    connection.ask([STATUS])
    assert connection.probe() == (1, b'{"exec-oob":"query-yank","id":1}')
    assert connection.probe() == (2, b'{"exec-oob":"query-yank","id":2}')
    told = receive(connection, {"return": [], "id": 2}, UNKNOWN | {"id": 1}, {"return": 5})
    assert told == [ProbeReply(2), ProbeReply(1), Reply(STATUS, 5)]


# --- Events ---


@pytest.mark.parametrize(
    ("stamp", "time_ns"),
    [
        ({"seconds": 1_700_000_000, "microseconds": 999_999}, 1_700_000_000_999_999_000),
        ({"seconds": 0, "microseconds": 0}, 0),
        ({"seconds": -1, "microseconds": -1}, None),  # QEMU had no time to give
        ({"seconds": 5, "microseconds": 1_000_000}, None),
        ({"seconds": 1 << 40, "microseconds": 0}, None),
        ({"seconds": 5.0, "microseconds": 0}, None),
        ({"seconds": True, "microseconds": 0}, None),
        ({"seconds": "5", "microseconds": 0}, None),
        ({"seconds": 5}, None),
        ({}, None),
        (5, None),
        (None, None),
    ],
)
def test_an_event_has_the_time_that_qemu_gave_it_or_none(stamp: Any, time_ns: int | None) -> None:
    assert receive(ready(), {"event": "STOP", "timestamp": stamp}) == [Event("STOP", {}, time_ns)]


def test_an_events_data_is_kept_whole() -> None:
    data = {"a": [1, {"b": None}], "c": 2**64 - 1, "d": "é\u2028\u0000"}
    assert receive(ready(), {"event": "X", "data": data}) == [Event("X", data, None)]


# --- What is no QMP ---


@pytest.mark.parametrize(
    "raw",
    [
        b"5",
        b"null",
        b"true",
        b'"event"',
        b"[]",
        b'[{"event":"A"}]',
        b"{}",
        b'{"id":1}',
        b'{"QMP":{}}',
        b'{"event":5}',
        b'{"event":null}',
        b'{"event":"A","data":[]}',
        b'{"event":"A","data":null}',
        b'{"error":"x"}',
        b'{"error":null}',
        b'{"error":[1]}',
        b'{"return":1}}',
        b'{"return":1} {"event":"A"}',
        b"{'return':1}",
        b'{"return":NaN}',
        b'{"return":01}',
        b'{"return":"\xff"}',
        b'{"return":"\xed\xa0\x80"}',  # half of a surrogate pair
        b'{"return":"a\x01b"}',
        b"HTTP/1.1 400 Bad Request",
        b"RFB 003.008",
        b"\x00",
    ],
)
def test_what_is_no_qmp_ends_the_connection(raw: bytes) -> None:
    connection = ready()
    connection.ask([STATUS])
    with pytest.raises(ProtocolError):
        list(connection.receive(raw + b"\r\n"))


@pytest.mark.parametrize("body", [{"QMP": 7}, {"QMP": None}, {"QMP": ["oob"]}])
def test_a_greeting_that_is_no_object_ends_the_connection(body: Any) -> None:
    with pytest.raises(ProtocolError, match="greeting"):
        receive(Connection(AllowList()), body)


@pytest.mark.parametrize(
    ("body", "error_class", "desc"),
    [({}, "GenericError", ""), ({"class": 5, "desc": None}, "5", "None"), ({"class": ["x"]}, "['x']", "")],
)
def test_an_error_lacks_what_it_lacks(body: Any, error_class: str, desc: str) -> None:
    connection = ready()
    connection.ask([STATUS])
    reply = one(connection, line({"error": body}))
    assert isinstance(reply, Reply)
    assert reply.error is not None
    assert (reply.error.error_class, reply.error.desc) == (error_class, desc)


def test_of_keys_given_twice_the_last_counts() -> None:
    connection = ready()
    connection.ask([STATUS])
    assert one(connection, b'{"return":1,"return":2}\n') == Reply(STATUS, 2)


def test_blank_lines_and_bare_newlines_are_nothing() -> None:
    connection = ready()
    connection.ask([STATUS])
    assert one(connection, b'\r\n \t\r\n\n  {"return":1} \t\n\n') == Reply(STATUS, 1)


def test_two_connections_share_nothing() -> None:
    first, second = ready(), ready(oob=False)
    first.ask([STATUS])
    assert (first.oob, second.oob, second.replies_due) == (True, False, 0)
    assert list(second.receive(b'{"event":')) == []
    assert receive(first, {"return": HELLO}) == [Reply(STATUS, HELLO)]
