"""The guest agent's protocol: replies belong to their commands whatever arrives before, and memory is bounded."""

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.qga.errors import GuestAgentCommandError, GuestFloodError, UnreadableGuestReplyError
from agent.qga.protocol import (
    MAX_REPLY_BYTES,
    MAX_SURPLUS_BYTES,
    GuestAgentProtocol,
    GuestReply,
    Synchronized,
    SyncState,
)
from tests.lab.qmp_bytes import cut

INFO = "guest-info"


def line(value: Any) -> bytes:
    """Return a reply as qemu-ga sends it."""
    return json.dumps(value).encode() + b"\n"


def synchronized_reply(number: int) -> bytes:
    """Return the replies of qemu-ga to a synchronization."""
    return line({"error": {"class": "GenericError", "desc": "JSON parse error, stray '\xff'"}}) + mark(number)


def mark(number: int) -> bytes:
    return b"\xff" + line({"return": number})


def ready() -> GuestAgentProtocol:
    """Return a connection after its first synchronization, which has number 1."""
    connection = GuestAgentProtocol()
    connection.start_synchronization()
    assert list(connection.receive(synchronized_reply(1))) == [Synchronized()]
    return connection


def waiting() -> GuestAgentProtocol:
    """Return a connection with a pending command."""
    connection = ready()
    connection.start_command(INFO)
    return connection


def test_a_reply_completes_its_command() -> None:
    connection = waiting()
    assert list(connection.receive(line({"return": {"version": "7.2.22"}}))) == [GuestReply({"version": "7.2.22"})]
    assert connection.state is SyncState.READY


def test_an_error_completes_its_command() -> None:
    connection = waiting()
    (reply,) = connection.receive(line({"error": {"class": "CommandNotFound", "desc": "no"}}))
    assert isinstance(reply, GuestReply)
    assert isinstance(reply.error, GuestAgentCommandError)
    assert reply.error.error_class == "CommandNotFound"
    assert connection.state is SyncState.READY


def test_late_replies_are_discarded_by_a_synchronization() -> None:
    connection = waiting()
    connection.abandon_reply()
    assert list(connection.receive(line({"return": "too late"}))) == []
    connection.start_synchronization()
    late = line({"return": "later"}) + mark(1) + line({"return": 2})
    assert list(connection.receive(late)) == []
    assert list(connection.receive(b'{"return": "cut off' + synchronized_reply(2))) == [Synchronized()]
    assert connection.discarded_bytes > 0


def test_a_late_synchronization_does_not_complete_a_command() -> None:
    connection = waiting()
    assert list(connection.receive(mark(1) + mark(7))) == []
    assert list(connection.receive(line({"return": 5}))) == [GuestReply(5)]


@pytest.mark.parametrize(
    "junk", [b"hello\n", b"[1]\n", b"{}\n", b'{"return"\n', b'{"error": 5}\n', b"\x00\x01\n", b"5\n"]
)
def test_an_unreadable_reply_fails_its_command_only(junk: bytes) -> None:
    connection = waiting()
    (reply,) = connection.receive(junk)
    assert isinstance(reply, GuestReply)
    assert isinstance(reply.error, UnreadableGuestReplyError)
    assert connection.state is SyncState.LOST
    connection.start_synchronization()
    assert list(connection.receive(synchronized_reply(2))) == [Synchronized()]


def test_data_without_a_request_requires_a_synchronization() -> None:
    connection = ready()
    states = []
    for data in (b"\n\n", line({"return": "unasked"})):
        assert list(connection.receive(data)) == []
        states.append(connection.state)
    assert states == [SyncState.READY, SyncState.LOST]


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_an_oversized_reply_fails_its_command(end: bytes) -> None:
    connection = waiting()
    (reply,) = connection.receive(b'{"return": "' + b"x" * MAX_REPLY_BYTES + b'"}' + end)
    assert isinstance(reply, GuestReply)
    assert isinstance(reply.error, UnreadableGuestReplyError)
    assert "longer than" in str(reply.error)


@pytest.mark.parametrize("state", [SyncState.LOST, SyncState.SYNCHRONIZING, SyncState.READY, SyncState.WAITING])
@pytest.mark.parametrize("piece", [b"x" * 65536, b"\n" * 65536, b"\xff" * 65536, b'\xff{"return": 7}\n' * 4096])
def test_a_flood_ends_the_connection_with_bounded_memory(state: SyncState, piece: bytes) -> None:
    connection = waiting()
    match state:
        case SyncState.LOST:
            connection.abandon_reply()
        case SyncState.SYNCHRONIZING:
            connection.start_synchronization()
        case SyncState.READY:
            list(connection.receive(line({"return": 1})))
    start = time.process_time()
    with pytest.raises(GuestFloodError):
        for _ in range(10_000):
            list(connection.receive(piece))
            assert len(connection._buffer) <= MAX_REPLY_BYTES
    assert time.process_time() - start < 10
    assert len(connection._buffer) == 0
    assert MAX_SURPLUS_BYTES < 1 << 21


# --- Any bytes ---

texts = st.text(st.one_of(st.sampled_from('"\\{}[]\n ,:'), st.characters(exclude_categories=["Cs"])), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | texts,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3),
    max_leaves=8,
)
replies = st.builds(lambda value: line({"return": value}), values) | st.builds(
    lambda kind, text: line({"error": {"class": kind, "desc": text}}), texts, texts
)
junk = st.binary(max_size=40) | st.sampled_from(
    [b"\xff", b"\n", b"{", b'{"return": 1}\n', b'\xff{"return": 2}\n', b"\xff\xff"]
)
sizes = st.lists(st.integers(0, 30), max_size=40)


def play(chunks: Sequence[bytes]) -> Iterator[object]:
    """Yield what a connection yields that sends a command whenever it is ready; errors as their text."""
    connection = GuestAgentProtocol()
    connection.start_synchronization()
    for chunk in chunks:
        for message in connection.receive(chunk):
            if connection.state is SyncState.READY:
                connection.start_command(INFO)
            yield str(message.error) if isinstance(message, GuestReply) and message.error else message


@given(st.lists(replies | junk, max_size=8), sizes)
def test_the_replies_do_not_depend_on_how_bytes_are_cut(parts: list[bytes], pieces: list[int]) -> None:
    stream = synchronized_reply(1) + b"".join(parts)
    assert list(play(cut(stream, pieces))) == list(play([stream]))


@given(st.lists(junk, max_size=8), replies, sizes)
def test_after_a_synchronization_the_next_reply_is_that_of_the_next_command(
    before: list[bytes], reply: bytes, pieces: list[int]
) -> None:
    connection = GuestAgentProtocol(first_number=1000)
    connection.start_synchronization()
    for chunk in cut(b"".join(before) + synchronized_reply(1001), pieces):
        list(connection.receive(chunk))
    assert connection.state is SyncState.READY
    connection.start_command(INFO)
    (message,) = connection.receive(reply)
    expected = json.loads(reply)
    assert isinstance(message, GuestReply)
    if "return" in expected:
        assert message == GuestReply(expected["return"])
    else:
        assert isinstance(message.error, GuestAgentCommandError)
