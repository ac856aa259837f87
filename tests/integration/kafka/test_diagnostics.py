"""Kafka that cannot be had: within bounded time, and in words from which an operator knows what to do."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agent.common.config_types import expand
from agent.delivery.sinks.kafka.config import KafkaConfig, SaslConfig, TlsConfig
from tests.lab.kafka import KafkaCluster
from tests.lab.kafka_sink import batch, messages, nothing_left, one_topic, opened, refusal, terms
from tests.lab.machine import free_port
from tests.lab.scripted_sink import Source
from tests.lab.secured_kafka import MECHANISMS, PASSWORD, USER, Doors


@pytest.fixture
async def unharmed(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Sees that nothing is left behind."""
    async with nothing_left(caplog):
        yield


pytestmark = pytest.mark.usefixtures("unharmed")


@pytest.fixture(autouse=True)
def short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.delivery.sinks.kafka.diagnostics.PROBE_SECONDS", 0.5)


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def write(sasl: SaslConfig, password: str) -> None:
    Path(sasl.password_file).write_text(f"{password}\nnot this line\n")


def trusting(ca: Path | None = None, certificate: Path | None = None) -> TlsConfig:
    return TlsConfig.model_validate({"ca": ca and str(ca), "certificate": certificate and str(certificate)})


def known_as(mechanism: str, name: str, file: Path) -> SaslConfig:
    return SaslConfig.model_validate({"mechanism": mechanism, "username": name, "password_file": str(file)})


def to(server: str, topic: str = "any", **more: Any) -> KafkaConfig:
    """Return terms for one server."""
    return terms([server], one_topic(topic), request_timeout=1.0, **more)


def user(doors: Doors, mechanism: str, password: str = PASSWORD, name: str = USER) -> SaslConfig:
    file = doors.folder / f"password-{uuid4()}"
    file.write_text(f"{password}\nnot this line\n")
    return known_as(mechanism, name, file)


async def delivers(doors: Doors, made: KafkaConfig, topic: str) -> None:
    """See that records get through."""
    source = Source()
    async with opened(made) as sink:
        assert await sink.send(batch(source, 5)) == []
    assert len(await messages(doors.cluster, topic)) == 5


# --- Nobody there ---


async def test_a_port_where_nobody_listens_is_named() -> None:
    server = f"127.0.0.1:{free_port()}"
    assert await refusal(to(server), seconds=2) == f"{server}: nothing listens there"


async def test_of_several_servers_each_is_said_why() -> None:
    one, other = f"127.0.0.1:{free_port()}", "no-such-host.invalid:9092"
    said = await refusal(terms([one, other], one_topic("any")))
    assert said.startswith(f"{one}: nothing listens there; {other}: the name cannot be resolved (")


async def test_one_server_of_several_is_enough(kafka: KafkaCluster, topic: str) -> None:
    source, bootstrap_servers = Source(), [f"127.0.0.1:{free_port()}", "no-such-host.invalid:9092", *kafka.bootstrap]
    async with opened(terms(bootstrap_servers, one_topic(topic))) as sink:
        assert await sink.send(batch(source, 3)) == []


async def test_who_takes_the_connection_and_never_answers_is_given_up_in_time(black_hole: str) -> None:
    begun = time.monotonic()
    assert await refusal(to(black_hole), seconds=5) == f"{black_hole}: no answer in time"
    assert time.monotonic() - begun < 4


@pytest.mark.parametrize(
    "speaks",
    [
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        b"",
        b"\0\0\0\4abcd",
        b"\0\0\0\x0c\0\0\0\1" + b"\xff" * 8,
    ],
)
async def test_what_is_no_kafka_at_all_is_said_so(speaks: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(speaks)
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        said = await refusal(to(address), seconds=6)
    finally:
        server.close()
    assert said.startswith(address)
    assert "Is it Kafka?" in said or speaks.endswith(b"\xff")


async def test_a_broker_that_freezes_under_way_is_given_up_in_time(
    kafka: KafkaCluster, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.delivery.sinks.kafka.sink.ACK_SECONDS", 1.0)
    sink_terms = terms(kafka.bootstrap, one_topic(topic), request_timeout=1.0)
    source = Source()
    async with opened(sink_terms) as sink:
        assert await sink.send(batch(source, 1)) == []
        await kafka.brokers[0].pause()
        try:
            async with asyncio.timeout(4):
                with pytest.raises(Exception, match="no acknowledgement for 1 s"):
                    await sink.send(batch(source, 10))
                await sink.close()
        finally:
            kafka.brokers[0].resume()
    async with opened(terms(kafka.bootstrap, one_topic(topic))) as sink:
        assert await sink.send(batch(source, 1)) == []


# --- Who we are ---


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("door", ["clear", "tls"])
async def test_a_user_with_the_right_password_comes_in_and_no_other(
    doors: Doors, topic: str, door: str, mechanism: str
) -> None:
    tls = trusting(doors.certificates.authority) if door == "tls" else None
    server = getattr(doors, door)
    if (door, mechanism) == ("clear", "SCRAM-SHA-512"):
        said = await refusal(to(server, topic, tls=tls, sasl=user(doors, mechanism)))
        assert said == f"{server} does not know the SASL mechanism {mechanism}"
        return
    await delivers(doors, to(server, topic, tls=tls, sasl=user(doors, mechanism)), topic)
    refused = (
        f"{server} refuses user {{}}: the name or the password is wrong, or the mechanism is not the one the user has"
    )
    assert await refusal(to(server, topic, tls=tls, sasl=user(doors, mechanism, "wrong"))) == refused.format(USER)
    stranger = user(doors, mechanism, name="nobody")
    assert await refusal(to(server, topic, tls=tls, sasl=stranger)) == refused.format("nobody")


async def test_who_says_nothing_where_a_user_is_wanted_is_told_so(doors: Doors) -> None:
    said = await refusal(to(doors.clear))
    assert said.startswith(f"{doors.clear} ")
    assert "kafka.sasl" in said


async def test_who_names_a_user_where_none_is_wanted_is_told_so(doors: Doors) -> None:
    (server,) = doors.cluster.bootstrap
    said = await refusal(to(server, sasl=user(doors, "PLAIN")))
    assert said == f"{server} wants no user: leave out kafka.sasl, or name a port that has SASL"


async def test_a_password_is_read_anew_each_time(doors: Doors, topic: str) -> None:
    sasl = user(doors, "SCRAM-SHA-256", "old")
    made = to(doors.clear, topic, sasl=sasl)
    assert "refuses user" in await refusal(made)
    write(sasl, PASSWORD)
    await delivers(doors, made, topic)


async def test_a_password_file_that_is_not_there_is_named(doors: Doors) -> None:
    sasl = known_as("PLAIN", USER, doors.folder / "none")
    assert await refusal(to(doors.clear, sasl=sasl)) == f"{doors.folder}/none: No such file or directory"


async def test_no_password_is_ever_said(doors: Doors, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said = await refusal(to(doors.clear, sasl=user(doors, "PLAIN", "sesame-9731")))
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("agent")]
    assert "sesame-9731" not in said + "".join(ours)  # aiokafka's own lines are not logged: see agent.logs


# --- TLS ---


async def test_an_authority_that_is_not_known_is_said_so(doors: Doors) -> None:
    sasl = user(doors, "PLAIN")
    for tls in (trusting(doors.foreign.authority), trusting()):
        said = await refusal(to(doors.tls, tls=tls, sasl=sasl))
        assert said.startswith(f"{doors.tls} shows a certificate that is not trusted: ")
        assert said.endswith("; see kafka.tls.ca")


async def test_a_certificate_of_another_host_is_said_so(doors: Doors) -> None:
    port = doors.tls.rpartition(":")[2]
    said = await refusal(to(f"127.0.0.2:{port}", tls=trusting(doors.certificates.authority), sasl=user(doors, "PLAIN")))
    assert "127.0.0.2" in said


async def test_a_certificate_of_ours_is_asked_for_and_checked(doors: Doors, topic: str) -> None:
    ours, foreign = doors.certificates, doors.foreign
    await delivers(doors, to(doors.mutual, topic, tls=trusting(ours.authority, ours.client)), topic)
    for tls in (trusting(ours.authority), trusting(ours.authority, foreign.client)):
        said = await refusal(to(doors.mutual, topic, tls=tls))
        assert said.startswith(f"{doors.mutual} ")
        assert "kafka.tls.certificate" in said


async def test_files_that_hold_no_certificate_are_named(doors: Doors, folder: Path) -> None:
    (folder / "empty").touch()
    for tls in (
        trusting(folder / "empty"),
        trusting(doors.certificates.authority, folder / "empty"),
        trusting(folder / "none"),
    ):
        said = await refusal(to(doors.mutual, tls=tls))
        assert str(tls.certificate or tls.ca) in said


async def test_plain_text_to_a_port_that_speaks_tls_is_said_so(doors: Doors) -> None:
    said = await refusal(to(doors.mutual))
    assert said.startswith(f"{doors.mutual} ")
    assert "kafka.tls" in said


async def test_tls_to_a_port_that_does_not_speak_it_is_said_so(doors: Doors) -> None:
    (server,) = doors.cluster.bootstrap
    said = await refusal(to(server, tls=trusting(doors.certificates.authority)))
    assert said.startswith(f"{server} ")
    assert "Does that port speak TLS?" in said


def test_a_secrets_folder_that_is_not_given_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(OSError, match="LoadCredential="):
        expand("${CREDENTIALS_DIRECTORY}/kafka")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
    assert expand("${CREDENTIALS_DIRECTORY}/kafka") == Path("/run/credentials/x/kafka")
