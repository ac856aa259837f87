"""The endpoint's pages and streams: content, headers and refusals. A guest's name is never markup."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request

from agent.alerts.catalogue import ALERT_CATALOGUE
from agent.exposition.prometheus import render_metrics
from agent.http.handlers import HEADERS, create_application
from agent.http.record_stream import MAX_STREAMS, QUEUE_RECORDS, Subscriber
from agent.http.sse import SseSendIntervals
from agent.http.static_files import content_digest
from agent.model.family import Sample
from agent.model.metrics import FAMILIES
from agent.model.metrics.block import BLOCK
from agent.model.metrics.storage_pool import POOL
from agent.model.record import EncodedRecord, Record, RecordEncoder, Severity
from agent.monitors import Monitor
from agent.session.shared_types import MonitorState, MonitorStatus
from tests.lab.endpoint import FakeView
from tests.lab.scripted_peer import TIMEOUT_SECONDS
from tests.lab.snapshots import OPEN, SECOND, disk_counters, poll, status, vm

ENCODE = RecordEncoder()
Client = TestClient[Request, Application]


TIMING = SseSendIntervals(overview_seconds=0.01)


@pytest.fixture
async def client(view: FakeView) -> AsyncIterator[Client]:
    async with TestClient(TestServer(create_application(view, TIMING))) as client:
        yield client


async def text(client: Client, path: str, expected: int = 200) -> str:
    async with client.get(path) as response:
        assert response.status == expected
        return await response.text()


def record(kind: str = "event.stop", name: str = "vm1", severity: Severity = Severity.INFO) -> EncodedRecord:
    return ENCODE(Record(f"qemu.{kind}", vm(0, name), {}, 0, severity=severity))


# --- Pages ---


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/healthz", "text/plain; charset=utf-8"),
        ("/readyz", "text/plain; charset=utf-8"),
        ("/overview", "application/json"),
        ("/page/another-version/style.css", "text/css; charset=utf-8"),
        ("/page/another-version/main.js", "text/javascript; charset=utf-8"),
        ("/page/another-version/icon.svg", "image/svg+xml; charset=utf-8"),
    ],
)
async def test_every_page_has_its_content_type_and_the_security_headers(client: Client, path: str, kind: str) -> None:
    async with client.get(path) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == kind
        assert response.headers["Cache-Control"] == "no-store"
        assert HEADERS.items() <= dict(response.headers).items()


async def test_a_browser_keeps_the_files_that_the_page_refers_to(client: Client) -> None:
    paths = re.findall(r'(?:src|href)="(page/[^"]+)"', await text(client, "/"))
    assert len(paths) > 10
    for path in paths:
        async with client.get(f"/{path}") as response:
            assert response.headers["Cache-Control"] == "private, max-age=31536000, immutable"
            assert HEADERS.items() <= dict(response.headers).items()
    async with client.get(f"/{paths[0]}.missing") as response:
        assert response.status == 404
        assert response.headers["Cache-Control"] == "no-store"


def test_a_file_with_another_content_has_another_address() -> None:
    contents = {"a.js": (b"1", "text/javascript"), "b.js": (b"2", "text/javascript")}
    changed = [
        contents | {"a.js": (b"3", "text/javascript")},
        {"a.js": (b"", "text/javascript"), "b.js": (b"12", "text/javascript")},
        {"a.js": contents["b.js"], "b.js": contents["a.js"]},
        {"a.js": contents["a.js"]},
    ]
    assert content_digest(contents) == content_digest(dict(reversed(contents.items())))
    assert len({content_digest(files) for files in (contents, *changed)}) == 5


async def test_the_record_stream_has_the_security_headers(client: Client) -> None:
    async with client.get("/records") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert HEADERS.items() <= dict(response.headers).items()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_only_get_is_allowed(client: Client, method: str) -> None:
    for path in ("/", "/metrics", "/records"):
        async with client.request(method, path) as response:
            assert response.status == 405
    await text(client, "/nowhere", 404)


async def test_a_scrape_has_the_vms_and_the_agents_series_and_is_timed(client: Client, view: FakeView) -> None:
    view.snapshot.update_monitor_status(status(vm()))
    assert await text(client, "/metrics") == render_metrics(view.snapshot) + view.render_self_metrics().decode()
    (seconds,) = view.scrapes
    assert 0 < seconds < 60


async def test_readyz_gives_the_reasons(client: Client, view: FakeView) -> None:
    assert await text(client, "/readyz") == "ready\n"
    view.reasons = ["none of 2 monitors is up", "nothing is delivered"]
    assert await text(client, "/readyz", 503) == "none of 2 monitors is up\nnothing is delivered\n"
    assert await text(client, "/healthz") == "ok\n"


async def test_the_page_is_static_and_refers_only_to_its_own_files(client: Client, view: FakeView) -> None:
    before = await text(client, "/")
    view.snapshot.update_monitor_status(status(vm(0, "<script>alert(1)</script>")))
    assert await text(client, "/") == before
    assert not re.search(r"(https?:)?//|\bon\w+=|style=|<style|<script>", before)
    for name in re.findall(r'(?:src|href)="(page/[^"]+)"', before):
        script = await text(client, f"/{name}")
        assert "innerHTML" not in script
        for module in re.findall(r'(?:from|import) "\./([^"]+)"', script):
            assert re.search(rf'(href|src)="page/\w+/{module}"', before)  # else the modules load one after the other


async def test_every_module_of_the_page_is_used_and_no_file_is_long(client: Client) -> None:
    folder = files("agent.http").joinpath("page")
    scripts = {file.name: file.read_text() for file in folder.iterdir() if file.name.endswith((".js", ".css"))}
    assert {name: len(code.splitlines()) for name, code in scripts.items() if code.count("\n") > 400} == {}
    used = set(re.findall(r'src="page/\w+/([\w-]+\.js)"', await text(client, "/")))
    for code in scripts.values():
        used |= set(re.findall(r'"\./([\w-]+\.js)"', code))
    assert used == {name for name in scripts if name.endswith(".js")}


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/x/",
        "/page/x/index.py",
        "/page/x/index.html",
        "/page/x/..%2Fserver.py",
        "/page/x/%2e%2e/server.py",
    ],
)
async def test_only_the_pages_files_are_served(client: Client, path: str) -> None:
    await text(client, path, 404)


# --- The overview ---


async def test_the_overview_is_one_json_of_the_whole_host(client: Client, view: FakeView) -> None:
    view.snapshot.update_monitor_status(status(vm(0, '"><b>')))
    busy = MonitorStatus(Monitor("/run/vm2.qmp", (2,), OPEN), MonitorState.BUSY, "held by another", None, None, 0)
    view.snapshot.update_monitor_status(busy)
    async with client.get("/overview") as response:
        assert response.content_type == "application/json"
        overview = await response.json()
    assert overview["vms"][vm().uuid]["name"] == '"><b>'
    assert [(monitor["state"], monitor["reason"]) for monitor in overview["monitors"]] == [
        ("up", ""),
        ("busy", "held by another"),
    ]
    assert (overview["alerts"], overview["agent"]) == ([], {"unready_reasons": []})


async def test_the_overview_stream_starts_with_everything_and_goes_on_with_changes(
    client: Client, view: FakeView
) -> None:
    view.snapshot.update_monitor_status(status(vm()))
    view.snapshot.update_monitor_status(status(vm(1, "vm2", "/run/vm2.qmp"), key=1))
    async with client.get("/overview/live") as response, asyncio.timeout(TIMEOUT_SECONDS):
        first = await message(response)
        assert first["rows"]["set"].keys() == {vm().uuid, vm(1).uuid}
        assert first.keys() == {"columns", "rows", "agent", "resources"}
        view.reasons = ["nothing is delivered"]
        changed = await message(response)
        assert changed.keys() == {"agent"}
        assert changed["agent"]["unready_reasons"] == ["nothing is delivered"]
        poll(view.snapshot, vm(), "runstate", {"status": "paused", "running": False})
        changes = await message(response)
        assert changes.keys() == {"rows", "agent"}
        assert changes["agent"]["states"] == {"paused": 1, "up": 1}
        ((uuid, row),) = changes["rows"]["set"].items()
        assert (uuid, row[first["columns"].index("status")]) == (vm().uuid, "paused")


async def test_a_state_that_changes_all_the_time_is_sent_once_an_interval(view: FakeView) -> None:
    asked = 0

    def health() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return {"delivered": asked}

    view.agent_health = health  # type: ignore[method-assign]
    application = create_application(view, SseSendIntervals(overview_seconds=3600))
    async with (
        TestClient(TestServer(application)) as client,
        asyncio.timeout(TIMEOUT_SECONDS),
        client.get("/overview/live") as response,
    ):
        await message(response)
        for _ in range(20):
            await text(client, "/healthz")
    assert asked == 1


async def test_overview_streams_are_limited(client: Client) -> None:
    streams = [await client.get("/overview/live") for _ in range(MAX_STREAMS)]
    assert str(MAX_STREAMS) in await text(client, "/overview/live", 503)
    for stream in streams:
        stream.close()


async def message(response: ClientResponse) -> dict[str, Any]:
    """Return the next message of a stream."""
    async for raw in response.content:
        if raw.startswith(b"data: "):
            content: dict[str, Any] = json.loads(raw[6:])
            return content
    raise AssertionError("the stream ended")


# --- What the page requests ---


async def test_each_alert_has_its_meaning_its_causes_and_what_to_do(client: Client) -> None:
    async with client.get("/alert-descriptions") as response:
        known = await response.json()
    assert known.keys() == ALERT_CATALOGUE.keys()
    for name, texts in known.items():
        assert texts.keys() == {"help", "cause", "action"}
        assert all(texts.values()), name


async def test_the_table_of_metrics_has_the_series_of_each_field(client: Client) -> None:
    async with client.get("/fields") as response:
        fields = await response.json()
    kind, _, series = fields["block"]["fields"]["read_bytes_total"]
    assert (kind, series, fields["block"]["labels"]) == ("counter", "qemu_block_read_bytes_total", ["device"])
    assert fields["block"]["fields"]["node"][2] == ""  # in records only
    exported = {name for family in fields.values() for _, _, name in family["fields"].values() if name}
    scrape = {family.metric_name(field) for family in FAMILIES for field in family.exported_fields()}
    assert exported == scrape


async def test_a_history_has_the_points_of_a_vm_or_a_pool_or_the_host(client: Client, view: FakeView) -> None:
    view.snapshot.update_monitor_status(status(vm()))
    for at in range(0, 60, 10):
        counters = disk_counters(write=at * 100)
        view.snapshot.replace_samples(vm(), (BLOCK,), [Sample(BLOCK, ("disk0",), counters)], (1000 + at) * SECOND)
        pool = Sample(POOL, ("/srv", "filesystem"), {"used_bytes": at, "free_bytes": 100})
        view.snapshot.replace_host_sample(pool, 1000 + at)

    async def column(query: str, name: str) -> list[tuple[float, float | None]]:
        async with client.get(f"/history?{query}") as response:
            answer = await response.json()
        place = answer["columns"].index(name) + 1
        return [(point[0], point[place]) for point in answer["points"]]

    rates = [(1010, 100), (1020, 100), (1030, 100), (1040, 100), (1050, 100)]
    assert await column(f"vm={vm().uuid}", "write") == rates
    assert await column(f"vm={vm().uuid}&range=20", "write") == rates[-2:]
    assert await column(f"vm={vm().uuid}&after=1040", "write") == rates[-1:]
    assert await column(f"vm={vm().uuid}", "cpu") == [(time, None) for time, _ in rates]
    assert await column("", "write") == rates
    assert await column("pool=/srv&kind=filesystem&after=1040", "used") == [(1050, 50)]
    assert await column("vm=unknown", "write") == await column("pool=unknown", "used") == []


@pytest.mark.parametrize("query", ["range=x", "after=x"])
async def test_a_range_that_is_no_number_is_refused(client: Client, query: str) -> None:
    assert await text(client, f"/history?{query}", 400) == "range and after should be numbers of seconds\n"


# --- Records ---


async def stream_ids(client: Client, view: FakeView, query: str, *records: EncodedRecord) -> list[str]:
    """Publish records, and return the ids of those that a stream sends. A last record, which matches every filter, marks the end."""
    last = record("event.~last", severity=Severity.CRITICAL)
    ids: list[str] = []
    async with client.get(f"/records?{query}") as response, asyncio.timeout(TIMEOUT_SECONDS):
        assert response.status == 200
        for encoded in (*records, last):
            view.broadcaster.publish(encoded)
        async for raw in response.content:
            if raw == b"id: %b\n" % last.id.encode():
                return ids
            if raw.startswith(b"id: "):
                ids.append(raw.decode().removeprefix("id: ").strip())
    raise AssertionError("the stream ended")


async def test_records_are_streamed_as_server_sent_events(client: Client, view: FakeView) -> None:
    encoded = record()
    async with client.get("/records") as response, asyncio.timeout(TIMEOUT_SECONDS):
        view.broadcaster.publish(encoded)
        lines = [await response.content.readline() for _ in range(3)]
    assert lines == [b"id: %b\n" % encoded.id.encode(), b"data: %b\n" % encoded.body, b"\n"]


async def test_a_record_stream_filters_by_vm_type_and_severity(client: Client, view: FakeView) -> None:
    plain, other = record(), record(name="vm2")
    worse, sample = record(severity=Severity.ERROR), record("sample.block", severity=Severity.DEBUG)
    records = (plain, other, worse, sample)
    assert await stream_ids(client, view, "", *records) == [encoded.id for encoded in records]
    assert await stream_ids(client, view, "vm=vm1", *records) == [plain.id, worse.id, sample.id]
    assert await stream_ids(client, view, "type=qemu.event.", *records) == [plain.id, other.id, worse.id]
    assert await stream_ids(client, view, "severity=info", *records) == [plain.id, other.id, worse.id]
    assert await stream_ids(client, view, "severity=ERROR&type=qemu.event.", *records) == [worse.id]


@pytest.mark.parametrize("severity", ["fatal", "", "0", "debug,info"])
async def test_an_unknown_severity_is_refused_with_the_known_ones(client: Client, severity: str) -> None:
    reason = await text(client, f"/records?severity={severity}", 400)
    assert reason == "severity should be one of debug, info, warning, error, critical\n"


async def test_record_streams_are_limited_until_one_ends(client: Client, view: FakeView) -> None:
    streams = [await client.get("/records") for _ in range(MAX_STREAMS)]
    assert str(MAX_STREAMS) in await text(client, "/records", 503)
    assert await text(client, "/healthz") == "ok\n"
    for stream in streams:
        stream.close()
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while (response := await client.get("/records")).status != 200:
            view.broadcaster.publish(record())  # a stream notices that its reader left when it writes
    response.close()


async def test_a_slow_reader_gets_the_number_of_records_that_it_missed(client: Client, view: FakeView) -> None:
    async with client.get("/records") as response, asyncio.timeout(TIMEOUT_SECONDS):
        for _ in range(
            QUEUE_RECORDS + 9
        ):  # in one step of the event loop: all are published before the first is written
            view.broadcaster.publish(record())
        lines = [await response.content.readline() for _ in range(2)]
    assert lines[0] == b"event: missed\n"
    assert json.loads(lines[1].removeprefix(b"data: ")) == {"records": 9}


async def test_an_idle_stream_gets_a_comment(view: FakeView) -> None:
    application = create_application(view, SseSendIntervals(keepalive_seconds=0.01))
    async with (
        TestClient(TestServer(application)) as client,
        asyncio.timeout(TIMEOUT_SECONDS),
        client.get("/records") as response,
    ):
        assert await response.content.readline() == b": keepalive\n"


async def test_a_reader_that_reads_nothing_delays_no_other(client: Client, view: FakeView) -> None:
    big: Any = ENCODE(Record("qemu.event.x", vm(), {"x": "x" * 100_000}, 0))
    with view.broadcaster.subscribe(Subscriber()) as quick:
        async with client.get("/records"), asyncio.timeout(TIMEOUT_SECONDS):
            for _ in range(QUEUE_RECORDS + 100):
                view.broadcaster.publish(big)
                await quick.get()
            assert await text(client, "/healthz") == "ok\n"
    assert quick.missed == 0


@pytest.mark.parametrize("path", ["/nowhere", "/records?severity=x"])
async def test_refusals_have_the_security_headers(client: Client, path: str) -> None:
    async with client.get(path) as response:
        assert HEADERS.items() <= dict(response.headers).items()
