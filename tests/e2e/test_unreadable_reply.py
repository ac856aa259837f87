"""A VM whose replies to query-block are not JSON stays attached, loses no event and no disk counter, and gets no additional requests."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.lab.agent_process import AgentProcess
from tests.lab.fake_qemu import FakeQemu
from tests.lab.scripted_peer import TIMEOUT_SECONDS
from tests.lab.waiting import until

NOT_JSON: Final = b'{"return":[{"device":"d","locked":false,}]}\r\n'
EVENTS: Final = 1000
EVENTS_PER_POLL: Final = 25
POLLS: Final = 60
"""Number of query-blockstats requests in the observed window; the events are emitted during the first 40."""


class BusyQemu(FakeQemu):
    """A scripted QEMU that emits events, and counts one more write at each query-blockstats.

    Half of the events make the agent query the disks again. One event is GUEST_PANICKED.

    Attributes:
        writes: The number of writes in the last reply to query-blockstats.
        requests_in_window: The number of requests until the last poll of the measured time; 0 before.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.writes = 0
        self.requests_in_window = 0
        self._emitted = 0
        self._disks = self.transcript.answer("query-blockstats", {})["return"]
        self.replies["query-blockstats"] = self._next_figures

    def _next_figures(self, _arguments: dict[str, Any]) -> Any:
        self.writes += 1
        for _ in range(EVENTS_PER_POLL if self._emitted < EVENTS else 0):
            self._emit_next()
        if self.count("query-blockstats") >= POLLS and not self.requests_in_window:
            self.requests_in_window = len(self.requests)
        disks = copy.deepcopy(self._disks)
        for disk in disks:
            disk["stats"]["wr_operations"] = self.writes
        return disks

    def _emit_next(self) -> None:
        number = self._emitted
        self._emitted += 1
        if number == EVENTS // 2:
            self.emit("GUEST_PANICKED", {"action": "run"})
        elif number % 2:
            self.emit("DEVICE_TRAY_MOVED", {"device": "", "id": f"cd{number}", "tray-open": True})
        else:
            self.emit("NIC_RX_FILTER_CHANGED", {"name": f"net{number}", "path": "/machine"})


@dataclass
class Observation:
    """The records and requests of one run of the agent.

    Attributes:
        attached: The number of vm.attached records.
        events: The number of event records.
        requests: The number of requests in the window.
        clients: The number of connections.
        collectors_off: The collectors that were off at the end.
    """

    attached: int
    events: int
    requests: int
    clients: int
    collectors_off: list[str]


async def observe(folder: Path, reply: bytes | None) -> Observation:
    """Watch a busy VM whose query-block has this reply, None for a valid one, until all its events have arrived."""
    config = {"monitors": [{"dial": f"{folder}/*.qmp"}], "intervals": {"poll": "200ms"}}
    fake = BusyQemu(folder / "vm1.qmp")
    if reply is not None:
        fake.replies["query-block"] = reply
    async with fake, AgentProcess(folder, config) as agent:

        def events() -> int:
            return sum(record["type"].startswith("qemu.event.") for record in agent.records())

        await until(lambda: events() >= EVENTS and fake.requests_in_window, TIMEOUT_SECONDS)
        await agent.wait_for_record("alert.guest_panicked", state="firing")
        writes_then = fake.writes

        async def has_later_figures() -> bool:
            series = (await agent.metrics()).matching("qemu_block_writes_total")
            return bool(series) and all(value > writes_then for _, value in series)

        await until(has_later_figures, TIMEOUT_SECONDS)
        series = (await agent.metrics()).matching("qmp_agent_collector_degraded")
        attached = len([*agent.find_records("vm.attached")])
        collectors_off = [labels["collector"] for labels, value in series if value == 1]
        return Observation(attached, events(), fake.requests_in_window, fake.clients, collectors_off)


async def test_an_unreadable_reply_costs_no_event_no_connection_and_no_more_requests(folder: Path) -> None:
    (folder / "faulty").mkdir()
    (folder / "sound").mkdir()
    faulty = await observe(folder / "faulty", NOT_JSON)
    sound = await observe(folder / "sound", None)
    assert faulty.collectors_off == ["drives"]
    assert sound.collectors_off == []
    for observation in (faulty, sound):
        assert (observation.attached, observation.clients, observation.events) == (1, 1, EVENTS)
    assert faulty.requests <= sound.requests
