"""Monitors that send malformed bytes: the agent reports a state with a reason, and other VMs are not affected."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from tests.lab.hostile_host import HostileHost, hostile_host, raw_monitor
from tests.lab.qmp_bytes import DONE, HELLO, line

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20
READY = line(HELLO) + line(DONE)
SILENT = "no reply to query-(uuid|name|status) within 1 s"
"""Reason of a stall: the unreadable messages are skipped, and the monitor sends no reply."""
EVENT = line({"event": "STOP", "data": {}, "timestamp": {"seconds": 1, "microseconds": 1}})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HostileHost]:
    async with hostile_host(Path(tmp_path_factory.mktemp("w")), response_timeout="1s") as running:
        yield running


@pytest.mark.parametrize(
    ("chunks", "state", "reason"),
    [
        ([READY, *[b"x" * MIB] * 20], "stalled", SILENT),
        ([READY, b'{"event": "', *[b"x" * MIB] * 20], "stalled", SILENT),
        ([READY, b"{\r\n", *[b'"k": "' + b"x" * 1000 + b'",\r\n'] * 20_000], "stalled", SILENT),
        ([READY, b"{\r\n", *[b'"k": [\r\n'] * 20_000], "stalled", SILENT),
        ([READY, b'{"return": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\r\n"], "stalled", SILENT),
        ([READY, b'{"return": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}\r\n"], "stalled", SILENT),
        ([READY, b'{"event": "\xff\xfe\xc0\x80", "data": {}}\r\n'], "stalled", SILENT),
        ([READY, b'{"event": "\\ud800", "data": {}}\r\n'], "stalled", SILENT),
        ([READY, b"\x00" * 100 + b"\r\n"], "stalled", SILENT),
        ([READY, b'{"event": "X", "data": ' + b"9" * 100_000 + b"}\r\n"], "stalled", SILENT),
        ([READY + line({"return": {}})], "connecting", "cannot be identified: a reply without a command"),
        ([READY, line({"error": 5})], "stalled", SILENT),
        ([READY, line({"event": 5})], "stalled", SILENT),
        ([READY, line({"event": "X", "data": [1]})], "stalled", SILENT),
        ([READY, line([1])], "stalled", SILENT),
        ([READY, line({})], "stalled", SILENT),
        ([line(HELLO), line(HELLO)], "gone", "a second greeting"),
        ([line({"QMP": 5})], "gone", "a greeting that is not an object"),
        ([line(HELLO), line({"error": {"class": "X", "desc": "no"}})], "gone", "QEMU refused the negotiation: X: no"),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "gone", "not JSON"),
        ([line(HELLO)], "stalled", "QEMU greeted but did not reply to the negotiation within 1 s"),
        ([READY], "stalled", "no reply to query-uuid within 1 s"),
        ([], "busy", "no greeting within 1 s"),
        ([line(HELLO)[:30]], "busy", "no greeting within 1 s"),
        ([EVENT * 1000] * 300, "busy", "no greeting within 1 s"),
        ([line({"return": {}, "id": n}) for n in range(10_000)], "busy|gone", "."),
    ],
    ids=lambda value: None if isinstance(value, list) else value[:40],
)
async def test_malformed_bytes_lead_to_a_state_with_a_reason_and_affect_no_other_vm(
    host: HostileHost, chunks: Sequence[bytes], state: str, reason: str
) -> None:
    async with host.assert_undisturbed(), raw_monitor(host.monitor, chunks):
        if "|" in state:
            await host.assert_no_injection()
        else:
            await host.wait_for_state(state, reason)
    await host.assert_no_injection()


@pytest.mark.parametrize("length", range(0, len(READY), 40))
async def test_a_monitor_that_closes_in_the_middle_of_a_message_is_gone(host: HostileHost, length: int) -> None:
    async with host.assert_undisturbed(), raw_monitor(host.monitor, [READY[:length]], hang_up=True):
        await host.wait_for_state("gone", "closed the connection|reset|Connection")
