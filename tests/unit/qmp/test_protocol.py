"""The protocol: its messages do not depend on the chunks that bytes arrive in, and any bytes have a bounded cost."""

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.qmp.commands import AllowList
from agent.qmp.errors import ProtocolError
from agent.qmp.protocol import Event, Greeting, Message, NegotiationAccepted, QmpProtocol, Reply
from tests.lab.qmp_bytes import DONE, HELLO, STATUS, cut, line, ready, receive


def receive_chunks(
    chunks: Iterable[bytes], count: int = 0, bound: int = 1 << 20
) -> tuple[list[Message], ProtocolError | None]:
    """Return the messages of a server's bytes, and the error that ended the connection or None.

    Args:
        chunks: the bytes.
        count: number of commands to send after the handshake.
        bound: the size limit of a message in bytes.
    """
    connection = QmpProtocol(AllowList(), bound)
    messages: list[Message] = []
    try:
        for chunk in chunks:
            for message in connection.receive(chunk):
                messages.append(message)
                if isinstance(message, NegotiationAccepted):
                    connection.send([STATUS] * count)
                    if connection.oob:
                        connection.next_oob_probe()
    except ProtocolError as error:
        return messages, error
    return messages, None


# --- Chunks ---

any_text = st.text(
    st.one_of(st.sampled_from('"\\{}[]\n\r\t ,:'), st.characters(exclude_categories=["Cs"])), max_size=12
)
json_scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, width=32) | any_text
)
json_scalars = json_scalars.filter(lambda value: value not in (float("inf"), float("-inf")))
json_values = st.recursive(
    json_scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(any_text, v, max_size=3), max_leaves=8
)
events = st.builds(
    lambda name, data: {"timestamp": {"seconds": 5, "microseconds": 7}, "event": name, "data": data},
    any_text,
    st.dictionaries(any_text, json_values, max_size=3),
)
replies = st.builds(lambda value: {"return": value}, json_values) | st.builds(
    lambda kind, text: {"error": {"class": kind, "desc": text}}, any_text, any_text
)
between_replies = events | st.just({"return": {}, "id": 1}) | st.builds(lambda i: {"return": {}, "id": i}, json_values)
any_indent = st.sampled_from([None, None, 4])
chunk_sizes = st.lists(st.integers(0, 40), max_size=60)
NOT_MESSAGES = (
    b"\xff\xfe",
    b"hello",
    b"}",
    b"[1]",
    b"5",
    b"null",
    b'"x"',
    b'{"a":1}',
    b'{"return":}',
    b'{"event":"\xc3("}',
)


@st.composite
def server_scripts(draw: st.DrawFn) -> tuple[list[bytes], int]:
    """Draw a server's messages as bytes, and the number of replies to commands among them."""
    answers = draw(st.lists(replies, max_size=4))
    script: list[Any] = [*draw(st.lists(events, max_size=2)), HELLO, *draw(st.lists(events, max_size=2)), DONE]
    for reply in answers:
        script += [*draw(st.lists(between_replies, max_size=2)), reply]
    script += draw(st.lists(between_replies, max_size=2))
    return [line(message, indent=draw(any_indent)) for message in script], len(answers)


@given(server_scripts(), chunk_sizes)
def test_the_messages_do_not_depend_on_the_chunks(script: tuple[list[bytes], int], cuts: list[int]) -> None:
    parts, count = script
    whole, error = receive_chunks([b"".join(parts)], count)
    assert error is None
    assert sum(isinstance(message, Reply) for message in whole) == count
    for chunks in (
        parts,
        cut(b"".join(parts), cuts),
        [b"".join(parts)[i : i + 1] for i in range(len(b"".join(parts)))],
    ):
        messages, error = receive_chunks(chunks, count)
        assert error is None
        assert list(map(repr, messages)) == list(map(repr, whole))


@given(server_scripts(), st.sampled_from(NOT_MESSAGES), st.data())
def test_garbage_during_the_handshake_ends_the_connection_after_earlier_messages(
    script: tuple[list[bytes], int], garbage: bytes, data: st.DataObject
) -> None:
    parts, count = script
    ready_at = next(
        n
        for n in range(len(parts))
        if any(isinstance(m, NegotiationAccepted) for m in receive_chunks(parts[: n + 1])[0])
    )
    place = data.draw(st.integers(0, ready_at))
    good, _ = receive_chunks(parts[:place], count)
    damaged = b"".join((*parts[:place], garbage, b"\r\n", *parts[place:]))
    for chunks in ([damaged], cut(damaged, data.draw(chunk_sizes))):
        messages, error = receive_chunks(chunks, count)
        assert list(map(repr, messages)) == list(map(repr, good))
        assert error is not None


any_bytes = st.lists(
    st.sampled_from([b'"', b"\\", b"{", b"}", b"[", b"]", b"\n", b"\r\n", b":", b",", b" ", b"1", b"\xff", b"\x00"])
    | st.sampled_from([line(HELLO), line(DONE), b'{"event":"A"}', b'"event":"B"', b"null", b'{"return":{}}', b"{\r\n"])
    | st.binary(max_size=4),
    max_size=40,
).map(b"".join)


@given(any_bytes, chunk_sizes, st.sampled_from([40, 400]))
def test_any_bytes_raise_protocol_errors_only_and_do_not_depend_on_chunks(
    data: bytes, cuts: list[int], bound: int
) -> None:
    whole, error = receive_chunks([data], bound=bound)
    messages, other = receive_chunks(cut(data, cuts), bound=bound)
    assert list(map(repr, messages)) == list(map(repr, whole))
    assert (other is None) == (error is None)


# --- Bounds ---


def test_many_messages_in_one_chunk_may_exceed_the_size_limit_together() -> None:
    assert len(list(ready(bound=4096).receive(line({"event": "STOP"}) * 1000))) == 1000


def cpu_seconds(work: Callable[[], None]) -> float:
    """Return the lowest CPU time of several tries."""
    tries = []
    for _ in range(4):
        start = time.process_time()
        work()
        tries.append(time.process_time() - start)
    return min(tries)


@pytest.mark.parametrize("unit", [b'"', b"\\", b'"\\', b'\\"', b'{"', b'"a"', b'"a', b"[", b"[]", b"]["])
@pytest.mark.parametrize("head", [b"", b'"', b'{"a":"'])
def test_a_hostile_line_takes_time_proportional_to_its_length(unit: bytes, head: bytes) -> None:
    def feed(length: int) -> None:
        with contextlib.suppress(ProtocolError):
            list(ready(bound=1 << 24).receive(head + unit * (length // len(unit)) + b"\n"))

    assert cpu_seconds(lambda: feed(80_000)) < 12 * cpu_seconds(lambda: feed(20_000)) + 0.001


def test_a_long_message_in_small_chunks_takes_time_proportional_to_its_length() -> None:
    def feed(length: int) -> None:
        data = line({"return": "x" * length})
        connection = ready(bound=1 << 24)
        connection.send([STATUS])
        assert len([m for i in range(0, len(data), 256) for m in connection.receive(data[i : i + 256])]) == 1

    assert cpu_seconds(lambda: feed(3_200_000)) < 25 * cpu_seconds(lambda: feed(400_000)) + 0.002


def test_a_deeply_nested_pretty_printed_reply_is_read() -> None:
    value: Any = {}
    for _ in range(50):
        value = {"backing": value}
    connection = ready()
    connection.send([STATUS])
    assert [*connection.receive(line({"return": value}, indent=4))] == [Reply(value)]


# --- Greeting and negotiation ---


@pytest.mark.parametrize(
    ("body", "greeting"),
    [
        (
            {"version": {"qemu": {"micro": 2, "minor": 6, "major": 2}, "package": " (Debian)"}, "capabilities": []},
            Greeting((2, 6, 2), " (Debian)", oob=False),
        ),
        (
            {"version": {"qemu": {"micro": 0, "minor": 0, "major": 4}, "package": ""}, "capabilities": ["oob"]},
            Greeting((4, 0, 0), "", oob=True),
        ),
        ({"capabilities": ["new", "oob"]}, Greeting((0, 0, 0), "", oob=True)),
        ({}, Greeting((0, 0, 0), "", oob=False)),
        ({"version": {"qemu": {"major": 12}}}, Greeting((12, 0, 0), "", oob=False)),
        ({"version": 7, "capabilities": {"oob": 1}}, Greeting((0, 0, 0), "", oob=False)),
        ({"version": {"qemu": [7], "package": 3}, "capabilities": "oob"}, Greeting((0, 0, 0), "", oob=False)),
        ({"version": {"qemu": {"major": "7", "minor": True, "micro": 2.5}}}, Greeting((0, 0, 0), "", oob=False)),
        ({"capabilities": [["oob"], None]}, Greeting((0, 0, 0), "", oob=False)),
    ],
)
def test_a_greeting_is_read_with_any_of_its_parts_missing(body: Any, greeting: Greeting) -> None:
    assert receive(QmpProtocol(AllowList()), {"QMP": body}) == [greeting]


@pytest.mark.parametrize(
    ("offered", "request_bytes"),
    [
        (["oob"], b'{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}'),
        ([], b'{"execute":"qmp_capabilities"}'),
    ],
)
def test_out_of_band_is_enabled_only_if_it_is_offered(offered: list[str], request_bytes: bytes) -> None:
    connection = QmpProtocol(AllowList())
    receive(connection, {"QMP": {"capabilities": offered}})
    assert connection.negotiate() == request_bytes
    assert receive(connection, DONE) == [NegotiationAccepted()]


def test_a_refused_negotiation_ends_the_connection() -> None:
    with pytest.raises(ProtocolError, match="no thanks"):
        receive(QmpProtocol(AllowList()), HELLO, {"error": {"class": "GenericError", "desc": "no thanks"}})


def test_a_second_greeting_ends_the_connection() -> None:
    with pytest.raises(ProtocolError, match="second greeting"):
        receive(ready(), HELLO)


def test_events_are_received_before_the_greeting_and_during_negotiation() -> None:
    messages = receive(QmpProtocol(AllowList()), {"event": "A"}, HELLO, {"event": "B"}, DONE)
    assert [m.name if isinstance(m, Event) else type(m).__name__ for m in messages] == [
        "A",
        "Greeting",
        "B",
        "NegotiationAccepted",
    ]
