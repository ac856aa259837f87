"""Tests of the lab itself, against the real programs: guests, scripted QEMUs, Kafka and Prometheus."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from qemu.qmp import ExecuteError, QMPClient

from agent.cli.demo.guest import FAST_PAUSE_SECONDS, GuestKind
from agent.cli.demo.guest_qmp_client import GuestError
from agent.cli.demo.images import MissingDependencyError, build_boot_sector, linux_image
from tests.lab.fake_qemu import FakeError, FakeQemu, split_json_values
from tests.lab.fixtures import StartGuest, StartPrometheus
from tests.lab.kafka import KafkaCluster
from tests.lab.kafka_security import Certificates, Security
from tests.lab.prometheus import promtool_check
from tests.lab.transcript import NAME, UUID, Transcript, capture, transcript_path
from tests.lab.waiting import until

# --- Guests ---


def test_a_boot_sector_has_512_bytes_and_needs_a_span_of_at_least_one_write() -> None:
    assert len(build_boot_sector()) == 512
    assert build_boot_sector(last_sector=2**32 - 2)[-2:] == b"\x55\xaa"
    with pytest.raises(ValueError, match="no write of 8 sectors"):
        build_boot_sector(last_sector=70)


async def test_a_writer_starts_over_at_the_end_of_its_span(start_guest: StartGuest) -> None:
    guest = await start_guest(kind=GuestKind.WRITER, span_mib=1, write_kib=32, pause_seconds=FAST_PAUSE_SECONDS)
    await guest.wait_until_booted()
    before = await guest.count_writes()
    writes_per_span = (1 << 20) // (32 << 10)

    async def has_started_over() -> bool:
        return await guest.count_writes() > before + writes_per_span

    await until(has_started_over, 180)
    disk = next(device for device in await guest.command("query-blockstats") if "disk0" in device["qdev"])
    assert disk["stats"]["wr_highest_offset"] == 1 << 20


async def test_a_writers_disk_fails_on_request(start_guest: StartGuest) -> None:
    full = {"event": "write_aio", "iotype": "write", "errno": 28, "once": False}
    guest = await start_guest(kind=GuestKind.WRITER, faults=[full], disk_options="werror=stop")
    failed = await guest.wait_for_event("BLOCK_IO_ERROR")
    await guest.wait_for_event("STOP")
    assert failed["data"]["nospace"] is True
    assert (await guest.command("query-status"))["status"] == "io-error"


async def test_a_linux_guest_reports_memory_obeys_the_balloon_and_flushes(start_guest: StartGuest) -> None:
    guest = await start_guest(kind=GuestKind.LINUX, pause_seconds=0.1)
    await guest.wait_until_booted()
    balloon = "/machine/peripheral/balloon0"
    await guest.command("qom-set", path=balloon, property="guest-stats-polling-interval", value=1)
    await guest.command("balloon", value=100 << 20)
    assert (await guest.wait_for_event("BALLOON_CHANGE"))["data"]["actual"] < 128 << 20

    async def has_reported() -> Any:
        return (await guest.command("qom-get", path=balloon, property="guest-stats"))["last-update"]

    await until(has_reported, 180)
    stats = (await guest.command("qom-get", path=balloon, property="guest-stats"))["stats"]
    assert 0 < stats["stat-free-memory"] < stats["stat-total-memory"] <= 128 << 20

    async def has_flushed() -> bool:
        devices = await guest.command("query-blockstats")
        return any(device["stats"]["flush_operations"] > 1 for device in devices)

    await until(has_flushed, 180)


async def test_a_guest_keeps_its_uuid_and_name_after_a_crash_and_restart(start_guest: StartGuest) -> None:
    guest = await start_guest("vm7")
    await guest.kill()
    assert guest.monitor.is_socket(), "a crash leaves the socket behind"
    with pytest.raises(GuestError, match="closed its monitor"):
        await guest.command("query-status")
    await guest.stop()
    assert not guest.monitor.exists()
    await guest.start()
    assert await guest.command("query-uuid") == {"UUID": guest.uuid}
    assert await guest.command("query-name") == {"name": "vm7"}


async def test_a_frozen_guest_can_be_stopped(start_guest: StartGuest) -> None:
    guest = await start_guest()
    process = guest.process
    assert process is not None
    guest.send_signal(signal.SIGSTOP)
    await guest.stop()
    assert process.returncode is not None


async def test_the_error_of_a_guest_that_does_not_start_quotes_qemu(start_guest: StartGuest) -> None:
    with pytest.raises(GuestError, match="'nonsense' is not a valid device model name"):
        await start_guest(extra=["-device", "nonsense"])
    with pytest.raises(MissingDependencyError, match="no-such-qemu"):
        await start_guest(binary="no-such-qemu")


def test_without_busybox_the_error_names_the_package_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.fspath(folder))
    with pytest.raises(MissingDependencyError, match="install the package busybox-static"):
        linux_image(folder)
    assert list(folder.iterdir()) == [], "no partial build stays behind"


# --- The scripted QEMU ---


def shape(value: Any) -> Any:
    """Return the keys and types of a value, which are the same for every QEMU process of one version."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return type(value)


async def test_the_fakes_replies_have_the_shape_of_a_real_qemus(start_guest: StartGuest, folder: Path) -> None:
    guest = await start_guest(NAME, kind=GuestKind.WRITER, identity=UUID)
    await guest.wait_until_booted()
    real = await capture(guest.monitor)
    if not transcript_path(real.greeting).exists():
        pytest.skip(f"no transcript {transcript_path(real.greeting).name}: run python -m tests.lab.transcript")
    transcript = Transcript.load(transcript_path(real.greeting).stem)
    async with FakeQemu(folder / "fake.qmp", transcript=transcript) as fake:
        scripted = await capture(fake.path)
    assert shape(scripted.greeting) == shape(real.greeting)
    for ours, theirs in zip(scripted.exchanges, real.exchanges, strict=True):
        assert shape(ours) == shape(theirs), theirs["command"]
    assert scripted.exchanges == transcript.exchanges


async def test_the_fake_runs_out_of_band_commands_while_another_hangs(fake: FakeQemu) -> None:
    client = QMPClient()
    await client.connect(str(fake.path))
    try:
        fake.hang("query-status")
        held = asyncio.create_task(client.execute("query-status"))
        await fake.wait_for("query-status")
        await client.execute("query-yank", oob=True)
        assert not held.done()
        fake.release("query-status")
        assert await held == {"status": "running", "singlestep": False, "running": True}
    finally:
        await client.disconnect()


async def test_the_fake_returns_configured_replies_and_sends_events(fake: FakeQemu) -> None:
    client = QMPClient()
    await client.connect(str(fake.path))
    try:
        fake.replies["query-status"] = FakeError("GenericError", "not today")
        with pytest.raises(ExecuteError, match="not today"):
            await client.execute("query-status")
        fake.replies["query-balloon"] = lambda arguments: {"actual": len(arguments)}
        assert await client.execute("query-balloon") == {"actual": 0}
        with client.listener() as events:
            fake.emit("RESET", {"guest": True, "reason": "guest-reset"}, at=1.5)
            event = await asyncio.wait_for(events.get(), 180)
        assert event["timestamp"] == {"seconds": 1, "microseconds": 500_000}
    finally:
        await client.disconnect()


async def test_the_fake_serves_one_client_at_a_time_and_can_be_busy(fake: FakeQemu) -> None:
    first, first_writer = await asyncio.open_unix_connection(fake.path)
    assert b"QMP" in await first.readline()
    second, second_writer = await asyncio.open_unix_connection(fake.path)
    second_writer.write(b'{"execute":"qmp_capabilities"}{"execute":"query-name"}')
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(second.readline(), 0.1)
    fake.busy()
    assert await first.read() == b"", "the client is disconnected"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(second.readline(), 0.1)
    fake.free()
    assert [json.loads(await second.readline()) for _ in range(3)][2] == {"return": {"name": NAME}}
    first_writer.close()
    second_writer.close()
    assert fake.clients == 2


def test_requests_are_split_without_newlines_and_at_any_cut() -> None:
    text = '{"execute":"a"}{"execute":"b","arguments":{"x":"}{\\""}} {"execute":'
    values, rest, broken = split_json_values(text)
    assert [value["execute"] for value in values] == ["a", "b"]
    assert (rest, broken) == ('{"execute":', False)
    for cut in range(len(text)):
        early, kept, _ = split_json_values(text[:cut])
        late, _, _ = split_json_values(kept + text[cut:])
        assert early + late == values
    assert split_json_values('{"execute": }') == ([], "", True)
    assert split_json_values('{"half\ufffd{"execute":"c"}') == ([{"execute": "c"}], "", True)


# --- Kafka ---


async def send(cluster: KafkaCluster, topic: str, value: bytes) -> None:
    async with AIOKafkaProducer(**cluster.client, acks="all", request_timeout_ms=60_000) as producer:
        await producer.send_and_wait(topic, value)


async def receive(cluster: KafkaCluster, topic: str, count: int) -> list[bytes]:
    async with AIOKafkaConsumer(topic, auto_offset_reset="earliest", **cluster.client) as consumer:
        return [(await asyncio.wait_for(consumer.getone(), 180)).value for _ in range(count)]


async def test_a_broker_keeps_its_messages_after_a_kill_and_restart(kafka: KafkaCluster, topic: str) -> None:
    await send(kafka, topic, b"before")
    assert await receive(kafka, topic, 1) == [b"before"]
    await kafka.brokers[0].kill()
    await kafka.brokers[0].start()
    await send(kafka, topic, b"after")
    assert await receive(kafka, topic, 2) == [b"before", b"after"]


async def test_a_cluster_of_three_brokers_survives_the_loss_of_one(folder: Path) -> None:
    async with KafkaCluster(folder / "kafka", 3) as cluster:
        await cluster.create_topic("t", replication=3, config={"min.insync.replicas": "2"})
        await send(cluster, "t", b"before")
        await cluster.brokers[0].kill()
        await send(cluster, "t", b"after")
        assert await receive(cluster, "t", 2) == [b"before", b"after"]


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_clients_connect_by_tls_with_user_and_password(folder: Path, mechanism: str) -> None:
    security = Security(
        mechanism=mechanism, certificates=Certificates.make(folder / "certificates"), client_certificates=True
    )
    async with KafkaCluster(folder / "kafka", security=security) as cluster:
        await cluster.create_topic("t")
        await send(cluster, "t", b"hello")
        assert await receive(cluster, "t", 1) == [b"hello"]


# --- Prometheus ---


async def test_prometheus_scrapes_its_target_and_evaluates_queries(start_prometheus: StartPrometheus) -> None:
    exposition = "# HELP lab_answer_ratio A constant.\n# TYPE lab_answer_ratio gauge\nlab_answer_ratio 42\n"

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=exposition)

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        prometheus = await start_prometheus(f"127.0.0.1:{runner.addresses[0][1]}")
        await until(lambda: prometheus.query("lab_answer_ratio"), 180)
        (series,) = await prometheus.query("lab_answer_ratio * 2")
        assert series["value"][1] == "84"
    finally:
        await runner.cleanup()


def test_promtool_accepts_a_valid_exposition_and_reports_an_invalid_one() -> None:
    assert promtool_check("# HELP a_total A count.\n# TYPE a_total counter\na_total 1\n") == []
    assert promtool_check("a_total 1\n") == ["a_total no help text"]
