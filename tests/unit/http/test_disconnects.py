"""The endpoint logs no error about clients that disconnect or send malformed requests."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from itertools import count
from pathlib import Path

import aiohttp
import pytest

from agent.cli.http_client import EndpointCredentials
from agent.http.connection_limits import ConnectionLimits
from agent.http.sse import SseSendIntervals
from agent.model.record import Record, RecordEncoder
from tests.lab.endpoint import RunningEndpoint
from tests.lab.kafka_security import Certificates
from tests.lab.scripted_peer import TIMEOUT_SECONDS
from tests.lab.snapshots import status, vm
from tests.lab.waiting import until

ENCODE = RecordEncoder()
NUMBERS = count()
TIMING = SseSendIntervals(keepalive_seconds=0.02, overview_seconds=0.01)
PATHS = ["/records", "/records?recent", "/overview/live", f"/overview/live?vm={vm().uuid}"]


def problems(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log messages that look like a problem of the agent."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def start_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
    """Request a stream, and read the first byte of its content."""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    async with asyncio.timeout(TIMEOUT_SECONDS):
        assert b"200" in await reader.readuntil(b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await reader.read(1)


def change_state(endpoint: RunningEndpoint, size: int) -> None:
    """Publish a record and change the overview. Then both streams send data."""
    endpoint.view.broadcaster.publish(ENCODE(Record("qemu.event.stop", vm(), {"x": "x" * size}, 0)))
    endpoint.view.reasons = [f"{next(NUMBERS)}" + "x" * size]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("leave", [asyncio.StreamWriter.close, lambda writer: writer.transport.abort()])
async def test_a_reader_that_leaves_a_stream_logs_no_error(
    folder: Path, caplog: pytest.LogCaptureFixture, path: str, leave: Callable[[asyncio.StreamWriter], None]
) -> None:
    async with RunningEndpoint(folder, timing=TIMING).open() as endpoint:
        endpoint.view.snapshot.update_monitor_status(status(vm()))
        async with endpoint.raw_connection() as (reader, writer):
            tasks = asyncio.all_tasks()
            await start_stream(reader, writer, path)
            leave(writer)

            def has_ended() -> bool:
                change_state(endpoint, size=1000)
                return not asyncio.all_tasks() - tasks

            await until(has_ended, TIMEOUT_SECONDS)
    assert problems(caplog) == []


@pytest.mark.parametrize("path", PATHS)
async def test_a_reader_that_stops_reading_a_stream_logs_no_error(
    folder: Path, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    limits = ConnectionLimits(read_seconds=0.1)
    async with RunningEndpoint(folder, limits=limits, timing=TIMING).open() as endpoint:
        async with endpoint.raw_connection() as (reader, writer):
            await start_stream(reader, writer, path)

            def is_disconnected() -> bool:
                change_state(endpoint, size=500_000)
                return endpoint.endpoint.open_connections == 0

            await until(is_disconnected, TIMEOUT_SECONDS)
        change_state(endpoint, size=1000)
        await asyncio.sleep(0.1)
    assert problems(caplog) == []


@pytest.mark.parametrize(
    "request_text",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n\x00\x00\x00\r\n\r\n",
    ],
)
async def test_a_malformed_request_logs_no_error(
    folder: Path, caplog: pytest.LogCaptureFixture, request_text: bytes
) -> None:
    async with RunningEndpoint(folder).open() as endpoint, endpoint.raw_connection() as (reader, writer):
        writer.write(request_text)
        writer.write_eof()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await reader.read()
    assert problems(caplog) == []


async def test_an_error_in_a_handler_is_still_logged(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with RunningEndpoint(folder).open() as endpoint:
        monkeypatch.setattr(endpoint.view, "hang_reason", lambda: 1 / 0)
        assert await endpoint.get("/healthz") == 500
    assert "Error handling request" in "".join(problems(caplog))


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"])
@pytest.mark.parametrize("client_auth", [False, True])
async def test_a_failed_tls_handshake_logs_no_error(
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    data: bytes,
    client_auth: bool,  # noqa: FBT001 - pytest passes it by name
) -> None:
    certificates = Certificates.make(folder / "certificates")
    tls = {"cert_file": str(certificates.server), "key_file": str(certificates.server)}
    if client_auth:
        tls |= {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": str(certificates.authority)}
    async with RunningEndpoint(folder, {"tls_server_config": tls}).open() as endpoint:
        async with endpoint.raw_connection() as (reader, writer):
            writer.write(data)
            writer.write_eof()
            async with asyncio.timeout(TIMEOUT_SECONDS):
                with contextlib.suppress(ConnectionError):
                    await reader.read()
        if client_auth:
            with pytest.raises((aiohttp.ClientError, ConnectionError)):
                await endpoint.get(credentials=EndpointCredentials(ca=certificates.authority))
    assert problems(caplog) == []
