"""SASL OAUTHBEARER with a real broker, and with tokens of a real OpenID provider."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agent.common.client_tls import ClientTlsConfig
from agent.delivery.sinks.kafka.config import KafkaConfig
from agent.delivery.sinks.kafka.oauth_config import OauthConfig
from agent.delivery.sinks.kafka.sasl_config import SaslConfig
from agent.delivery.sinks.kafka.tokens import OidcTokenProvider, TokenError, parse_token_response
from tests.lab.kafka import KafkaCluster
from tests.lab.kafka_security import Certificates, Security
from tests.lab.kafka_sink import ids, kafka_config, no_leaks, open_error, open_sink, read_topic, single_topic
from tests.lab.machine import free_port
from tests.lab.oidc_provider import AUDIENCE, CLIENT, SECRET, OidcProvider
from tests.lab.scripted_sink import RecordSource

TOPIC = "oauth"
TOKEN_SECONDS = 5


@dataclass(frozen=True, slots=True)
class OauthBroker:
    """A broker that takes tokens on two listeners, and ends a connection when its token expires.

    Attributes:
        address: the listener in plain text.
        tls_address: the listener over TLS.
        certificates: the broker's certificates.
        cluster: the broker.
        provider: the OpenID provider.
    """

    address: str
    tls_address: str
    certificates: Certificates
    cluster: KafkaCluster
    provider: OidcProvider


@contextlib.asynccontextmanager
async def oauth_broker(folder: Path, token_seconds: int = TOKEN_SECONDS) -> AsyncIterator[OauthBroker]:
    async with OidcProvider(token_seconds) as provider:
        allowed = f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={provider.keys_url}"
        cluster = KafkaCluster(folder / "kafka", java_options=[allowed])
        (broker,) = cluster.brokers
        ports = broker.ports | {"OAUTH": free_port(), "OAUTHTLS": free_port()}
        addresses = {name: f"{name}://127.0.0.1:{port}" for name, port in ports.items()}
        certificates = Certificates.make(folder / "broker-certificates")
        cluster._properties |= {
            "listeners": ",".join(addresses.values()),
            "advertised.listeners": ",".join(text for name, text in addresses.items() if name != "CONTROLLER"),
            "listener.security.protocol.map": "CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT,"
            "OAUTH:SASL_PLAINTEXT,OAUTHTLS:SASL_SSL",
            **token_properties("oauth"),
            **token_properties("oauthtls"),
            **Security(certificates=certificates).broker_properties("oauthtls"),
            "sasl.oauthbearer.jwks.endpoint.url": provider.keys_url,
            "sasl.oauthbearer.expected.issuer": provider.issuer,
            "sasl.oauthbearer.expected.audience": AUDIENCE,
            "sasl.oauthbearer.clock.skew.seconds": 0,
        }
        async with cluster:
            await cluster.create_topic(TOPIC)
            plain, tls = (f"127.0.0.1:{ports[name]}" for name in ("OAUTH", "OAUTHTLS"))
            yield OauthBroker(plain, tls, certificates, cluster, provider)


def token_properties(listener: str) -> dict[str, object]:
    """Return the broker properties of a listener that takes tokens. The listener's name must be in lower case."""
    prefix, security = f"listener.name.{listener}", "org.apache.kafka.common.security.oauthbearer"
    return {
        f"{prefix}.sasl.enabled.mechanisms": "OAUTHBEARER",
        f"{prefix}.oauthbearer.sasl.jaas.config": f"{security}.OAuthBearerLoginModule required;",
        f"{prefix}.oauthbearer.sasl.server.callback.handler.class": f"{security}.OAuthBearerValidatorCallbackHandler",
        f"{prefix}.oauthbearer.connections.max.reauth.ms": 60_000,  # or the token's lifetime, if it is less
    }


def secret_file(folder: Path, secret: str) -> str:
    file = folder / f"secret-{secret.replace('/', '-')}"
    file.write_text(f"{secret}\n")
    return str(file)


def tls_config(certificates: Certificates) -> ClientTlsConfig:
    return ClientTlsConfig.model_validate({"ca": str(certificates.authority)})


def config(server: str, sasl: dict[str, Any], **more: Any) -> KafkaConfig:
    credentials = SaslConfig.model_validate({"mechanism": "OAUTHBEARER", **sasl})
    return kafka_config([server], single_topic(TOPIC), sasl=credentials, request_timeout=60.0, **more)


async def test_records_are_delivered_while_tokens_expire(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with oauth_broker(folder) as broker:
        oauth = {"token_url": broker.provider.token_url, "client_id": CLIENT, "scope": "kafka"}
        right = {"oauth": oauth | {"client_secret_file": secret_file(folder, SECRET)}}
        source, sent = RecordSource(), []
        caplog.set_level(logging.INFO)

        def connects() -> int:
            return sum("Authenticated via OAUTHBEARER" in record.getMessage() for record in caplog.records)

        async with no_leaks(caplog):
            async with open_sink(config(broker.address, right)) as sink:
                while connects() < 4:  # a producer has two connections, and the broker ends each when its token expires
                    batch = [*source.take(10)]
                    assert await sink.send(batch) == []
                    sent += [record.id for record in batch]
                    await asyncio.sleep(0.2)
            assert sorted(ids(await read_topic(broker.cluster, TOPIC))) == sorted(sent), "each record, once"

            wrong = {"oauth": oauth | {"client_secret_file": secret_file(folder, "wrong")}}
            error = await open_error(config(broker.address, wrong))
            rejected = f"no token: {oauth['token_url']}: HTTP 401: invalid_client: client authentication failed"
            assert error == f"{rejected}; check kafka.sasl.oauth"

            # The other way to get tokens: another program writes them to a file.
            file = folder / "token"
            provider = OidcTokenProvider(OauthConfig.model_validate(right["oauth"]), {})
            token = await provider.token()
            file.write_text(f"{token}\n")
            async with open_sink(config(broker.address, {"token_file": str(file)})) as sink:
                assert await sink.send([*source.take(10)]) == []
            file.write_text("garbage\n")
            error = await open_error(config(broker.address, {"token_file": str(file)}))
            assert error.startswith(f"{broker.address} rejects the token in {file}: check the scope")
            for secret in (SECRET, token[-40:]):
                assert secret not in caplog.text
            file.unlink()
            error = await open_error(config(broker.address, {"token_file": str(file)}))
            assert error == f"no token: {file}: No such file or directory; check kafka.sasl.token_file"


async def test_tokens_and_records_are_sent_over_tls_to_a_broker_with_a_trusted_certificate(folder: Path) -> None:
    async with oauth_broker(folder, token_seconds=3600) as broker:
        oauth = {"token_url": broker.provider.token_url, "client_id": CLIENT, "scope": "kafka"}
        sasl = {"oauth": oauth | {"client_secret_file": secret_file(folder, SECRET)}}
        source = RecordSource()
        async with open_sink(config(broker.tls_address, sasl, tls=tls_config(broker.certificates))) as sink:
            assert await sink.send(batch := [*source.take(10)]) == []
        assert sorted(ids(await read_topic(broker.cluster, TOPIC))) == sorted(record.id for record in batch)

        foreign = Certificates.make(folder / "foreign")
        error = await open_error(config(broker.tls_address, sasl, tls=tls_config(foreign)))
        assert "certificate" in error
        error = await open_error(config(broker.tls_address, sasl))
        assert "TLS" in error


async def test_a_token_is_shared_replaced_before_it_expires_and_kept_during_an_outage(folder: Path) -> None:
    now = 0.0
    async with OidcProvider(100) as endpoint:
        values = {
            "token_url": endpoint.token_url,
            "client_id": CLIENT,
            "client_secret_file": secret_file(folder, SECRET),
        }
        provider = OidcTokenProvider(OauthConfig.model_validate(values), {"logicalCluster": "lkc-1"}, lambda: now)
        first, second = await asyncio.gather(provider.token(), provider.token())
        assert first == second
        now = 79.0
        assert await provider.token() == first
        now = 81.0
        third = await provider.token()
        assert third != first
    now = 170.0
    assert await provider.token() == third, "it is valid until 181"
    now = 182.0
    with pytest.raises(TokenError, match=r"no token: .*Cannot connect"):
        await provider.token()
    assert provider.extensions() == {"logicalCluster": "lkc-1"}


async def test_a_client_certificate_authenticates_the_agent_without_a_secret(folder: Path) -> None:
    certificates = Certificates.make(folder / "certificates")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.authority)
    context.load_cert_chain(certificates.server)
    context.verify_mode = ssl.CERT_REQUIRED

    async def give_token(request: web.Request) -> web.Response:
        form = await request.post()
        assert "Authorization" not in request.headers
        values = (str(form[name]) for name in ("grant_type", "client_id", "scope"))
        return web.json_response({"access_token": ":".join(values)})

    app = web.Application()
    app.router.add_post("/token", give_token)
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=context)
    try:
        url = f"https://127.0.0.1:{server.port}/token"
        tls = {"ca": str(certificates.authority), "certificate": str(certificates.client)}
        values = {"token_url": url, "client_id": CLIENT, "scope": "kafka"}
        provider = OidcTokenProvider(OauthConfig.model_validate(values | {"tls": tls}), {})
        assert await provider.token() == "client_credentials:hv7:kafka"
        anonymous = OidcTokenProvider(OauthConfig.model_validate(values | {"tls": {"ca": tls["ca"]}}), {})
        with pytest.raises(TokenError, match=f"no token: {url}: "):
            await anonymous.token()
    finally:
        await server.close()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, b"{}", "no access_token"),
        (200, b"[1]", "no access_token"),
        (200, b'{"access_token": "a\\u0001b"}', "no access_token"),
        (400, b'{"error": "invalid_scope", "error_description": 5}', "^HTTP 400: invalid_scope$"),
        (302, b"<html>", "^HTTP 302$"),
    ],
)
def test_a_response_without_a_token_is_an_error(status: int, body: bytes, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        parse_token_response(status, body, 0.0)


def test_a_token_without_a_known_lifetime_is_used_once() -> None:
    for lifetime in ("", ', "expires_in": true', ', "expires_in": "soon"'):
        assert not parse_token_response(200, b'{"access_token": "t"' + lifetime.encode() + b"}", 0.0).is_fresh(0.0)
    assert parse_token_response(200, b'{"access_token": "t", "expires_in": "10"}', 0.0).is_fresh(7.9)


@pytest.mark.parametrize(
    ("sasl", "error"),
    [
        ({"mechanism": "OAUTHBEARER"}, "either oauth or token_file"),
        ({"mechanism": "OAUTHBEARER", "token_file": "/t", "username": "u"}, "takes no username"),
        ({"mechanism": "PLAIN", "username": "u"}, "PLAIN needs username and password_file"),
        (
            {"mechanism": "PLAIN", "username": "u", "password_file": "/p", "token_file": "/t"},
            "need mechanism OAUTHBEARER",
        ),
    ],
)
def test_credentials_of_another_mechanism_are_rejected(sasl: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        SaslConfig.model_validate(sasl)
