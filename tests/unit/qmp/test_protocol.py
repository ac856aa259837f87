"""The protocol core: what bytes mean, whatever way they are cut, and that no bytes do harm."""

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.qmp.commands import AllowList
from agent.qmp.errors import ProtocolError
from agent.qmp.protocol import Connection, Event, Greeting, Message, Ready, Reply
from tests.lab.qmp_bytes import DONE, HELLO, STATUS, cut, line, ready, receive


def run(chunks: Iterable[bytes], asks: int = 0, bound: int = 1 << 20) -> tuple[list[Message], ProtocolError | None]:
    """Play the client's part against a script: ask once when that is possible; return all messages and how it ended."""
    connection = Connection(AllowList(), bound)
    told: list[Message] = []
    try:
        for chunk in chunks:
            for message in connection.receive(chunk):
                told.append(message)
                if isinstance(message, Ready):
                    connection.ask([STATUS] * asks)
                    if connection.oob:
                        connection.probe()
    except ProtocolError as error:
        return told, error
    return told, None


# --- Whatever way the bytes are cut ---

texts = st.text(st.one_of(st.sampled_from('"\\{}[]\n\r\t ,:'), st.characters(exclude_categories=["Cs"])), max_size=12)
leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, width=32) | texts
leaves = leaves.filter(lambda value: value not in (float("inf"), float("-inf")))
values = st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3), max_leaves=8)
events = st.builds(
    lambda name, data: {"timestamp": {"seconds": 5, "microseconds": 7}, "event": name, "data": data},
    texts,
    st.dictionaries(texts, values, max_size=3),
)
replies = st.builds(lambda value: {"return": value}, values) | st.builds(
    lambda kind, text: {"error": {"class": kind, "desc": text}}, texts, texts
)
beside = events | st.just({"return": {}, "id": 1}) | st.builds(lambda i: {"return": {}, "id": i}, values)
indents = st.sampled_from([None, None, 4])
sizes = st.lists(st.integers(0, 40), max_size=60)
GARBAGE = (b"\xff\xfe", b"hello", b"}", b"[1]", b"5", b"null", b'"x"', b'{"a":1}', b'{"return":}', b'{"event":"\xc3("}')


@st.composite
def scripts(draw: st.DrawFn) -> tuple[list[bytes], int]:
    """Draw a server's messages as bytes, and how many of them are replies."""
    asked = draw(st.lists(replies, max_size=4))
    script: list[Any] = [*draw(st.lists(events, max_size=2)), HELLO, *draw(st.lists(events, max_size=2)), DONE]
    for reply in asked:
        script += [*draw(st.lists(beside, max_size=2)), reply]
    script += draw(st.lists(beside, max_size=2))
    return [line(message, indent=draw(indents)) for message in script], len(asked)


@given(scripts(), sizes)
def test_the_messages_are_the_same_whatever_way_the_bytes_are_cut(
    script: tuple[list[bytes], int], at: list[int]
) -> None:
    parts, asks = script
    whole, error = run([b"".join(parts)], asks)
    assert error is None
    assert sum(isinstance(message, Reply) for message in whole) == asks
    for chunks in (parts, cut(b"".join(parts), at), [b"".join(parts)[i : i + 1] for i in range(len(b"".join(parts)))]):
        told, error = run(chunks, asks)
        assert error is None
        assert list(map(repr, told)) == list(map(repr, whole))


@given(scripts(), st.sampled_from(GARBAGE), st.data())
def test_garbage_ends_the_connection_after_the_good_messages_before_it(
    script: tuple[list[bytes], int], garbage: bytes, data: st.DataObject
) -> None:
    parts, asks = script
    place = data.draw(st.integers(0, len(parts)))
    good, _ = run(parts[:place], asks)
    spoilt = b"".join((*parts[:place], garbage, b"\r\n", *parts[place:]))
    for chunks in ([spoilt], cut(spoilt, data.draw(sizes))):
        told, error = run(chunks, asks)
        assert list(map(repr, told)) == list(map(repr, good))
        assert error is not None


soup = st.lists(
    st.sampled_from([b'"', b"\\", b"{", b"}", b"[", b"]", b"\n", b"\r\n", b":", b",", b" ", b"1", b"\xff", b"\x00"])
    | st.sampled_from([line(HELLO), line(DONE), b'{"event":"A"}', b'"event":"B"', b"null", b'{"return":{}}', b"{\r\n"])
    | st.binary(max_size=4),
    max_size=40,
).map(b"".join)


@given(soup, sizes, st.sampled_from([40, 400]))
def test_no_bytes_raise_anything_but_a_protocol_error_nor_mean_something_else_when_cut(
    data: bytes, at: list[int], bound: int
) -> None:
    whole, error = run([data], bound=bound)
    told, other = run(cut(data, at), bound=bound)
    assert list(map(repr, told)) == list(map(repr, whole))
    assert (other is None) == (error is None)


# --- Bounds ---


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(lambda n: b'{"event":"A","data":{"x":"' + b"x" * n + b'"}}\r\n', id="one line"),
        pytest.param(lambda n: b"x" * n, id="no line end"),
        pytest.param(lambda n: b"{\r\n" + b'"x": 1,\r\n' * (n // 7), id="many lines"),
        pytest.param(lambda n: b" " * n + b"\r\n", id="blanks"),
    ],
)
@pytest.mark.parametrize("size", [1 << 16, 1000, 1])
def test_a_message_longer_than_the_bound_ends_the_connection_in_one_chunk_or_many(shape: Any, size: int) -> None:
    data = shape(5000)
    connection = ready(bound=4096)
    with pytest.raises(ProtocolError, match="longer than 4096 bytes"):
        for start in range(0, len(data), size):
            list(connection.receive(data[start : start + size]))


def test_many_messages_in_one_chunk_may_be_longer_than_the_bound_together() -> None:
    assert len(list(ready(bound=4096).receive(line({"event": "STOP"}) * 1000))) == 1000


def seconds(work: Callable[[], None]) -> float:
    """Return the least time of the processor that it took in some tries."""
    tries = []
    for _ in range(4):
        start = time.process_time()
        work()
        tries.append(time.process_time() - start)
    return min(tries)


@pytest.mark.parametrize("unit", [b'"', b"\\", b'"\\', b'\\"', b'{"', b'"a"', b'"a', b"[", b"[]", b"]["])
@pytest.mark.parametrize("head", [b"", b'"', b'{"a":"'])
def test_a_hostile_line_takes_time_in_proportion_to_its_length(unit: bytes, head: bytes) -> None:
    def feed(length: int) -> None:
        with contextlib.suppress(ProtocolError):
            list(ready(bound=1 << 24).receive(head + unit * (length // len(unit)) + b"\n"))

    assert seconds(lambda: feed(80_000)) < 12 * seconds(lambda: feed(20_000)) + 0.001


def test_a_long_message_that_trickles_in_takes_time_in_proportion_to_its_length() -> None:
    def feed(length: int) -> None:
        data = line({"return": "x" * length})
        connection = ready(bound=1 << 24)
        connection.ask([STATUS])
        assert len([m for i in range(0, len(data), 256) for m in connection.receive(data[i : i + 256])]) == 1

    assert seconds(lambda: feed(3_200_000)) < 25 * seconds(lambda: feed(400_000)) + 0.002


@pytest.mark.parametrize(
    "data", [b'{"return":' + b"[" * 5000 + b"]" * 5000 + b"}\r\n", b'{"return":\r\n' + b"[\r\n" * 200]
)
def test_nesting_past_all_measure_ends_the_connection_even_before_it_ends(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="not JSON"):
        list(ready().receive(data))


def test_nesting_as_deep_as_a_long_backing_chain_is_understood_in_lines() -> None:
    value: Any = {}
    for _ in range(50):
        value = {"backing": value}
    connection = ready()
    connection.ask([STATUS])
    assert [*connection.receive(line({"return": value}, indent=4))] == [Reply(STATUS, value)]


# --- The greeting and the negotiation ---


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
def test_a_greeting_is_understood_with_whatever_of_it_is_there(body: Any, greeting: Greeting) -> None:
    assert receive(Connection(AllowList()), {"QMP": body}) == [greeting]


@pytest.mark.parametrize(
    ("offered", "request_bytes"),
    [
        (["oob"], b'{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}'),
        ([], b'{"execute":"qmp_capabilities"}'),
    ],
)
def test_out_of_band_is_enabled_only_where_it_is_offered(offered: list[str], request_bytes: bytes) -> None:
    connection = Connection(AllowList())
    receive(connection, {"QMP": {"capabilities": offered}})
    assert connection.negotiate() == request_bytes
    assert receive(connection, DONE) == [Ready()]


def test_a_refused_negotiation_ends_the_connection() -> None:
    with pytest.raises(ProtocolError, match="no thanks"):
        receive(Connection(AllowList()), HELLO, {"error": {"class": "GenericError", "desc": "no thanks"}})


def test_a_second_greeting_ends_the_connection() -> None:
    with pytest.raises(ProtocolError, match="second greeting"):
        receive(ready(), HELLO)


def test_events_are_heard_before_the_greeting_and_during_the_negotiation() -> None:
    told = receive(Connection(AllowList()), {"event": "A"}, HELLO, {"event": "B"}, DONE)
    assert [m.name if isinstance(m, Event) else type(m).__name__ for m in told] == ["A", "Greeting", "B", "Ready"]
