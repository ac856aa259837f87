"""Hostile QEMUs that speak valid QMP: names, numbers and floods. The agent keeps watching them, and their text has no effect."""

import asyncio
import re
from collections.abc import AsyncIterator
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from tests.bench.monitors import Monitors
from tests.lab.fake_qemu import FakeError, FakeQemu
from tests.lab.hostile_host import HostileHost, hostile_host, resident_memory
from tests.lab.qmp_bytes import line
from tests.lab.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE_TEXT: Final = (
    "\x1b]0;owned\x07\x1b[31mred\x1b[0m\x9b2J\r\n"
    '{"level":"critical","message":"forged"}\n'
    'x="y"} 1\nforged_metric{a="b"} 1\n'
    "</td></script><script>alert(1)</script><img src=x onerror=alert(1)>"
    "../../../../etc/passwd\x00\u202egpj.exe\u2028\u2066{{7*7}}${x}%s"
)
MARKUP: Final = ("<script>", "<img", "\x1b", "\u202e", "forged", "/etc/passwd")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HostileHost]:
    async with hostile_host(Path(tmp_path_factory.mktemp("w")), response_timeout="20s") as running:
        yield running


def append_to_strings(value: Any, text: str) -> Any:
    """Return a copy of a JSON value with a text appended to every string, except keys."""
    if isinstance(value, str):
        return value + text
    if isinstance(value, list):
        return [append_to_strings(item, text) for item in value]
    return {key: append_to_strings(item, text) for key, item in value.items()} if isinstance(value, dict) else value


async def test_hostile_names_do_not_inject_into_labels_logs_page_or_terminal(host: HostileHost) -> None:
    evil = FakeQemu(host.monitor)
    for exchange in evil.transcript.exchanges:
        if "return" in exchange["reply"] and exchange["command"] not in ("query-uuid", "qom-list"):
            evil.replies[exchange["command"]] = append_to_strings(exchange["reply"]["return"], HOSTILE_TEXT)
    evil.replies["query-uuid"] = {"UUID": "eeeeeeee-1111-4111-8111-111111111111"}
    evil.replies["query-jobs"] = FakeError(HOSTILE_TEXT, HOSTILE_TEXT)
    version = {"qemu": {"major": 7, "minor": 2, "micro": HOSTILE_TEXT}, "package": HOSTILE_TEXT}
    evil.greeting = {"QMP": {"version": version, "capabilities": ["oob", HOSTILE_TEXT]}}
    before = {path.name for path in host.folder.iterdir()}
    async with host.assert_undisturbed(), evil:
        await host.agent.wait_for_record("vm.attached", vm="eeeeeeee-1111-4111-8111-111111111111")
        await evil.wait_for("query-blockstats", 3)
        for name in ("BLOCK_IO_ERROR", "STOP", "SHUTDOWN", "JOB_STATUS_CHANGE", "BLOCK_JOB_ERROR", HOSTILE_TEXT):
            data = dict.fromkeys(("device", "node-name", "reason", "id", "operation", "action", "status"), HOSTILE_TEXT)
            evil.emit(name, data | {"nospace": True, "qom-path": HOSTILE_TEXT, "guest-panicked": HOSTILE_TEXT})
        await evil.wait_for("query-blockstats", evil.count("query-blockstats") + 3)
        output = await host.tail(30, "forged")
        series = await host.assert_no_injection(*MARKUP)
        assert "/etc/passwd" in series.text  # as part of a name
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e\u2066]", output)
        assert not [entry for entry in host.log() if entry["level"] == "critical"]
    await host.agent.wait_for_record("vm.gone", vm="eeeeeeee-1111-4111-8111-111111111111")
    assert {path.name for path in host.folder.iterdir()} - before <= {"evil.qmp"}


@pytest.mark.parametrize(
    "number", ["1e308", "-1e308", "18446744073709551615", "-9223372036854775808", "9" * 400, "1e999", "5e-324", "NaN"]
)
async def test_huge_numbers_do_no_harm(host: HostileHost, number: str) -> None:
    evil = FakeQemu(host.monitor, replies={"query-uuid": {"UUID": "eeeeeeee-1111-4111-8111-111111111112"}})
    stats = ",".join(f'"{key}":{number}' for key in ("rd_bytes", "wr_bytes", "wr_total_time_ns", "wr_highest_offset"))
    raw = f'{{"return":[{{"qdev":"d","node-name":"n","stats":{{{stats}}}}}]}}\r\n'
    async with host.assert_undisturbed(), evil:
        evil.hang("query-blockstats")
        await evil.wait_for("query-blockstats")
        evil.send_raw(raw.encode())
        await until(lambda: evil.clients > 1 or evil.count("query-blockstats") > 1)
        await host.assert_no_injection()


async def test_duplicate_keys_count_once_and_unexpected_replies_close_the_connection(host: HostileHost) -> None:
    evil = FakeQemu(host.monitor, replies={"query-uuid": {"UUID": "eeeeeeee-1111-4111-8111-111111111113"}})
    async with host.assert_undisturbed(), evil:
        await evil.wait_for("query-blockstats", 2)
        mark = host.agent.mark()
        evil.send_raw(b'{"event":"STOP","event":"RESUME","data":{},"data":{"x":1},"timestamp":5,"timestamp":null}\r\n')
        await host.agent.wait_for_record("event.resume", vm="vm1", since=mark)
        evil.send_raw(line({"return": {"running": True}, "id": "not ours"}) * 100)
        await evil.wait_for("query-blockstats", evil.count("query-blockstats") + 2)

        async def is_up() -> bool:
            return "up" in await host.states()

        await until(is_up)
        evil.send_raw(line({"return": []}) * 3)
        await until(lambda: evil.clients > 1)
        await host.assert_no_injection()


async def test_events_between_replies_and_cut_at_every_byte_are_all_reported(host: HostileHost) -> None:
    uuid = "eeeeeeee-1111-4111-8111-111111111114"
    evil = FakeQemu(host.monitor, replies={"query-uuid": {"UUID": uuid}, "query-name": {"name": "cut"}})
    sent = 0

    def next_event() -> bytes:
        nonlocal sent
        sent += 1
        return line({"event": "WATCHDOG", "data": {"action": "none", "n": sent}, "timestamp": {}})

    def event_before_name(arguments: dict[str, Any]) -> Any:
        evil.send_raw(next_event())
        return evil.transcript.answer("query-name", arguments)["return"] | {"name": "cut"}

    evil.replies["query-name"] = event_before_name

    def event_before_status(arguments: dict[str, Any]) -> Any:
        evil.send_raw(next_event())
        return evil.transcript.answer("query-status", arguments)["return"]

    evil.replies["query-status"] = event_before_status
    async with host.assert_undisturbed(), evil:
        await evil.wait_for("query-blockstats", 2)
        for byte in next_event():
            evil.send_raw(bytes([byte]))
        await until(lambda: len([*host.agent.find_records("event.watchdog", vm=uuid)]) >= sent >= 3)
    # A reply during the last wait may have had one more event.
    await until(lambda: len([*host.agent.find_records("event.watchdog", vm=uuid)]) >= sent)
    numbers = [record["data"]["qemu"]["n"] for record in host.agent.find_records("event.watchdog", vm=uuid)]
    assert numbers == list(range(1, sent + 1))


async def test_a_million_device_names_exhaust_neither_memory_nor_cpu(host: HostileHost) -> None:
    each, polls = 50_000, 20
    replies = [
        b'{"return":['
        + b",".join(b'{"qdev":"d%d","stats":{"rd_bytes":%d}}' % (n, n) for n in range(first, first + each))
        + b"]}\r\n"
        for first in range(0, each * polls, each)
    ]
    evil = Monitors(host.folder, 1)  # vm0.qmp
    evil.answers = CyclingReplies(evil.answers, {b"query-blockstats": replies})
    before = resident_memory(host.agent)
    async with host.assert_undisturbed(), evil:
        await until(lambda: evil.answered[b"query-blockstats"] >= polls)
        series = await host.assert_no_injection()
        assert len(series.matching("qemu_block_read_bytes_total", vm="vm0")) <= 4096
        truncated = series.value("qmp_agent_collector_runs_total", collector="block", outcome="truncated")
        assert truncated is not None
        assert truncated >= 2  # `nodes` queries it too
    assert resident_memory(host.agent) - before < 200 << 20


class CyclingReplies(dict[bytes, bytes]):
    """Replies by command; some commands cycle through several replies."""

    def __init__(self, replies: dict[bytes, bytes], changing: dict[bytes, list[bytes]]) -> None:
        super().__init__(replies)
        self._changing = {command: cycle(series) for command, series in changing.items()}

    def get(self, command: bytes, _default: Any = None) -> Any:
        """Return the next reply of a command that cycles, or the command's only reply."""
        return next(self._changing[command]) if command in self._changing else super().get(command)


async def test_the_page_never_turns_text_into_markup() -> None:
    for path in (Path(__file__).parents[3] / "agent/http/page").glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", path.read_text()
        )


async def test_an_event_storm_is_counted_completely_and_delays_no_other_vm(host: HostileHost) -> None:
    uuid = "eeeeeeee-1111-4111-8111-111111111116"
    evil = FakeQemu(host.monitor, replies={"query-uuid": {"UUID": uuid}})
    event = line(
        {"event": "RTC_CHANGE", "data": {"offset": 1, "qom-path": "/x"}, "timestamp": {"seconds": 1, "microseconds": 1}}
    )
    async with host.assert_undisturbed(), evil:
        await evil.wait_for("query-blockstats")
        for _ in range(20):
            evil.send_raw(event * 500)
            await asyncio.sleep(0)

        async def all_counted() -> bool:
            series = await host.agent.metrics()
            return series.value("qemu_vm_events_total", vm_uuid=uuid, event="RTC_CHANGE") == 10_000

        await until(all_counted)
