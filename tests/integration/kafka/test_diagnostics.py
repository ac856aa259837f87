"""Each reason why Kafka cannot be used has a text of its own, which is reported within bounded time."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agent.common.client_tls import ClientTlsConfig
from agent.common.config_types import expand_credentials_directory
from agent.delivery.sinks.kafka.config import KafkaConfig
from agent.delivery.sinks.kafka.sasl_config import SaslConfig
from tests.lab.kafka import KafkaCluster
from tests.lab.kafka_sink import TIMINGS, kafka_config, no_leaks, open_error, open_sink, read_topic, single_topic
from tests.lab.machine import free_port
from tests.lab.scripted_sink import RecordSource
from tests.lab.secured_kafka import MECHANISMS, PASSWORD, USER, Listeners


@pytest.fixture
async def leak_check(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Check that a test leaves no tasks, connections or warnings behind."""
    async with no_leaks(caplog):
        yield


pytestmark = pytest.mark.usefixtures("leak_check")


@pytest.fixture
def black_hole() -> Iterator[str]:
    """Address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def write_password(sasl: SaslConfig, password: str) -> None:
    assert sasl.password_file is not None
    Path(sasl.password_file).write_text(f"{password}\nsecond line\n")


def tls_config(ca: Path | None = None, certificate: Path | None = None) -> ClientTlsConfig:
    return ClientTlsConfig.model_validate({"ca": ca and str(ca), "certificate": certificate and str(certificate)})


def sasl_config(mechanism: str, name: str, file: Path) -> SaslConfig:
    return SaslConfig.model_validate({"mechanism": mechanism, "username": name, "password_file": str(file)})


def server_config(server: str, topic: str = "any", **more: Any) -> KafkaConfig:
    """Return a config with one bootstrap server."""
    return kafka_config([server], single_topic(topic), request_timeout=30.0, **more)


def credentials(listeners: Listeners, mechanism: str, password: str = PASSWORD, name: str = USER) -> SaslConfig:
    file = listeners.folder / f"password-{uuid4()}"
    file.write_text(f"{password}\nsecond line\n")
    return sasl_config(mechanism, name, file)


async def check_delivers(listeners: Listeners, config: KafkaConfig, topic: str) -> None:
    """Check that a sink with this config delivers records to a topic."""
    source = RecordSource()
    async with open_sink(config) as sink:
        assert await sink.send([*source.take(5)]) == []
    assert len(await read_topic(listeners.cluster, topic)) == 5


# --- No broker ---


async def test_a_refused_connection_is_reported() -> None:
    server = f"127.0.0.1:{free_port()}"
    assert await open_error(server_config(server)) == f"{server}: connection refused"


async def test_the_error_of_each_of_several_servers_is_reported() -> None:
    refused, unresolved = f"127.0.0.1:{free_port()}", "no-such-host.invalid:9092"
    error = await open_error(kafka_config([refused, unresolved], single_topic("any")))
    assert error.startswith(f"{refused}: connection refused; {unresolved}: name resolution fails: ")


async def test_one_working_server_of_several_is_enough(kafka: KafkaCluster, topic: str) -> None:
    source, bootstrap_servers = (
        RecordSource(),
        [f"127.0.0.1:{free_port()}", "no-such-host.invalid:9092", *kafka.bootstrap],
    )
    async with open_sink(kafka_config(bootstrap_servers, single_topic(topic))) as sink:
        assert await sink.send([*source.take(3)]) == []


async def test_a_server_that_never_answers_times_out(black_hole: str) -> None:
    assert await open_error(server_config(black_hole), seconds=5) == f"{black_hole}: no answer in time"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        b"",
        b"\0\0\0\4abcd",
        b"\0\0\0\x0c\0\0\0\1" + b"\xff" * 8,
    ],
)
async def test_a_server_that_is_not_kafka_is_reported(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        error = await open_error(server_config(address))
    finally:
        server.close()
    assert error.startswith(address)
    assert "check that the port is a Kafka listener" in error or answer.endswith(b"\xff")


async def test_a_broker_that_freezes_times_out(kafka: KafkaCluster, topic: str) -> None:
    config = kafka_config(kafka.bootstrap, single_topic(topic))
    source = RecordSource()
    async with open_sink(config) as sink:
        assert await sink.send([*source.take(1)]) == []
        await kafka.brokers[0].pause()
        sink._timings = replace(TIMINGS, acknowledge=1.0)
        try:
            async with asyncio.timeout(180):
                with pytest.raises(Exception, match="no acknowledgement for 1 s"):
                    await sink.send([*source.take(10)])
                await sink.close()
        finally:
            kafka.brokers[0].resume()
    async with open_sink(kafka_config(kafka.bootstrap, single_topic(topic))) as sink:
        assert await sink.send([*source.take(1)]) == []


# --- SASL ---


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("listener", ["clear", "tls"])
async def test_only_a_user_with_the_right_password_is_accepted(
    listeners: Listeners, topic: str, listener: str, mechanism: str
) -> None:
    tls = tls_config(listeners.certificates.authority) if listener == "tls" else None
    server = getattr(listeners, listener)
    if (listener, mechanism) == ("clear", "SCRAM-SHA-512"):
        error = await open_error(server_config(server, topic, tls=tls, sasl=credentials(listeners, mechanism)))
        assert error == f"{server} does not support SASL mechanism {mechanism}; change kafka.sasl.mechanism"
        return
    await check_delivers(
        listeners, server_config(server, topic, tls=tls, sasl=credentials(listeners, mechanism)), topic
    )
    text = f"{server} rejects user {{}}: wrong user name, password or mechanism; check kafka.sasl"
    assert await open_error(
        server_config(server, topic, tls=tls, sasl=credentials(listeners, mechanism, "wrong"))
    ) == text.format(USER)
    stranger = credentials(listeners, mechanism, name="nobody")
    assert await open_error(server_config(server, topic, tls=tls, sasl=stranger)) == text.format("nobody")


async def test_missing_credentials_are_reported(listeners: Listeners) -> None:
    error = await open_error(server_config(listeners.clear))
    assert error.startswith(f"{listeners.clear} ")
    assert "kafka.sasl" in error


async def test_a_listener_without_sasl_is_reported(listeners: Listeners) -> None:
    (server,) = listeners.cluster.bootstrap
    error = await open_error(server_config(server, sasl=credentials(listeners, "PLAIN")))
    assert error == f"{server} does not offer SASL on this port: remove kafka.sasl, or use a SASL listener"


async def test_the_password_file_is_read_at_each_connect(listeners: Listeners, topic: str) -> None:
    sasl = credentials(listeners, "SCRAM-SHA-256", "old")
    config = server_config(listeners.clear, topic, sasl=sasl)
    assert "rejects user" in await open_error(config)
    write_password(sasl, PASSWORD)
    await check_delivers(listeners, config, topic)


async def test_a_missing_password_file_is_reported(listeners: Listeners) -> None:
    sasl = sasl_config("PLAIN", USER, listeners.folder / "none")
    assert (
        await open_error(server_config(listeners.clear, sasl=sasl))
        == f"{listeners.folder}/none: No such file or directory"
    )


async def test_no_error_or_log_line_has_the_password(listeners: Listeners, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    error = await open_error(server_config(listeners.clear, sasl=credentials(listeners, "PLAIN", "sesame-9731")))
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("agent")]
    assert "sesame-9731" not in error + "".join(ours)  # aiokafka's own lines are not logged: see agent.runtime.logging


# --- TLS ---


async def test_an_untrusted_broker_certificate_is_reported(listeners: Listeners) -> None:
    sasl = credentials(listeners, "PLAIN")
    for tls in (tls_config(listeners.foreign.authority), tls_config()):
        error = await open_error(server_config(listeners.tls, tls=tls, sasl=sasl))
        assert error.startswith(f"{listeners.tls} has a certificate that is not trusted: ")
        assert error.endswith("; check kafka.tls.ca")


async def test_a_broker_certificate_of_another_host_is_reported(listeners: Listeners) -> None:
    port = listeners.tls.rpartition(":")[2]
    error = await open_error(
        server_config(
            f"127.0.0.2:{port}", tls=tls_config(listeners.certificates.authority), sasl=credentials(listeners, "PLAIN")
        )
    )
    assert "127.0.0.2" in error


async def test_the_client_certificate_is_required_and_checked(listeners: Listeners, topic: str) -> None:
    ours, foreign = listeners.certificates, listeners.foreign
    await check_delivers(
        listeners, server_config(listeners.mutual, topic, tls=tls_config(ours.authority, ours.client)), topic
    )
    for tls in (tls_config(ours.authority), tls_config(ours.authority, foreign.client)):
        error = await open_error(server_config(listeners.mutual, topic, tls=tls))
        assert error.startswith(f"{listeners.mutual} ")
        assert "kafka.tls.certificate" in error


async def test_certificate_files_without_a_certificate_are_reported(listeners: Listeners, folder: Path) -> None:
    (folder / "empty").touch()
    for tls in (
        tls_config(folder / "empty"),
        tls_config(listeners.certificates.authority, folder / "empty"),
        tls_config(folder / "none"),
    ):
        error = await open_error(server_config(listeners.mutual, tls=tls))
        assert str(tls.certificate or tls.ca) in error


async def test_plain_text_to_a_tls_listener_is_reported(listeners: Listeners) -> None:
    error = await open_error(server_config(listeners.mutual))
    assert error.startswith(f"{listeners.mutual} ")
    assert "kafka.tls" in error


async def test_tls_to_a_plain_text_listener_is_reported(listeners: Listeners) -> None:
    (server,) = listeners.cluster.bootstrap
    error = await open_error(server_config(server, tls=tls_config(listeners.certificates.authority)))
    assert error.startswith(f"{server} ")
    assert "check that the port is a TLS listener" in error


def test_an_unset_credentials_directory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(OSError, match="LoadCredential="):
        expand_credentials_directory("${CREDENTIALS_DIRECTORY}/kafka")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
    assert expand_credentials_directory("${CREDENTIALS_DIRECTORY}/kafka") == Path("/run/credentials/x/kafka")
