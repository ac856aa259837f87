"""The endpoint's door: who may come in, what is spoken there, where it listens, and that it follows its file."""

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

from agent.cli.demo.guest import until
from agent.cli.http_client import EndpointCredentials
from agent.http import basic_auth
from agent.http import server as module
from agent.http.handlers import HEADERS
from agent.http.server import EndpointError, is_loopback
from tests.lab.endpoint import RunningEndpoint
from tests.lab.kafka_security import Certificates
from tests.lab.scripted_peer import TIMEOUT_SECONDS

PASSWORD = "correct horse"
HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
USERS = {"basic_auth_users": {"alice": HASH}}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


def visitor(folder: Path, user: str = "alice", password: str = PASSWORD, **more: Any) -> EndpointCredentials:
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


async def test_only_a_user_with_its_password_is_let_in_wherever_it_asks(folder: Path) -> None:
    async with RunningEndpoint(folder, USERS).open() as door:
        for path in ("/", "/metrics", "/healthz", "/readyz", "/records", "/nowhere"):
            assert await door.get(path) == 401
        for user, password in (("alice", "wrong"), ("bob", PASSWORD), ("", PASSWORD), ("alice", ""), ("alice", HASH)):
            header = base64.b64encode(f"{user}:{password}".encode()).decode()
            assert await door.get(headers={"Authorization": f"Basic {header}"}) == 401
        for malformed in ("", "Basic", "Basic !", "Bearer x", f"Basic {PASSWORD}", "Basic " + "A" * 5000):
            assert await door.get(headers={"Authorization": malformed}) == 401
        assert await door.get(visitor=visitor(folder)) == 200
        assert await door.get("/nowhere", visitor=visitor(folder)) == 404


async def test_who_is_asked_is_told_how_and_gets_the_headers_of_every_answer(folder: Path) -> None:
    async with (
        RunningEndpoint(folder, USERS).open() as door,
        aiohttp.ClientSession() as session,
        session.get(door.url) as response,
    ):
        assert response.headers["WWW-Authenticate"].startswith('Basic realm="qmp-agent"')
        assert HEADERS.items() <= dict(response.headers).items()


async def test_a_password_that_was_good_is_not_hashed_again_and_a_bad_one_always_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[bytes] = []
    real = bcrypt.checkpw

    def check(password: bytes, text: bytes) -> bool:
        hashed.append(text)
        return real(password, text)

    monkeypatch.setattr(bcrypt, "checkpw", check)
    known = basic_auth.BasicAuthUsers({"alice": HASH})

    async def admit(user: str, password: str) -> bool:
        return await known.admit("Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())

    assert await admit("alice", PASSWORD)
    assert await admit("alice", PASSWORD)
    assert hashed == [HASH.encode()]
    for _ in range(2):
        assert not await admit("alice", "wrong")
    assert not await admit("bob", PASSWORD)
    assert len(hashed) == 4
    # One who is not there is compared with a hash of the same cost, so that the time tells nothing.
    assert hashed[-1] != HASH.encode()
    assert hashed[-1].split(b"$")[2] == HASH.encode().split(b"$")[2]
    # bcrypt would take a password that begins like another for the same, from the 73rd byte on.
    long = basic_auth.BasicAuthUsers({"alice": bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()})
    basic = [b"alice:" + b"x" * n for n in (72, 73)]
    assert [await long.admit("Basic " + base64.b64encode(one).decode()) for one in basic] == [True, False]


async def test_guessing_takes_one_thread_and_more_guesses_than_can_wait_are_turned_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once = []
    running = 0

    def slow(_password: bytes, _hash: bytes) -> bool:
        nonlocal running
        running += 1
        at_once.append(running)
        time.sleep(0.002)  # as bcrypt does, in its thread
        running -= 1
        return False

    monkeypatch.setattr(bcrypt, "checkpw", slow)
    known = basic_auth.BasicAuthUsers({"alice": HASH})
    guesses = [known.admit("Basic " + base64.b64encode(b"alice:%d" % n).decode()) for n in range(100)]
    answers = await asyncio.gather(*guesses, return_exceptions=True)
    assert set(at_once) == {1}
    assert answers.count(False) == basic_auth.MAX_WAITING
    assert sum(isinstance(answer, basic_auth.TooManyGuessesError) for answer in answers) == 100 - basic_auth.MAX_WAITING


# --- TLS ---


async def test_with_a_certificate_the_endpoint_speaks_tls_and_nothing_else(
    folder: Path, certificates: Certificates
) -> None:
    async with RunningEndpoint(folder, tls(certificates)).open() as door:
        assert door.url.startswith("https://")
        assert await door.get(visitor=EndpointCredentials(ca=certificates.authority)) == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await door.get()
        with pytest.raises(aiohttp.ClientError):
            async with aiohttp.ClientSession() as session:
                await session.get(door.url.replace("https", "http"))


async def test_where_clients_have_to_show_a_certificate_none_and_a_foreign_one_are_refused(
    folder: Path, certificates: Certificates
) -> None:
    foreign = Certificates.make(folder / "foreign")
    async with RunningEndpoint(folder, mutual(certificates)).open() as door:
        assert await door.get(visitor=EndpointCredentials(certificates.authority, certificates.client)) == 200
        for shown in (None, foreign.client):
            with pytest.raises((aiohttp.ClientError, ConnectionError)):
                await door.get(visitor=EndpointCredentials(certificates.authority, shown))


@pytest.mark.parametrize(("name", "status"), [("localhost", 200), ("127.0.0.1", 200), ("other.example", 403)])
async def test_a_clients_certificate_may_have_to_have_a_name(
    folder: Path, certificates: Certificates, name: str, status: int
) -> None:
    async with RunningEndpoint(folder, mutual(certificates, client_allowed_sans=[name])).open() as door:
        assert await door.get(visitor=EndpointCredentials(certificates.authority, certificates.client)) == status


async def test_a_version_that_is_too_old_is_not_spoken(folder: Path, certificates: Certificates) -> None:
    async with RunningEndpoint(folder, tls(certificates, min_version="TLS13")).open() as door:
        context = ssl.create_default_context(cafile=certificates.authority)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await door.get(ssl=context)
        assert await door.get(visitor=EndpointCredentials(ca=certificates.authority)) == 200


# --- The file ---


async def test_a_changed_file_is_taken_and_a_bad_one_changes_nothing(folder: Path, certificates: Certificates) -> None:
    async with RunningEndpoint(folder, USERS).open() as door:
        alice = visitor(folder)
        assert await door.get(visitor=alice) == 200
        door.write("tls_server_config: [")
        await until(lambda: door.endpoint.config_error, TIMEOUT_SECONDS)
        assert door.endpoint.config_error is not None
        assert "the one before it stays" in door.endpoint.config_error
        assert (await door.get(visitor=alice), await door.get()) == (200, 401)
        door.write({})
        await door.until(200)
        assert not door.endpoint.config_error
        door.write(tls(certificates) | USERS)
        door.url = door.url.replace("http:", "https:")
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    assert await door.get(visitor=visitor(folder, ca=certificates.authority)) == 200
                    break
        assert await door.get(visitor=EndpointCredentials(ca=certificates.authority)) == 401


async def test_a_renewed_certificate_is_shown_to_those_who_come_next(folder: Path) -> None:
    old, new = Certificates.make(folder / "old"), Certificates.make(folder / "new")
    pem = folder / "server.pem"
    pem.write_bytes(old.server.read_bytes())
    config = {"tls_server_config": {"cert_file": "server.pem", "key_file": "server.pem"}}  # beside the file
    async with RunningEndpoint(folder, config).open() as door:
        assert await door.get(visitor=EndpointCredentials(ca=old.authority)) == 200
        pem.write_bytes(new.server.read_bytes())
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                with contextlib.suppress(aiohttp.ClientConnectorCertificateError):
                    assert await door.get(visitor=EndpointCredentials(ca=new.authority)) == 200
                    break


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"tls_server_config": {"cert_file": "none.pem", "key_file": "none.pem"}}, "No such file"),
        ({"tls_server_config": {"cert_file": "web.yml", "key_file": "web.yml"}}, "TLS cannot be had"),
        ({"tls_server_config": {"cert_file": "x"}}, "key_file: is missing"),
        ({"tls_server_config": {"cert": "x"}}, "did you mean cert_file"),
        (
            {"tls_server_config": {"cert_file": "x", "key_file": "x", "client_auth_type": "RequireAnyClientCert"}},
            "client_auth_type: should be",
        ),
        ({"tls_server_config": {"cert_file": "x", "key_file": "x", "client_ca_file": "x"}}, "go together"),
        ({"tls_server_config": {"cert_file": "x", "key_file": "x", "client_allowed_sans": ["x"]}}, "needs"),
        ({"tls_server_config": {"cert_file": "x", "key_file": "x", "curve_preferences": ["X25519"]}}, "unknown key"),
        ({"basic_auth_users": {"alice": "plain-secret"}}, "bcrypt hash"),
        ({"basic_auth_users": {"alice": HASH.replace("$04$", "$31$")}}, "cost from 4 to 16"),
        ({"http_server_config": {"headers": {"X-Frame-Options": "a\r\nB: c"}}}, "printable"),
        ({"http_server_config": {"headers": {"Set-Cookie": "x"}}}, "should be"),
        ("- x", "keys and values"),
    ],
)
async def test_a_file_that_cannot_be_used_stops_the_start_and_says_why_without_what_is_secret_in_it(
    folder: Path, config: Any, why: str
) -> None:
    with pytest.raises(EndpointError, match=why) as raised:
        async with RunningEndpoint(folder, config).open():
            pass
    assert "plain-secret" not in str(raised.value)
    assert "$04$" not in str(raised.value)
    assert "$31$" not in str(raised.value)


async def test_headers_and_a_limit_of_requests_are_taken_from_the_file(folder: Path) -> None:
    headers = {"X-Frame-Options": "sameorigin", "Cache-Control": ""}
    config = {"http_server_config": {"headers": headers}, "rate_limit": {"interval": "1h", "burst": 2}}
    async with RunningEndpoint(folder, config).open() as door, aiohttp.ClientSession() as session:
        async with session.get(door.url) as response:
            assert response.headers["X-Frame-Options"] == "sameorigin"
            assert "Cache-Control" not in response.headers
        assert [await door.get() for _ in range(2)] == [200, 429]


# --- Where it listens ---


@pytest.mark.parametrize(
    ("listen", "only_here"),
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
def test_an_address_is_known_for_one_that_this_host_alone_reaches(listen: str, only_here: bool) -> None:  # noqa: FBT001
    assert is_loopback(listen) is only_here


async def test_one_that_is_open_to_all_is_warned_of_and_one_that_asks_is_not(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with RunningEndpoint(folder, listen="0.0.0.0:0").open():
        assert "is open to all who reach it" in caplog.text
    caplog.clear()
    async with RunningEndpoint(folder, USERS, listen="0.0.0.0:0").open():
        assert "open to all" not in caplog.text


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
async def test_a_name_that_another_site_made_lead_here_is_not_answered(folder: Path, host: str, status: int) -> None:
    async with RunningEndpoint(folder).open() as door:
        assert await door.get(headers={"Host": host}) == status


async def test_an_address_that_is_taken_or_not_ours_is_said_with_its_cure(folder: Path) -> None:
    async with RunningEndpoint(folder).open() as door:
        for listen, why in ((f"127.0.0.1:{door.port}", os.strerror(98)), ("192.0.2.1:1", os.strerror(99))):
            with pytest.raises(EndpointError, match=f"{why}; choose another web.listen_address"):
                async with RunningEndpoint(folder, listen=listen).open():
                    pass
