"""pytest fixtures: a temporary folder, guests, scripted QEMUs, a Kafka broker, Prometheus."""

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from agent.cli.demo.guest import Guest, GuestOptions
from agent.cli.demo.images import MissingDependencyError
from tests.lab.fake_qemu import FakeQemu
from tests.lab.kafka import KafkaCluster
from tests.lab.prometheus import Prometheus
from tests.lab.qemus import OTHER_RELEASES, Qemu, find_qemu

StartGuest = Callable[..., Awaitable[Guest]]
StartPrometheus = Callable[..., Awaitable[Prometheus]]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A temporary folder for this test. Its path is short enough for Unix sockets; the path of pytest's tmp_path is too long."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        yield Path(path)


@pytest.fixture
async def start_guest(folder: Path) -> AsyncIterator[StartGuest]:
    """A function that starts a guest in `folder`. Its arguments are a name and fields of GuestOptions. The guests end with the test."""
    async with AsyncExitStack() as guests:

        async def start(name: str = "vm1", *, identity: str | None = None, **options: Any) -> Guest:
            return await guests.enter_async_context(Guest(folder, name, GuestOptions(**options), identity=identity))

        yield start


@pytest.fixture(scope="module", params=["", *OTHER_RELEASES], ids=lambda release: release or "own")
def qemu(request: pytest.FixtureRequest) -> Qemu:
    """Each QEMU version in turn. A test is skipped if its version was not downloaded."""
    try:
        return find_qemu(request.param)
    except MissingDependencyError as missing:
        if not request.param:
            raise
        pytest.skip(str(missing))


@pytest.fixture
async def fake(folder: Path) -> AsyncIterator[FakeQemu]:
    """A scripted QEMU that listens at `folder`/vm1.qmp."""
    async with FakeQemu(folder / "vm1.qmp") as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def kafka() -> AsyncIterator[KafkaCluster]:
    """A Kafka broker that all tests share. A test uses topics of its own and does not stop the broker."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        async with KafkaCluster(Path(path, "kafka")) as running:
            yield running


@pytest.fixture
async def topic(kafka: KafkaCluster) -> str:
    """A new topic with one partition on `kafka`."""
    name = f"test-{uuid4()}"
    await kafka.create_topic(name)
    return name


@pytest.fixture
async def start_prometheus(folder: Path) -> AsyncIterator[StartPrometheus]:
    """A function that starts a Prometheus server. Its arguments are those of Prometheus. The server ends with the test."""
    async with AsyncExitStack() as running:

        async def start(target: str, **options: Any) -> Prometheus:
            return await running.enter_async_context(Prometheus(folder / "prometheus", target, **options))

        yield start
