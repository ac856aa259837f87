"""The closed list of guest agent commands."""

import re
from fnmatch import fnmatchcase

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.qga.commands import COMMAND_ROWS, GUEST_READS, MAX_SYNC_NUMBER, encode_command, encode_synchronization
from agent.qga.errors import GuestAgentCommandNotAllowedError
from tests.lab.guest_transcript import load

CHANGING = re.compile(r"exec|file|ssh|set|freeze$|freeze-|thaw|trim|shutdown|suspend|password")


def test_only_reads_can_be_sent() -> None:
    assert {
        "guest-info",
        "guest-get-fsinfo",
        "guest-get-load",
        "guest-get-cpustats",
        "guest-get-diskstats",
        "guest-get-osinfo",
        "guest-get-host-name",
        "guest-get-timezone",
        "guest-get-users",
        "guest-get-time",
        "guest-network-get-interfaces",
        "guest-fsfreeze-status",
    } == GUEST_READS
    assert not [name for name in GUEST_READS - {"guest-fsfreeze-status"} if CHANGING.search(name)]


@pytest.mark.parametrize("name", sorted(GUEST_READS))
def test_a_request_is_the_name_alone(name: str) -> None:
    assert orjson.loads(encode_command(name)) == {"execute": name}
    assert encode_command(name).endswith(b"\n")


@pytest.mark.parametrize(
    "name",
    [row.name.replace("*", "status") for row in COMMAND_ROWS if not row.sent]
    + ["", "guest-sync-delimited", "GUEST-INFO"],
)
def test_every_other_command_is_refused(name: str) -> None:
    with pytest.raises(GuestAgentCommandNotAllowedError):
        encode_command(name)


@given(st.text() | st.sampled_from(sorted(GUEST_READS)).map(lambda name: name + '","arguments":{"x":"'))
def test_no_text_becomes_a_command(name: str) -> None:
    if name not in GUEST_READS:
        with pytest.raises(GuestAgentCommandNotAllowedError):
            encode_command(name)


@given(st.integers(0, MAX_SYNC_NUMBER))
def test_a_synchronization_is_a_byte_and_a_command(number: int) -> None:
    request = encode_synchronization(number)
    assert request[:1] == b"\xff"
    assert orjson.loads(request[1:]) == {"execute": "guest-sync-delimited", "arguments": {"id": number}}


@pytest.mark.parametrize("number", [-1, MAX_SYNC_NUMBER + 1, True, '1}},{"execute":"guest-shutdown"'])
def test_a_synchronization_takes_a_number_only(number: int) -> None:
    with pytest.raises(GuestAgentCommandNotAllowedError):
        encode_synchronization(number)


def test_each_command_has_one_row() -> None:
    names = [row.name for row in COMMAND_ROWS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("release", ["7.2", "10.0", "11.1"])
def test_every_command_of_a_real_guest_agent_has_a_row(release: str) -> None:
    info = load(release)["guest-info"]["return"]
    assert info["version"].startswith(release)
    names = {command["name"] for command in info["supported_commands"]}
    assert len(names) > 40
    unknown = {name for name in names if not any(fnmatchcase(name, row.name) for row in COMMAND_ROWS)}
    assert unknown == set()
