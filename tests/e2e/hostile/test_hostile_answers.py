"""VMs that speak QMP and mean harm by what they say: names, numbers, floods. They are watched on, and nothing that they say acts."""

import asyncio
import re
from collections.abc import AsyncIterator
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from agent.cli.demo.guest import until
from tests.bench.monitors import Monitors
from tests.lab.fake_qemu import FakeError, FakeQemu
from tests.lab.hostile_host import World, memory, world
from tests.lab.qmp_bytes import line

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

EVIL: Final = (
    "\x1b]0;owned\x07\x1b[31mred\x1b[0m\x9b2J\r\n"
    '{"level":"critical","message":"forged"}\n'
    'x="y"} 1\nforged_metric{a="b"} 1\n'
    "</td></script><script>alert(1)</script><img src=x onerror=alert(1)>"
    "../../../../etc/passwd\x00\u202egpj.exe\u2028\u2066{{7*7}}${x}%s"
)
MARKUP: Final = ("<script>", "<img", "\x1b", "\u202e", "forged", "/etc/passwd")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world(Path(tmp_path_factory.mktemp("w")), reply="20s") as made:
        yield made


def everywhere(value: Any, word: str) -> Any:
    """Return a value with a word behind every string in it."""
    if isinstance(value, str):
        return value + word
    if isinstance(value, list):
        return [everywhere(one, word) for one in value]
    return {key: everywhere(one, word) for key, one in value.items()} if isinstance(value, dict) else value


async def test_no_name_or_word_acts_on_a_label_a_log_line_the_page_or_a_terminal(stage: World) -> None:
    evil = FakeQemu(stage.monitor)
    for exchange in evil.transcript.exchanges:
        if "return" in exchange["reply"] and exchange["command"] not in ("query-uuid", "qom-list"):
            evil.replies[exchange["command"]] = everywhere(exchange["reply"]["return"], EVIL)
    evil.replies["query-uuid"] = {"UUID": "eeeeeeee-1111-4111-8111-111111111111"}
    evil.replies["query-jobs"] = FakeError(EVIL, EVIL)
    version = {"qemu": {"major": 7, "minor": 2, "micro": EVIL}, "package": EVIL}
    evil.greeting = {"QMP": {"version": version, "capabilities": ["oob", EVIL]}}
    before = {path.name for path in stage.folder.iterdir()}
    async with stage.undisturbed(), evil:
        await stage.agent.wait_for_record("vm.attached", vm="eeeeeeee-1111-4111-8111-111111111111")
        await evil.wait_for("query-blockstats", 3)
        for name in ("BLOCK_IO_ERROR", "STOP", "SHUTDOWN", "JOB_STATUS_CHANGE", "BLOCK_JOB_ERROR", EVIL):
            data = dict.fromkeys(("device", "node-name", "reason", "id", "operation", "action", "status"), EVIL)
            evil.emit(name, data | {"nospace": True, "qom-path": EVIL, "guest-panicked": EVIL})
        await evil.wait_for("query-blockstats", evil.count("query-blockstats") + 3)
        shown = await stage.tail(30)
        series = await stage.nothing_is_forged(*MARKUP)
        assert "/etc/passwd" in series.text  # as a name, and only that
        assert "eeeeeeee" in shown or "forged" in shown, "the evil VM is among what is told"
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e\u2066]", shown)
        assert not [entry for entry in stage.log() if entry["level"] == "critical"]
    await stage.agent.wait_for_record("vm.gone", vm="eeeeeeee-1111-4111-8111-111111111111")
    assert {path.name for path in stage.folder.iterdir()} - before <= {"evil.qmp"}


@pytest.mark.parametrize(
    "number", ["1e308", "-1e308", "18446744073709551615", "-9223372036854775808", "9" * 400, "1e999", "5e-324", "NaN"]
)
async def test_no_number_is_too_large(stage: World, number: str) -> None:
    evil = FakeQemu(stage.monitor, replies={"query-uuid": {"UUID": "eeeeeeee-1111-4111-8111-111111111112"}})
    stats = ",".join(f'"{key}":{number}' for key in ("rd_bytes", "wr_bytes", "wr_total_time_ns", "wr_highest_offset"))
    raw = f'{{"return":[{{"qdev":"d","node-name":"n","stats":{{{stats}}}}}]}}\r\n'
    held = asyncio.Event()

    async with stage.undisturbed(), evil:
        evil.hang("query-blockstats")
        await evil.wait_for("query-blockstats")
        evil.send_raw(raw.encode())
        held.set()
        await until(lambda: evil.clients > 1 or evil.count("query-blockstats") > 1, 10)
        await stage.nothing_is_forged()


async def test_what_is_said_twice_in_one_object_is_said_once_and_what_nobody_asked_for_ends_the_connection(
    stage: World,
) -> None:
    evil = FakeQemu(stage.monitor, replies={"query-uuid": {"UUID": "eeeeeeee-1111-4111-8111-111111111113"}})
    async with stage.undisturbed(), evil:
        await evil.wait_for("query-blockstats", 2)
        evil.send_raw(b'{"event":"STOP","event":"RESUME","data":{},"data":{"x":1},"timestamp":5,"timestamp":null}\r\n')
        await stage.agent.wait_for_record("event.resume", vm="vm1")
        evil.send_raw(line({"return": {"running": True}, "id": "not ours"}) * 100)
        await evil.wait_for("query-blockstats", evil.count("query-blockstats") + 2)
        assert "up" in await stage.states()
        evil.send_raw(line({"return": []}) * 3)
        await until(lambda: evil.clients > 1, 10)
        await stage.nothing_is_forged()


async def test_events_in_the_middle_of_everything_are_all_told(stage: World) -> None:
    """Before the greeting, between it and the end of negotiation, within a batch of answers, cut at every byte."""
    uuid = "eeeeeeee-1111-4111-8111-111111111114"
    evil = FakeQemu(stage.monitor, replies={"query-uuid": {"UUID": uuid}, "query-name": {"name": "cut"}})
    sent = 0

    def burst() -> bytes:
        nonlocal sent
        sent += 1
        return line({"event": "WATCHDOG", "data": {"action": "none", "n": sent}, "timestamp": {}})

    def between(arguments: dict[str, Any]) -> Any:
        evil.send_raw(burst())
        return evil.transcript.answer("query-name", arguments)["return"] | {"name": "cut"}

    evil.replies["query-name"] = between

    def beside(arguments: dict[str, Any]) -> Any:
        evil.send_raw(burst())
        return evil.transcript.answer("query-status", arguments)["return"]

    evil.replies["query-status"] = beside
    async with stage.undisturbed(), evil:
        await evil.wait_for("query-blockstats", 2)
        for byte in burst():
            evil.send_raw(bytes([byte]))
        await until(lambda: len([*stage.agent.find_records("event.watchdog", vm=uuid)]) >= sent >= 3, 10)
    told = [record["data"]["qemu"]["n"] for record in stage.agent.find_records("event.watchdog", vm=uuid)]
    assert told == list(range(1, sent + 1))


async def test_a_million_names_of_devices_cost_neither_memory_nor_others_their_time(stage: World) -> None:
    each, polls = 50_000, 20
    answers = [
        b'{"return":['
        + b",".join(b'{"qdev":"d%d","stats":{"rd_bytes":%d}}' % (n, n) for n in range(first, first + each))
        + b"]}\r\n"
        for first in range(0, each * polls, each)
    ]
    evil = Monitors(stage.folder, 1)  # vm0.qmp
    evil.answers = New(evil.answers, {b"query-blockstats": answers})
    before = memory(stage.agent)
    async with stage.undisturbed(), evil:
        await until(lambda: evil.answered[b"query-blockstats"] >= polls, 90)
        series = await stage.nothing_is_forged()
        assert len(series.matching("qemu_block_read_bytes_total", vm="vm0")) <= 4096
        cut = series.value("qmp_agent_collector_runs_total", collector="block", outcome="truncated")
        assert cut is not None
        assert cut >= 2  # `nodes` asks that too
    assert memory(stage.agent) - before < 200 << 20


class New(dict[bytes, bytes]):
    """Answers, of which some are new each time."""

    def __init__(self, answers: dict[bytes, bytes], changing: dict[bytes, list[bytes]]) -> None:
        super().__init__(answers)
        self._changing = {command: cycle(of) for command, of in changing.items()}

    def get(self, command: bytes, _default: Any = None) -> Any:
        """Return the next answer, or the only one."""
        return next(self._changing[command]) if command in self._changing else super().get(command)


async def test_the_page_makes_no_markup_of_what_it_is_told() -> None:
    for path in (Path(__file__).parents[3] / "agent/http/page").glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", path.read_text()
        )


async def test_an_event_storm_is_read_to_its_end_and_slows_nobody(stage: World) -> None:
    uuid = "eeeeeeee-1111-4111-8111-111111111116"
    evil = FakeQemu(stage.monitor, replies={"query-uuid": {"UUID": uuid}})
    one = line(
        {"event": "RTC_CHANGE", "data": {"offset": 1, "qom-path": "/x"}, "timestamp": {"seconds": 1, "microseconds": 1}}
    )
    async with stage.undisturbed(), evil:
        await evil.wait_for("query-blockstats")
        for _ in range(20):
            evil.send_raw(one * 500)
            await asyncio.sleep(0)

        async def counted() -> bool:
            series = await stage.agent.metrics()
            return series.value("qemu_vm_events_total", vm_uuid=uuid, event="RTC_CHANGE") == 10_000

        await until(counted, 30)
