"""Access control of the endpoint: authentication, TLS, addresses, and reloads of the web config."""

import asyncio
import base64
import contextlib
import os
import ssl
import time
from pathlib import Path
from typing import Any

import aiohttp
import bcrypt
import pytest

from agent.cli.http_client import EndpointCredentials
from agent.http import basic_auth
from agent.http.handlers import HEADERS
from agent.http.server import is_loopback
from agent.http.web_config import EndpointSetupError
from tests.lab.endpoint import RunningEndpoint
from tests.lab.kafka_security import Certificates
from tests.lab.scripted_peer import TIMEOUT_SECONDS
from tests.lab.waiting import until

PASSWORD = "correct horse"
HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
USERS = {"basic_auth_users": {"alice": HASH}}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


def credentials(folder: Path, user: str = "alice", password: str = PASSWORD, **more: Any) -> EndpointCredentials:
    (folder / "password").write_text(password + "\n")
    return EndpointCredentials(user=user, password_file=folder / "password", **more)


def tls(certificates: Certificates, **more: Any) -> Any:
    pem = str(certificates.server)
    return {"tls_server_config": {"cert_file": pem, "key_file": pem, **more}}


def mutual(certificates: Certificates, **more: Any) -> Any:
    return tls(
        certificates,
        client_auth_type="RequireAndVerifyClientCert",
        client_ca_file=str(certificates.authority),
        **more,
    )


# --- Users ---


async def test_every_path_requires_a_user_and_its_password(folder: Path) -> None:
    async with RunningEndpoint(folder, USERS).open() as endpoint:
        for path in ("/", "/metrics", "/healthz", "/readyz", "/records", "/nowhere"):
            assert await endpoint.get(path) == 401
        for user, password in (("alice", "wrong"), ("bob", PASSWORD), ("", PASSWORD), ("alice", ""), ("alice", HASH)):
            header = base64.b64encode(f"{user}:{password}".encode()).decode()
            assert await endpoint.get(headers={"Authorization": f"Basic {header}"}) == 401
        for malformed in ("", "Basic", "Basic !", "Bearer x", f"Basic {PASSWORD}", "Basic " + "A" * 5000):
            assert await endpoint.get(headers={"Authorization": malformed}) == 401
        assert await endpoint.get(credentials=credentials(folder)) == 200
        assert await endpoint.get("/nowhere", credentials=credentials(folder)) == 404


async def test_a_401_has_a_challenge_and_the_headers_of_every_response(folder: Path) -> None:
    async with (
        RunningEndpoint(folder, USERS).open() as endpoint,
        aiohttp.ClientSession() as session,
        session.get(endpoint.url) as response,
    ):
        assert response.headers["WWW-Authenticate"].startswith('Basic realm="qmp-agent"')
        assert HEADERS.items() <= dict(response.headers).items()


async def test_a_valid_password_is_hashed_once_and_an_invalid_one_each_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[bytes] = []
    real = bcrypt.checkpw

    def check(password: bytes, text: bytes) -> bool:
        hashed.append(text)
        return real(password, text)

    monkeypatch.setattr(bcrypt, "checkpw", check)
    users = basic_auth.BasicAuthUsers({"alice": HASH})

    async def authenticate(user: str, password: str) -> bool:
        return await users.authenticate("Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())

    assert await authenticate("alice", PASSWORD)
    assert await authenticate("alice", PASSWORD)
    assert hashed == [HASH.encode()]
    for _ in range(2):
        assert not await authenticate("alice", "wrong")
    assert not await authenticate("bob", PASSWORD)
    assert len(hashed) == 4
    # An unknown user is compared with a hash of the same cost, so that the response time reveals nothing.
    assert hashed[-1] != HASH.encode()
    assert hashed[-1].split(b"$")[2] == HASH.encode().split(b"$")[2]
    # bcrypt ignores everything after the 72nd byte, so longer passwords are refused.
    long = basic_auth.BasicAuthUsers({"alice": bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()})
    basic = [b"alice:" + b"x" * n for n in (72, 73)]
    assert [await long.authenticate("Basic " + base64.b64encode(pair).decode()) for pair in basic] == [True, False]


async def test_password_checks_use_one_thread_and_excess_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once = []
    running = 0

    def slow(_password: bytes, _hash: bytes) -> bool:
        nonlocal running
        running += 1
        at_once.append(running)
        time.sleep(0.002)  # blocks its thread, as bcrypt does
        running -= 1
        return False

    monkeypatch.setattr(bcrypt, "checkpw", slow)
    users = basic_auth.BasicAuthUsers({"alice": HASH})
    attempts = [users.authenticate("Basic " + base64.b64encode(b"alice:%d" % n).decode()) for n in range(100)]
    answers = await asyncio.gather(*attempts, return_exceptions=True)
    assert set(at_once) == {1}
    assert answers.count(False) == basic_auth.MAX_WAITING_CHECKS
    assert (
        sum(isinstance(answer, basic_auth.TooManyPendingChecksError) for answer in answers)
        == 100 - basic_auth.MAX_WAITING_CHECKS
    )


# --- TLS ---


async def test_with_a_certificate_the_endpoint_accepts_only_tls(folder: Path, certificates: Certificates) -> None:
    async with RunningEndpoint(folder, tls(certificates)).open() as endpoint:
        assert endpoint.url.startswith("https://")
        assert await endpoint.get(credentials=EndpointCredentials(ca=certificates.authority)) == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await endpoint.get()
        with pytest.raises(aiohttp.ClientError):
            async with aiohttp.ClientSession() as session:
                await session.get(endpoint.url.replace("https", "http"))


async def test_required_client_certificates_refuse_none_and_a_foreign_one(
    folder: Path, certificates: Certificates
) -> None:
    foreign = Certificates.make(folder / "foreign")
    async with RunningEndpoint(folder, mutual(certificates)).open() as endpoint:
        assert await endpoint.get(credentials=EndpointCredentials(certificates.authority, certificates.client)) == 200
        for certificate in (None, foreign.client):
            with pytest.raises((aiohttp.ClientError, ConnectionError)):
                await endpoint.get(credentials=EndpointCredentials(certificates.authority, certificate))


@pytest.mark.parametrize(("name", "status"), [("localhost", 200), ("127.0.0.1", 200), ("other.example", 403)])
async def test_a_client_certificate_needs_an_allowed_name(
    folder: Path, certificates: Certificates, name: str, status: int
) -> None:
    async with RunningEndpoint(folder, mutual(certificates, client_allowed_sans=[name])).open() as endpoint:
        assert (
            await endpoint.get(credentials=EndpointCredentials(certificates.authority, certificates.client)) == status
        )


async def test_a_tls_version_below_the_minimum_is_refused(folder: Path, certificates: Certificates) -> None:
    async with RunningEndpoint(folder, tls(certificates, min_version="TLS13")).open() as endpoint:
        context = ssl.create_default_context(cafile=certificates.authority)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await endpoint.get(ssl=context)
        assert await endpoint.get(credentials=EndpointCredentials(ca=certificates.authority)) == 200


# --- The web config ---


async def test_a_changed_web_config_is_reloaded_and_an_invalid_one_changes_nothing(
    folder: Path, certificates: Certificates
) -> None:
    async with RunningEndpoint(folder, USERS).open() as endpoint:
        alice = credentials(folder)
        assert await endpoint.get(credentials=alice) == 200
        endpoint.write("tls_server_config: [")
        await until(lambda: endpoint.endpoint.config_error, TIMEOUT_SECONDS)
        assert endpoint.endpoint.config_error is not None
        assert "the previous web config stays in use" in endpoint.endpoint.config_error
        assert (await endpoint.get(credentials=alice), await endpoint.get()) == (200, 401)
        endpoint.write({})
        await endpoint.wait_for_status(200)
        assert not endpoint.endpoint.config_error
        endpoint.write(tls(certificates) | USERS)
        endpoint.url = endpoint.url.replace("http:", "https:")
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    assert await endpoint.get(credentials=credentials(folder, ca=certificates.authority)) == 200
                    break
        assert await endpoint.get(credentials=EndpointCredentials(ca=certificates.authority)) == 401


async def test_a_web_config_is_loaded_once_the_certificate_that_it_names_exists(folder: Path) -> None:
    certificates = Certificates.make(folder / "new")
    late = folder / "late.pem"
    async with RunningEndpoint(folder, USERS).open() as endpoint:
        endpoint.write({"tls_server_config": {"cert_file": "late.pem", "key_file": "late.pem"}})
        await until(lambda: endpoint.endpoint.config_error, TIMEOUT_SECONDS)
        assert str(late) in (endpoint.endpoint.config_error or "")
        late.write_bytes(certificates.server.read_bytes())
        await until(lambda: endpoint.endpoint.config_error is None, TIMEOUT_SECONDS)
        endpoint.url = endpoint.url.replace("http:", "https:")
        assert await endpoint.get(credentials=EndpointCredentials(ca=certificates.authority)) == 200


async def test_a_renewed_certificate_is_used_for_new_connections(folder: Path) -> None:
    old, new = Certificates.make(folder / "old"), Certificates.make(folder / "new")
    pem = folder / "server.pem"
    pem.write_bytes(old.server.read_bytes())
    config = {"tls_server_config": {"cert_file": "server.pem", "key_file": "server.pem"}}  # beside the file
    async with RunningEndpoint(folder, config).open() as endpoint:
        assert await endpoint.get(credentials=EndpointCredentials(ca=old.authority)) == 200
        pem.write_bytes(new.server.read_bytes())
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                with contextlib.suppress(aiohttp.ClientConnectorCertificateError):
                    assert await endpoint.get(credentials=EndpointCredentials(ca=new.authority)) == 200
                    break


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"tls_server_config": {"cert_file": "none.pem", "key_file": "none.pem"}}, "No such file"),
        ({"tls_server_config": {"cert_file": "web.yml", "key_file": "web.yml"}}, "TLS setup failed"),
        ({"tls_server_config": {"cert_file": "x"}}, "key_file: is required"),
        ({"tls_server_config": {"cert": "x"}}, "did you mean cert_file"),
        (
            {"tls_server_config": {"cert_file": "x", "key_file": "x", "client_auth_type": "RequireAnyClientCert"}},
            "client_auth_type: should be",
        ),
        ({"tls_server_config": {"cert_file": "x", "key_file": "x", "client_ca_file": "x"}}, "needs a client_auth_type"),
        ({"tls_server_config": {"cert_file": "x", "key_file": "x", "client_allowed_sans": ["x"]}}, "needs"),
        ({"tls_server_config": {"cert_file": "x", "key_file": "x", "curve_preferences": ["X25519"]}}, "unknown key"),
        ({"basic_auth_users": {"alice": "plain-secret"}}, "bcrypt hash"),
        ({"basic_auth_users": {"alice": HASH.replace("$04$", "$31$")}}, "cost 4 to 16"),
        ({"http_server_config": {"headers": {"X-Frame-Options": "a\r\nB: c"}}}, "printable"),
        ({"http_server_config": {"headers": {"Set-Cookie": "x"}}}, "should be"),
        ("- x", "should be a mapping"),
    ],
)
async def test_an_invalid_web_config_fails_the_start_without_leaking_secrets(
    folder: Path, config: Any, why: str
) -> None:
    with pytest.raises(EndpointSetupError, match=why) as raised:
        async with RunningEndpoint(folder, config).open():
            pass
    assert "plain-secret" not in str(raised.value)
    assert "$04$" not in str(raised.value)
    assert "$31$" not in str(raised.value)


async def test_headers_and_the_rate_limit_come_from_the_web_config(folder: Path) -> None:
    headers = {"X-Frame-Options": "sameorigin", "Cache-Control": ""}
    config = {"http_server_config": {"headers": headers}, "rate_limit": {"interval": "1h", "burst": 2}}
    async with RunningEndpoint(folder, config).open() as endpoint, aiohttp.ClientSession() as session:
        async with session.get(endpoint.url) as response:
            assert response.headers["X-Frame-Options"] == "sameorigin"
            assert "Cache-Control" not in response.headers
        assert [await endpoint.get() for _ in range(2)] == [200, 429]


# --- Addresses ---


@pytest.mark.parametrize(
    ("listen", "loopback"),
    [
        ("127.0.0.1:9179", True),
        ("127.8.8.8:9179", True),
        ("[::1]:9179", True),
        ("localhost:9179", True),
        ("0.0.0.0:9179", False),
        ("[::]:9179", False),
        ("192.0.2.1:9179", False),
        ("hv7.example:9179", False),
    ],
)
def test_loopback_addresses_are_recognized(listen: str, loopback: bool) -> None:  # noqa: FBT001
    assert is_loopback(listen) is loopback


async def test_an_open_address_without_authentication_logs_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with RunningEndpoint(folder, listen="0.0.0.0:0").open():
        assert "every client that can connect can read all data" in caplog.text
    caplog.clear()
    async with RunningEndpoint(folder, USERS, listen="0.0.0.0:0").open():
        assert "every client" not in caplog.text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:1", 200),
        ("[::1]:9179", 200),
        ("10.0.0.5", 200),
        ("evil.example", 421),
        ("evil.example:9179", 421),
        ("localhost.evil.example", 421),
        ("", 421),
    ],
)
async def test_a_foreign_host_name_is_refused_against_dns_rebinding(folder: Path, host: str, status: int) -> None:
    async with RunningEndpoint(folder).open() as endpoint:
        assert await endpoint.get(headers={"Host": host}) == status


async def test_an_unavailable_address_is_an_error_that_says_what_to_do(folder: Path) -> None:
    async with RunningEndpoint(folder).open() as endpoint:
        for listen, why in ((f"127.0.0.1:{endpoint.port}", os.strerror(98)), ("192.0.2.1:1", os.strerror(99))):
            with pytest.raises(EndpointSetupError, match=f"{why}; choose another web.listen_address"):
                async with RunningEndpoint(folder, listen=listen).open():
                    pass
