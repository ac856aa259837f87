"""Fixtures of the libvirt tests: one libvirtd for each module, and agents on it."""

import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from tests.lab.agent_process import AgentProcess
from tests.lab.libvirt import Libvirtd

QUICK: Final[Mapping[str, Any]] = {
    "intervals": {"poll": "500ms", "guest_memory": "1s", "resync": "1h"},
    "timeouts": {"response": "4s", "greeting": "1s", "max_retry_delay": "1s"},
}

AgentOn = Callable[..., AgentProcess]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def libvirtd() -> AsyncIterator[Libvirtd]:
    """A libvirtd for the module's tests; tests leave it running."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        async with Libvirtd(Path(path)) as running:
            yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _destroy_created_domains(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Destroy the domains that a test has created, when it ends."""
    if "libvirtd" not in request.fixturenames:
        yield
        return
    running = request.getfixturevalue("libvirtd")
    count = len(running.domains)
    yield
    await running.destroy_since(count)


@pytest.fixture
def agent_on(libvirtd: Libvirtd, folder: Path) -> AgentOn:
    """A function that creates an agent with these keys in its entry for `libvirtd`, and these other keys in its config."""

    def create(entry: Mapping[str, Any] | None = None, **config: Any) -> AgentProcess:
        return AgentProcess(folder, {**QUICK, "monitors": [{"libvirt": libvirtd.uri} | dict(entry or {})], **config})

    return create
