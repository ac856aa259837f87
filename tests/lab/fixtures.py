"""What a test gets from the lab by naming it as an argument."""

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from agent.cli.demo.guest import Guest, GuestOptions
from agent.cli.demo.images import LabMissing
from tests.lab.fake_qemu import FakeQemu
from tests.lab.kafka import KafkaCluster
from tests.lab.prometheus import Prometheus
from tests.lab.qemus import OTHERS, Qemu, qemu_of

StartGuest = Callable[..., Awaitable[Guest]]
StartPrometheus = Callable[..., Awaitable[Prometheus]]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for this test, with a path short enough for sockets, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        yield Path(path)


@pytest.fixture
async def start_guest(folder: Path) -> AsyncIterator[StartGuest]:
    """A function that starts guests in `folder`, ended with the test; it takes a name and GuestOptions' fields."""
    async with AsyncExitStack() as guests:

        async def start(name: str = "vm1", *, identity: str | None = None, **options: Any) -> Guest:
            return await guests.enter_async_context(Guest(folder, name, GuestOptions(**options), identity=identity))

        yield start


@pytest.fixture(scope="module", params=["", *OTHERS], ids=lambda release: release or "own")
def qemu(request: pytest.FixtureRequest) -> Qemu:
    """Each QEMU that there is, one after the other; a test of one that was not fetched is skipped."""
    try:
        return qemu_of(request.param)
    except LabMissing as missing:
        if not request.param:
            raise
        pytest.skip(str(missing))


@pytest.fixture
async def fake(folder: Path) -> AsyncIterator[FakeQemu]:
    """A scripted QEMU that listens on `folder`/vm1.qmp."""
    async with FakeQemu(folder / "vm1.qmp") as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def kafka() -> AsyncIterator[KafkaCluster]:
    """One broker for all tests; leave it running, and use topics of your own."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        async with KafkaCluster(Path(path, "kafka")) as running:
            yield running


@pytest.fixture
async def topic(kafka: KafkaCluster) -> str:
    """A new topic of one partition on `kafka`."""
    name = f"test-{uuid4()}"
    await kafka.create_topic(name)
    return name


@pytest.fixture
async def start_prometheus(folder: Path) -> AsyncIterator[StartPrometheus]:
    """A function that starts a Prometheus, ended with the test; it takes a target and Prometheus' options."""
    async with AsyncExitStack() as running:

        async def start(target: str, **options: Any) -> Prometheus:
            return await running.enter_async_context(Prometheus(folder / "prometheus", target, **options))

        yield start
