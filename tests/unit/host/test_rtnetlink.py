"""The kernel's description of virtual functions: any message that it writes is read, and any bytes are handled."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.host.rtnetlink import NetlinkError, VirtualFunctionReading, encode_link_request, parse_link_reply
from tests.lab.rtnetlink_reply import COUNTERS, SentFunction, attribute, link_reply

NAMES = [name for name in COUNTERS if name is not None]
READ = ("rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "rx_dropped", "tx_dropped")
FUNCTIONS = st.builds(
    SentFunction,
    st.integers(0, 2**32 - 1),
    st.binary(min_size=6, max_size=6),
    st.dictionaries(st.sampled_from(NAMES), st.integers(0, 2**64 - 1)),
)


def expected(sent: SentFunction) -> VirtualFunctionReading:
    mac = ":".join(f"{byte:02x}" for byte in sent.mac) if any(sent.mac) else ""
    return VirtualFunctionReading(
        sent.number, mac, {name: sent.counters[name] for name in READ if name in sent.counters}
    )


@given(st.lists(FUNCTIONS, max_size=8))
def test_each_function_is_read_with_its_address_and_its_counters(functions: list[SentFunction]) -> None:
    assert parse_link_reply(link_reply(functions)) == [expected(sent) for sent in functions]


def test_a_counter_that_the_kernel_does_not_send_is_absent_and_not_zero() -> None:
    (function,) = parse_link_reply(link_reply([SentFunction(3, bytes(6), {"rx_bytes": 7})]))
    assert function == VirtualFunctionReading(3, "", {"rx_bytes": 7})


def test_an_infiniband_function_has_no_mac_address() -> None:
    sent = SentFunction(0, b"\x01" * 6, {"rx_bytes": 7})
    (function,) = parse_link_reply(link_reply([sent], address=bytes(20)))
    assert (function.mac, function.counters) == ("", {"rx_bytes": 7})


def test_an_interface_without_functions_has_none() -> None:
    assert parse_link_reply(link_reply([])) == []


def test_the_request_names_the_interface_and_asks_for_functions_with_counters() -> None:
    size, kind, flags, sequence, port = struct.unpack("=IHHII", (request := encode_link_request(7, 9))[:16])
    assert (size, kind, flags, sequence, port) == (len(request), 18, 1, 9, 0)
    assert struct.unpack("=BBHiII", request[16:32]) == (0, 0, 0, 7, 0, 0)
    assert request[32:] == attribute(29, struct.pack("=I", 1))


def test_a_refusal_has_the_kernels_error_number() -> None:
    with pytest.raises(NetlinkError, match="error 19"):
        parse_link_reply(struct.pack("=IHHII", 36, 2, 0, 1, 0) + struct.pack("=i", -19) + bytes(16))


@pytest.mark.parametrize("data", [b"", b"\0" * 15, b"\0" * 64, struct.pack("=IHHII", 9999, 16, 0, 1, 0) + bytes(16)])
def test_another_message_is_an_error(data: bytes) -> None:
    with pytest.raises(NetlinkError):
        parse_link_reply(data)


@given(st.lists(FUNCTIONS, min_size=1, max_size=4), st.data())
def test_a_cut_or_damaged_message_raises_no_other_error(functions: list[SentFunction], data: st.DataObject) -> None:
    message = bytearray(link_reply(functions))
    for at in data.draw(st.lists(st.integers(0, len(message) - 1), max_size=6)):
        message[at] = data.draw(st.integers(0, 255))
    cut = bytes(message[: data.draw(st.integers(0, len(message)))])
    try:
        found = parse_link_reply(cut)
    except NetlinkError:
        return
    assert all(0 <= count < 2**64 for function in found for count in function.counters.values())


def test_a_list_that_is_cut_ends_before_the_function_that_is_cut() -> None:
    functions = [SentFunction(number, bytes(6), {"rx_bytes": number}) for number in range(3)]
    assert [each.number for each in parse_link_reply(link_reply(functions, missing_bytes=8))] == [0, 1]
