"""QEMU connects to us: who is let in, who is not, and what is left when either side goes."""

import asyncio
import contextlib
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.config.model import AllowConfig
from agent.monitors import ListenConfig, ListenDiscoverer, ListenTlsConfig
from agent.session.api import MonitorState
from tests.lab.fixtures import StartGuest
from tests.lab.kafka_security import Certificates
from tests.lab.machine import free_port
from tests.lab.recording_observer import RecordingObserver, quick_settings, supervised
from tests.lab.scripted_peer import TIMEOUT_SECONDS


@contextlib.asynccontextmanager
async def listening(observer: RecordingObserver, way: ListenDiscoverer) -> AsyncIterator[None]:
    """A fleet that watches whoever calls, for as long as the block runs."""
    async with supervised(observer, settings=quick_settings(greeting_seconds=0.3, reply_seconds=5)) as fleet:
        task = asyncio.create_task(way.run(fleet))
        try:
            await until_it_listens(way)
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


async def until_it_listens(way: ListenDiscoverer) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await call(way)
                writer.close()
                return
            await asyncio.sleep(0.01)


async def call(way: ListenDiscoverer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if way.address.startswith("tcp:"):
        host, _, port = way.address.removeprefix("tcp:").rpartition(":")
        return await asyncio.open_connection(host, int(port))
    return await asyncio.open_unix_connection(way.address)


async def hung_up(way: ListenDiscoverer) -> float:
    """Call, say nothing, and return after how many seconds the agent hangs up."""
    begin = time.monotonic()
    reader, writer = await call(way)
    async with asyncio.timeout(TIMEOUT_SECONDS):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
    return time.monotonic() - begin


def calling(way: ListenDiscoverer) -> list[str]:
    return ["-chardev", f"socket,id=mon,path={way.address},reconnect=1", "-mon", "chardev=mon,mode=control"]


async def test_a_qemu_that_calls_is_watched_and_known_by_what_it_says(start_guest: StartGuest, folder: Path) -> None:
    observer, way = RecordingObserver(), ListenDiscoverer(ListenConfig(listen=str(folder / "mon")))
    async with listening(observer, way):
        guest = await start_guest("web", extra=calling(way))
        await observer.wait_for_polls()
        (attached,) = observer.records("vm.attached")
        assert guest.process is not None
        assert (attached.vm.uuid, attached.vm.name) == (guest.uuid, "web")
        assert attached.vm.monitor == f"{way.address} pid {guest.process.pid}"
        await guest.command("stop")
        await observer.wait_until(lambda: observer.records("event.stop"))
        await guest.stop()
        await observer.wait_until(lambda: observer.records("vm.gone"))
        await observer.wait_until(
            lambda: any(m.name == attached.vm.monitor for m in observer.calls_of("on_monitor_removed"))
        )
    assert not (folder / "mon").exists()


async def test_qemus_that_were_there_before_call_again_when_the_agent_is_back(
    start_guest: StartGuest, folder: Path
) -> None:
    way = ListenDiscoverer(ListenConfig(listen=str(folder / "mon")))
    for name in ("a", "b", "c"):
        await start_guest(name, extra=calling(way))

    async def all_three(observer: RecordingObserver) -> None:
        await observer.wait_until(lambda: len(observer.records("vm.attached")) == 3)

    for _ in range(2):
        observer = RecordingObserver()
        async with listening(observer, way):
            begin = time.monotonic()
            await all_three(observer)
            assert time.monotonic() - begin < 2.0
        assert observer.types("vm").count("vm.detached") == 3


async def test_who_calls_and_does_not_greet_is_hung_up_on_in_time_and_no_record_is_made_of_it(folder: Path) -> None:
    observer, way = RecordingObserver(), ListenDiscoverer(ListenConfig(listen=str(folder / "mon")))
    async with listening(observer, way):
        assert 0.3 <= await hung_up(way) < 2.0
        await observer.wait_until(lambda: len(observer.calls_of("on_monitor_removed")) == 2)
    assert observer.states()[-1] is MonitorState.GONE
    assert observer.types() == []


async def test_who_is_not_among_the_users_is_refused_before_a_byte_is_read(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    observer, way = (
        RecordingObserver(),
        ListenDiscoverer(ListenConfig(listen=str(folder / "mon"), users=["12345", "nobody-of-that-name"])),
    )
    async with listening(observer, way):
        assert await hung_up(way) < 0.3
        assert set(observer.calls_of("on_connection_refused")) == {(way.address, "user")}
    assert observer.calls_of("on_status") == []
    assert "no user or group nobody-of-that-name" in caplog.text
    assert caplog.text.count("is not let in") == 1, "told once for each user"


async def test_a_member_of_the_groups_is_let_in(folder: Path) -> None:
    way = ListenDiscoverer(ListenConfig(listen=str(folder / "mon"), users=[], groups=[str(os.getgid())]))
    observer = RecordingObserver()
    async with listening(observer, way):
        await hung_up(way)
    assert observer.calls_of("on_connection_refused") == []


async def test_one_process_gets_four_connections_and_all_get_as_many_as_there_are(folder: Path) -> None:
    observer, way = RecordingObserver(), ListenDiscoverer(ListenConfig(listen=str(folder / "mon")))
    async with listening(observer, way):
        await asyncio.gather(*(hung_up(way) for _ in range(6)))
        assert observer.calls_of("on_connection_refused") == [(way.address, "process")] * len(
            observer.calls_of("on_connection_refused")
        )
        assert 2 <= len(observer.calls_of("on_connection_refused")) <= 3
        await hung_up(way)
        assert len(observer.calls_of("on_monitor_removed")) >= 4, "those that ended make place"
    observer, way = RecordingObserver(), ListenDiscoverer(ListenConfig(listen=str(folder / "mon"), max_connections=2))
    async with listening(observer, way):
        await asyncio.gather(*(hung_up(way) for _ in range(4)))
    assert (way.address, "limit") in observer.calls_of("on_connection_refused")


async def test_a_socket_left_behind_is_replaced_and_one_in_use_is_not(folder: Path) -> None:
    path = folder / "mon"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    ListenDiscoverer(ListenConfig(listen=str(path))).bind().close()
    with socket.socket(socket.AF_UNIX) as used:
        path.unlink()
        used.bind(str(path))
        used.listen()
        with pytest.raises(OSError, match="another process listens there"):
            ListenDiscoverer(ListenConfig(listen=str(path))).bind()
    assert path.is_socket()


async def test_a_socket_that_somebody_removes_is_made_anew(
    start_guest: StartGuest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.monitors.listen.CHECK_SECONDS", 0.05)
    observer, way = RecordingObserver(), ListenDiscoverer(ListenConfig(listen=str(folder / "mon")))
    async with listening(observer, way):
        (folder / "mon").unlink()
        await until_it_listens(way)
        await start_guest(extra=calling(way))
        await observer.wait_for_polls()


async def test_an_address_that_cannot_be_had_is_told_once_and_tried_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agent.monitors.listen.CHECK_SECONDS", 0.02)
    way = ListenDiscoverer(ListenConfig(listen=str(folder / "none" / "mon")))

    async def appear() -> None:
        await asyncio.sleep(0.2)
        Path(way.address).parent.mkdir()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(appear())
        async with listening(RecordingObserver(), way):
            pass
    assert caplog.text.count("cannot listen on") == 1


@pytest.fixture
def tls(folder: Path) -> ListenTlsConfig:
    made = Certificates.make(folder)
    shutil.copy(made.authority, folder / "ca-cert.pem")
    for kind in ("key", "crt"):
        shutil.copy(folder / f"client.{kind}", folder / f"client-{'key' if kind == 'key' else 'cert'}.pem")
    return ListenTlsConfig(ca=str(made.authority), certificate=str(made.server))


def calling_over_tls(way: ListenDiscoverer, folder: Path) -> list[str]:
    host, _, port = way.address.removeprefix("tcp:").rpartition(":")
    return [
        *("-object", f"tls-creds-x509,id=tls,dir={folder},endpoint=client,verify-peer=on"),
        *("-chardev", f"socket,id=mon,host={host},port={port},reconnect=1,tls-creds=tls"),
        *("-mon", "chardev=mon,mode=control"),
    ]


async def test_over_tcp_a_qemu_with_a_certificate_is_watched_and_nobody_without_one(
    start_guest: StartGuest, folder: Path, tls: ListenTlsConfig
) -> None:
    way = ListenDiscoverer(ListenConfig(listen=f"tcp:127.0.0.1:{free_port()}", tls=tls))
    observer = RecordingObserver()
    async with listening(observer, way):
        assert await hung_up(way) < TIMEOUT_SECONDS
        guest = await start_guest(extra=calling_over_tls(way, folder))
        await observer.wait_for_polls()
        (attached,) = observer.records("vm.attached")
        assert attached.vm.uuid == guest.uuid
        assert attached.vm.monitor.startswith(f"{way.address} from 127.0.0.1:")


async def test_a_certificate_of_another_authority_is_not_let_in(
    start_guest: StartGuest, folder: Path, tls: ListenTlsConfig
) -> None:
    (folder / "other").mkdir()
    other = Certificates.make(folder / "other")
    way = ListenDiscoverer(
        ListenConfig(
            listen=f"tcp:127.0.0.1:{free_port()}",
            tls=ListenTlsConfig(ca=str(other.authority), certificate=tls.certificate),
        )
    )
    observer = RecordingObserver()
    async with listening(observer, way):
        await start_guest(extra=calling_over_tls(way, folder))
        await observer.wait_until(lambda: sum(state is MonitorState.GONE for state in observer.states()) >= 3)
    assert observer.types() == []


def test_a_secrets_folder_that_is_not_given_keeps_it_from_listening_and_no_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    tls = ListenTlsConfig(ca="${CREDENTIALS_DIRECTORY}/ca.pem", certificate=str(folder / "agent.pem"))
    way = ListenConfig(listen=f"tcp:127.0.0.1:{free_port()}", tls=tls).build(AllowConfig())
    with pytest.raises(OSError, match="LoadCredential="):  # upon which it is tried again, as any address is
        way.bind()
