"""The endpoint: what it answers, what it refuses, and that nothing a guest is called is markup."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request

from agent.exposition.prometheus import render
from agent.exposition.snapshot import Snapshot
from agent.http import sse
from agent.http.handlers import HEADERS, create_application
from agent.http.record_stream import MAX_STREAMS, QUEUE_RECORDS, RecordBroadcaster, Subscriber
from agent.model.record import EncodedRecord, Record, RecordEncoder, Severity, Vm
from agent.monitors import Monitor
from agent.session.api import MonitorState, MonitorStatus
from tests.lab.scripted_peer import TIMEOUT_SECONDS
from tests.lab.snapshots import OPEN, poll, status, vm

STAMP = RecordEncoder()
Client = TestClient[Request, Application]


class Shown:
    """A Sight made by hand."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.broadcaster = RecordBroadcaster()
        self.wrong: list[str] = []
        self.noted: list[str] = []
        self.why_stuck = ""
        self.scrapes: list[float] = []

    def render_self_metrics(self) -> bytes:
        return b"# TYPE qmp_agent_x gauge\nqmp_agent_x 1.0\n"

    def unready_reasons(self) -> list[str]:
        return self.wrong

    def hang_reason(self) -> str:
        return self.why_stuck

    def warnings(self) -> list[str]:
        return self.noted

    def health(self) -> dict[str, Any]:
        return {"unready_reasons": self.wrong}

    def firing_alerts(self) -> list[dict[str, Any]]:
        return []

    def resolved_levels(self, _vm: Vm, _device: str, /) -> list[tuple[str, int]]:
        return [("80%", 80)]

    def on_scrape(self, seconds: float) -> None:
        self.scrapes.append(seconds)


@pytest.fixture
def view() -> Shown:
    return Shown()


@pytest.fixture
async def client(view: Shown) -> AsyncIterator[Client]:
    async with TestClient(TestServer(create_application(view))) as made:
        yield made


async def text(client: Client, path: str, expected: int = 200) -> str:
    async with client.get(path) as response:
        assert response.status == expected
        return await response.text()


def record(kind: str = "event.stop", name: str = "vm1", severity: Severity = Severity.INFO) -> EncodedRecord:
    return STAMP(Record(f"qemu.{kind}", vm(0, name), {}, 0, severity=severity))


# --- Pages ---


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/healthz", "text/plain; charset=utf-8"),
        ("/readyz", "text/plain; charset=utf-8"),
        ("/overview", "application/json"),
        ("/page/style.css", "text/css; charset=utf-8"),
        ("/page/main.js", "text/javascript; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml; charset=utf-8"),
    ],
)
async def test_every_page_has_its_type_and_the_headers_that_keep_browsers_tame(
    client: Client, path: str, kind: str
) -> None:
    async with client.get(path) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == kind
        assert HEADERS.items() <= dict(response.headers).items()


async def test_the_stream_has_the_headers_too(client: Client) -> None:
    async with client.get("/records") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert HEADERS.items() <= dict(response.headers).items()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_nothing_can_be_written(client: Client, method: str) -> None:
    for path in ("/", "/metrics", "/records"):
        async with client.request(method, path) as response:
            assert response.status == 405
    await text(client, "/nowhere", 404)


async def test_a_scrape_is_the_guests_series_and_the_agents_own_and_is_timed(client: Client, view: Shown) -> None:
    view.snapshot.status(status(vm()))
    assert await text(client, "/metrics") == render(view.snapshot) + view.render_self_metrics().decode()
    (seconds,) = view.scrapes
    assert 0 < seconds < 1


async def test_ready_says_why_not(client: Client, view: Shown) -> None:
    assert await text(client, "/readyz") == "ready\n"
    view.wrong = ["none of 2 monitors is up", "nothing is delivered"]
    assert await text(client, "/readyz", 503) == "none of 2 monitors is up\nnothing is delivered\n"
    assert await text(client, "/healthz") == "ok\n"


async def test_the_page_is_the_same_for_all_and_names_nothing_but_its_own_files(client: Client, view: Shown) -> None:
    before = await text(client, "/")
    view.snapshot.status(status(vm(0, "<script>alert(1)</script>")))
    assert await text(client, "/") == before
    assert not re.search(r"(https?:)?//|\bon\w+=|style=|<style|<script>", before)
    for name in re.findall(r'(?:src|href)="(page/[^"]+)"', before):
        script = await text(client, f"/{name}")
        assert "innerHTML" not in script
        for module in re.findall(r'from "\./([^"]+)"', script):
            await text(client, f"/page/{module}")


@pytest.mark.parametrize("path", ["/page/", "/page/index.py", "/page/..%2Fserver.py", "/page/%2e%2e/server.py"])
async def test_nothing_but_the_pages_files_is_served(client: Client, path: str) -> None:
    await text(client, path, 404)


# --- The overview ---


async def test_the_overview_is_one_json_of_all_there_is(client: Client, view: Shown) -> None:
    view.snapshot.status(status(vm(0, '"><b>')))
    busy = MonitorStatus(Monitor("/run/vm2.qmp", (2,), OPEN), MonitorState.BUSY, "held by another", None, None, 0)
    view.snapshot.status(busy)
    async with client.get("/overview") as response:
        assert response.content_type == "application/json"
        found = await response.json()
    assert found["vms"][vm().uuid]["name"] == '"><b>'
    assert [(one["state"], one["reason"]) for one in found["monitors"]] == [("up", ""), ("busy", "held by another")]
    assert (found["alerts"], found["agent"]) == ([], {"unready_reasons": []})


async def test_the_overview_is_streamed_whole_and_then_what_is_new(
    client: Client, view: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "TURN_SECONDS", 0.01)
    view.snapshot.status(status(vm()))
    view.snapshot.status(status(vm(1, "vm2", "/run/vm2.qmp"), key=1))
    async with client.get("/overview/live") as response, asyncio.timeout(TIMEOUT_SECONDS):
        whole = await message(response)
        assert whole["vms"].keys() == {vm().uuid, vm(1).uuid}
        assert whole.keys() == {"vms", "history", "monitors", "alerts", "agent"}
        view.wrong = ["nothing is delivered"]
        assert await message(response) == {"agent": {"unready_reasons": ["nothing is delivered"]}}
        poll(view.snapshot, vm(), "runstate", {"status": "paused", "running": False})
        news = await message(response)
        assert {uuid: one["status"] for uuid, one in news.pop("vms").items()} == {vm().uuid: "paused"}
        assert news == {"history": {}}


async def test_there_is_room_for_so_many_overviews(client: Client) -> None:
    sse = [await client.get("/overview/live") for _ in range(MAX_STREAMS)]
    assert str(MAX_STREAMS) in await text(client, "/overview/live", 503)
    for stream in sse:
        stream.close()


async def message(response: ClientResponse) -> dict[str, Any]:
    """Return the next message of a stream."""
    async for raw in response.content:
        if raw.startswith(b"data: "):
            found: dict[str, Any] = json.loads(raw[6:])
            return found
    raise AssertionError("the stream ended")


# --- Records ---


async def streamed(client: Client, view: Shown, query: str, *records: EncodedRecord) -> list[str]:
    """Return the ids of what a stream gives of these records, up to one that every stream wants."""
    last = record("event.~last", severity=Severity.CRITICAL)
    ids: list[str] = []
    async with client.get(f"/records?{query}") as response, asyncio.timeout(TIMEOUT_SECONDS):
        assert response.status == 200
        for stamped in (*records, last):
            view.broadcaster.publish(stamped)
        async for raw in response.content:
            if raw == b"id: %b\n" % last.id.encode():
                return ids
            if raw.startswith(b"id: "):
                ids.append(raw.decode().removeprefix("id: ").strip())
    raise AssertionError("the stream ended")


async def test_records_are_streamed_whole_as_server_sent_events(client: Client, view: Shown) -> None:
    made = record()
    async with client.get("/records") as response, asyncio.timeout(TIMEOUT_SECONDS):
        view.broadcaster.publish(made)
        lines = [await response.content.readline() for _ in range(3)]
    assert lines == [b"id: %b\n" % made.id.encode(), b"data: %b\n" % made.body, b"\n"]


async def test_a_stream_may_be_of_one_vm_one_type_or_one_severity_and_worse(client: Client, view: Shown) -> None:
    plain, other = record(), record(name="vm2")
    worse, sample = record(severity=Severity.ERROR), record("sample.block", severity=Severity.DEBUG)
    made = (plain, other, worse, sample)
    assert await streamed(client, view, "", *made) == [stamped.id for stamped in made]
    assert await streamed(client, view, "vm=vm1", *made) == [plain.id, worse.id, sample.id]
    assert await streamed(client, view, "type=qemu.event.", *made) == [plain.id, other.id, worse.id]
    assert await streamed(client, view, "severity=info", *made) == [plain.id, other.id, worse.id]
    assert await streamed(client, view, "severity=ERROR&type=qemu.event.", *made) == [worse.id]


@pytest.mark.parametrize("severity", ["fatal", "", "0", "debug,info"])
async def test_a_severity_that_is_none_is_refused_with_what_there_is(client: Client, severity: str) -> None:
    said = await text(client, f"/records?severity={severity}", 400)
    assert said == "severity is one of debug, info, warning, error, critical\n"


async def test_there_is_room_for_so_many_onlookers_and_for_another_when_one_leaves(client: Client, view: Shown) -> None:
    sse = [await client.get("/records") for _ in range(MAX_STREAMS)]
    assert str(MAX_STREAMS) in await text(client, "/records", 503)
    assert await text(client, "/healthz") == "ok\n"
    for stream in sse:
        stream.close()
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while (response := await client.get("/records")).status != 200:
            view.broadcaster.publish(record())  # a stream learns that its reader has left when it writes
    response.close()


async def test_an_onlooker_is_told_what_it_missed(client: Client, view: Shown) -> None:
    async with client.get("/records") as response, asyncio.timeout(TIMEOUT_SECONDS):
        for _ in range(QUEUE_RECORDS + 9):  # in one turn of the loop: nothing of it is written before all is put
            view.broadcaster.publish(record())
        lines = [await response.content.readline() for _ in range(2)]
    assert lines[0] == b"event: missed\n"
    assert json.loads(lines[1].removeprefix(b"data: ")) == {"records": 9}


async def test_a_quiet_stream_is_given_a_comment(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "QUIET_SECONDS", 0.01)
    async with client.get("/records") as response, asyncio.timeout(TIMEOUT_SECONDS):
        assert await response.content.readline() == b": quiet\n"


async def test_an_onlooker_that_reads_nothing_holds_up_nobody(client: Client, view: Shown) -> None:
    big: Any = STAMP(Record("qemu.event.x", vm(), {"x": "x" * 100_000}, 0))
    with view.broadcaster.subscribe(Subscriber()) as quick:
        async with client.get("/records"), asyncio.timeout(TIMEOUT_SECONDS):
            for _ in range(QUEUE_RECORDS + 100):
                view.broadcaster.publish(big)
                await quick.get()
            assert await text(client, "/healthz") == "ok\n"
    assert quick.missed == 0


@pytest.mark.parametrize("path", ["/nowhere", "/records?severity=x"])
async def test_refusals_have_the_headers_too(client: Client, path: str) -> None:
    async with client.get(path) as response:
        assert HEADERS.items() <= dict(response.headers).items()
