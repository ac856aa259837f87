"""Monitors that connect to the agent: authorisation, limits, and removal of the socket file."""

import asyncio
import contextlib
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.config.model import AllowedQemuChangesConfig
from agent.monitors import ListenConfig, ListenDiscoverer, ListenTlsConfig
from agent.session.shared_types import MonitorState
from tests.lab.background import in_background
from tests.lab.fixtures import StartGuest
from tests.lab.kafka_security import Certificates
from tests.lab.machine import free_port
from tests.lab.recording_observer import RecordingObserver, quick_context, supervised
from tests.lab.scripted_peer import TIMEOUT_SECONDS
from tests.lab.simulated_clock import longest_wait_seconds
from tests.lab.waiting import until


@contextlib.asynccontextmanager
async def listening(observer: RecordingObserver, discoverer: ListenDiscoverer) -> AsyncIterator[None]:
    """Accept connections of monitors and supervise these monitors while the `with` block runs."""
    async with supervised(observer, context=quick_context()) as fleet, in_background(discoverer.run(fleet)):
        await wait_until_listening(discoverer)
        yield


async def wait_until_listening(discoverer: ListenDiscoverer) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await connect_to(discoverer)
                writer.close()
                return
            await asyncio.sleep(0.01)


async def connect_to(discoverer: ListenDiscoverer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if discoverer.address.startswith("tcp:"):
        host, _, port = discoverer.address.removeprefix("tcp:").rpartition(":")
        return await asyncio.open_connection(host, int(port))
    return await asyncio.open_unix_connection(discoverer.address)


async def wait_until_closed(discoverer: ListenDiscoverer, sent: bytes = b"") -> None:
    """Connect, send some bytes, and wait until the agent closes the connection."""
    reader, writer = await connect_to(discoverer)
    writer.write(sent)
    async with asyncio.timeout(longest_wait_seconds()):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()


def qemu_arguments(discoverer: ListenDiscoverer) -> list[str]:
    return ["-chardev", f"socket,id=mon,path={discoverer.address},reconnect=1", "-mon", "chardev=mon,mode=control"]


async def test_a_connecting_qemu_is_polled_under_its_own_name_and_uuid(start_guest: StartGuest, folder: Path) -> None:
    observer, discoverer = RecordingObserver(), ListenDiscoverer(ListenConfig(listen=str(folder / "mon")))
    async with listening(observer, discoverer):
        guest = await start_guest("web", extra=qemu_arguments(discoverer))
        await observer.wait_for_polls()
        (attached,) = observer.records("vm.attached")
        assert guest.process is not None
        assert (attached.vm.uuid, attached.vm.name) == (guest.uuid, "web")
        assert attached.vm.monitor == f"{discoverer.address} pid {guest.process.pid}"
        await guest.command("stop")
        await observer.wait_until(lambda: observer.records("event.stop"))
        await guest.stop()
        await observer.wait_until(lambda: observer.records("vm.gone"))
        await observer.wait_until(
            lambda: any(m.name == attached.vm.monitor for m in observer.calls_of("on_monitor_removed"))
        )
    assert not (folder / "mon").exists()


async def test_qemus_reconnect_after_a_restart_of_the_agent(start_guest: StartGuest, folder: Path) -> None:
    discoverer = ListenDiscoverer(ListenConfig(listen=str(folder / "mon")))
    for name in ("a", "b", "c"):
        await start_guest(name, extra=qemu_arguments(discoverer))

    async def wait_for_three_vms(observer: RecordingObserver) -> None:
        await observer.wait_until(lambda: len(observer.records("vm.attached")) == 3)

    for _ in range(2):
        observer = RecordingObserver()
        async with listening(observer, discoverer):
            await wait_for_three_vms(observer)
        assert observer.types("vm").count("vm.detached") == 3


async def uuid_of_new_qemu(discoverer: ListenDiscoverer, observer: RecordingObserver, *options: str) -> str:
    """Start a QEMU without -uuid, wait until it is attached, kill it, and return its UUID in the records."""
    attached = len(observer.records("vm.attached"))
    process = await asyncio.create_subprocess_exec(
        *(
            "setpriv",
            "--pdeathsig",
            "KILL",
            "qemu-system-x86_64",
            "-machine",
            "none",
            "-nodefaults",
            "-display",
            "none",
        ),
        *(*options, *qemu_arguments(discoverer)),
    )
    try:
        await observer.wait_until(lambda: len(observer.records("vm.attached")) > attached)
    finally:
        process.kill()
        await process.wait()
    await observer.wait_until(lambda: len(observer.records("vm.gone")) > attached)
    return observer.records("vm.attached")[-1].vm.uuid


@pytest.mark.real_clock
@pytest.mark.parametrize(("first", "other"), [(("-name", "a"), ("-name", "b")), (("-m", "64"), ("-m", "65"))])
async def test_a_vm_without_a_uuid_keeps_its_uuid_when_it_restarts(
    folder: Path, first: tuple[str, ...], other: tuple[str, ...]
) -> None:
    observer, discoverer = RecordingObserver(), ListenDiscoverer(ListenConfig(listen=str(folder / "mon")))
    async with listening(observer, discoverer):
        uuids = [await uuid_of_new_qemu(discoverer, observer, *options) for options in (first, first, other)]
    assert uuids[0] == uuids[1] != uuids[2]


async def test_a_peer_without_a_greeting_is_disconnected_and_emits_no_record(folder: Path) -> None:
    observer, discoverer = RecordingObserver(), ListenDiscoverer(ListenConfig(listen=str(folder / "mon")))
    async with listening(observer, discoverer):
        await wait_until_closed(discoverer)
        await observer.wait_until(lambda: len(observer.calls_of("on_monitor_removed")) == 2)
    assert observer.states()[-1] is MonitorState.GONE
    assert observer.types() == []


async def test_a_user_that_is_not_listed_is_refused_before_a_byte_is_read(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    observer, discoverer = (
        RecordingObserver(),
        ListenDiscoverer(ListenConfig(listen=str(folder / "mon"), users=["12345", "nobody-of-that-name"])),
    )
    async with listening(observer, discoverer):
        start = time.monotonic()
        await wait_until_closed(discoverer)
        assert time.monotonic() == start, "at once"
        assert set(observer.calls_of("on_connection_refused")) == {(discoverer.address, "user")}
    assert observer.calls_of("on_status") == []
    assert "nobody-of-that-name ignored" in caplog.text
    assert caplog.text.count("refused: user") == 1, "logged once for each user"


async def test_a_member_of_a_listed_group_is_admitted(folder: Path) -> None:
    discoverer = ListenDiscoverer(ListenConfig(listen=str(folder / "mon"), users=[], groups=[str(os.getgid())]))
    observer = RecordingObserver()
    async with listening(observer, discoverer):
        await wait_until_closed(discoverer)
    assert observer.calls_of("on_connection_refused") == []


async def test_connections_are_limited_per_process_and_in_total(folder: Path) -> None:
    observer, discoverer = RecordingObserver(), ListenDiscoverer(ListenConfig(listen=str(folder / "mon")))
    async with listening(observer, discoverer):
        await asyncio.gather(*(wait_until_closed(discoverer) for _ in range(6)))
        assert observer.calls_of("on_connection_refused") == [(discoverer.address, "process")] * len(
            observer.calls_of("on_connection_refused")
        )
        assert 2 <= len(observer.calls_of("on_connection_refused")) <= 3
        await wait_until_closed(discoverer)
        assert len(observer.calls_of("on_monitor_removed")) >= 4, "closed connections free their places"
    observer, discoverer = (
        RecordingObserver(),
        ListenDiscoverer(ListenConfig(listen=str(folder / "mon"), max_connections=2)),
    )
    async with listening(observer, discoverer):
        await asyncio.gather(*(wait_until_closed(discoverer) for _ in range(4)))
    assert (discoverer.address, "limit") in observer.calls_of("on_connection_refused")


async def test_a_stale_socket_is_replaced_and_one_in_use_is_not(folder: Path) -> None:
    path = folder / "mon"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    ListenDiscoverer(ListenConfig(listen=str(path))).bind().close()
    with socket.socket(socket.AF_UNIX) as in_use:
        path.unlink()
        in_use.bind(str(path))
        in_use.listen()
        with pytest.raises(OSError, match="another process listens on this socket"):
            ListenDiscoverer(ListenConfig(listen=str(path))).bind()
    assert path.is_socket()


async def test_a_removed_socket_is_created_again(start_guest: StartGuest, folder: Path) -> None:
    observer, discoverer = RecordingObserver(), ListenDiscoverer(ListenConfig(listen=str(folder / "mon")), 0.05)
    async with listening(observer, discoverer):
        (folder / "mon").unlink()
        await wait_until_listening(discoverer)
        await start_guest(extra=qemu_arguments(discoverer))
        await observer.wait_for_polls()


async def test_an_unavailable_address_is_logged_once_and_retried(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    discoverer = ListenDiscoverer(ListenConfig(listen=str(folder / "none" / "mon")), 0.02)

    async def create_directory() -> None:
        await until(lambda: "cannot listen" in caplog.text, TIMEOUT_SECONDS)
        await asyncio.sleep(0.2)  # several attempts
        Path(discoverer.address).parent.mkdir()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(create_directory())
        async with listening(RecordingObserver(), discoverer):
            pass
    assert caplog.text.count("cannot listen") == 1


@pytest.fixture
def tls(folder: Path) -> ListenTlsConfig:
    certificates = Certificates.make(folder)
    shutil.copy(certificates.authority, folder / "ca-cert.pem")
    for kind in ("key", "crt"):
        shutil.copy(folder / f"client.{kind}", folder / f"client-{'key' if kind == 'key' else 'cert'}.pem")
    return ListenTlsConfig(ca=str(certificates.authority), certificate=str(certificates.server))


def qemu_tls_arguments(discoverer: ListenDiscoverer, folder: Path) -> list[str]:
    host, _, port = discoverer.address.removeprefix("tcp:").rpartition(":")
    return [
        *("-object", f"tls-creds-x509,id=tls,dir={folder},endpoint=client,verify-peer=on"),
        *("-chardev", f"socket,id=mon,host={host},port={port},reconnect=1,tls-creds=tls"),
        *("-mon", "chardev=mon,mode=control"),
    ]


async def test_over_tcp_only_a_qemu_with_a_certificate_is_admitted(
    start_guest: StartGuest, folder: Path, tls: ListenTlsConfig
) -> None:
    discoverer = ListenDiscoverer(ListenConfig(listen=f"tcp:127.0.0.1:{free_port()}", tls=tls))
    observer = RecordingObserver()
    async with listening(observer, discoverer):
        await wait_until_closed(discoverer, b"not TLS\r\n")
        guest = await start_guest(extra=qemu_tls_arguments(discoverer, folder))
        await observer.wait_for_polls()
        (attached,) = observer.records("vm.attached")
        assert attached.vm.uuid == guest.uuid
        assert attached.vm.monitor.startswith(f"{discoverer.address} from 127.0.0.1:")


async def test_a_certificate_of_another_authority_is_refused(
    start_guest: StartGuest, folder: Path, tls: ListenTlsConfig
) -> None:
    (folder / "other").mkdir()
    other = Certificates.make(folder / "other")
    discoverer = ListenDiscoverer(
        ListenConfig(
            listen=f"tcp:127.0.0.1:{free_port()}",
            tls=ListenTlsConfig(ca=str(other.authority), certificate=tls.certificate),
        )
    )
    observer = RecordingObserver()
    async with listening(observer, discoverer):
        await start_guest(extra=qemu_tls_arguments(discoverer, folder))
        await observer.wait_until(lambda: sum(state is MonitorState.GONE for state in observer.states()) >= 3)
    assert observer.types() == []


def test_a_missing_secrets_directory_fails_only_the_listener(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    tls = ListenTlsConfig(ca="${CREDENTIALS_DIRECTORY}/ca.pem", certificate=str(folder / "agent.pem"))
    discoverer = ListenConfig(listen=f"tcp:127.0.0.1:{free_port()}", tls=tls).build_discoverer(
        AllowedQemuChangesConfig()
    )
    with pytest.raises(OSError, match="LoadCredential="):  # the discoverer retries, as for any address
        discoverer.bind()
