"""The HTTP endpoint without an agent: a fake view of the agent, and a running endpoint with a web config."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import yaml

from agent.app.endpoint_source import describe_alerts
from agent.cli.http_client import EndpointCredentials
from agent.exposition.snapshot import Snapshot
from agent.http.connection_limits import DEFAULT_CONNECTION_LIMITS, ConnectionLimits
from agent.http.handlers import create_application
from agent.http.record_stream import RecordBroadcaster
from agent.http.server import HttpEndpoint
from agent.http.sse import DEFAULT_INTERVALS, SseSendIntervals
from agent.model.record import RecordEncoder, Vm
from tests.lab.scripted_peer import TIMEOUT_SECONDS
from tests.lab.waiting import until


class FakeView:
    """An EndpointSource whose return values a test sets."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.broadcaster = RecordBroadcaster()
        self.reasons: list[str] = []
        self.warned: list[str] = []
        self.hung = ""
        self.scrapes: list[float] = []
        self.states: int | None = 0
        self.rewrites = 0

    def render_self_metrics(self) -> bytes:
        return b"# TYPE qmp_agent_x gauge\nqmp_agent_x 1.0\n"

    def unready_reasons(self) -> list[str]:
        return self.reasons

    def hang_reason(self) -> str:
        return self.hung

    def warnings(self) -> list[str]:
        return self.warned

    def agent_health(self) -> dict[str, Any]:
        return {"unready_reasons": self.reasons}

    def firing_alerts(self) -> list[dict[str, Any]]:
        return []

    def describe_alerts(self) -> dict[str, dict[str, str]]:
        return describe_alerts()

    def disk_alert_levels_in_bytes(self, _vm: Vm, _device: str, /) -> list[tuple[str, int]]:
        return [("80%", 80)]

    def latency_histogram_owner(self, _vm: Vm, _device: str, /) -> str:
        return "agent"

    def rewrite_state_topic(self) -> int | None:
        self.rewrites += 1
        return self.states

    def set_last_scrape_duration_seconds(self, seconds: float) -> None:
        self.scrapes.append(seconds)


class RunningEndpoint:
    """A running HTTP endpoint with a web config.

    Attributes:
        view: the fake state of the agent that the endpoint serves.
        encode: encodes records for the view's broadcaster.
        url: the base URL.
        host: the host in the base URL.
        port: the port in the base URL.

    Args:
        folder: directory of the web config file.
        config: the web config, as a dict or as text.
        listen: the address to listen on.
        limits: limits of the endpoint's connections.
        timing: intervals of the endpoint's streams.
        view: the state to serve; None for a host without VMs.
    """

    def __init__(
        self,
        folder: Path,
        config: Any = None,
        listen: str = "127.0.0.1:0",
        limits: ConnectionLimits = DEFAULT_CONNECTION_LIMITS,
        timing: SseSendIntervals = DEFAULT_INTERVALS,
        view: FakeView | None = None,
    ) -> None:
        self.path = folder / "web.yml"
        self.write(config or {})
        self.view = view or FakeView()
        self.encode = RecordEncoder()
        self.endpoint = HttpEndpoint(
            create_application(self.view, timing), listen, self.path, limits=limits, reload_seconds=0.05
        )

    def write(self, config: Any) -> None:
        """Replace the web config file atomically."""
        new = self.path.with_suffix(".new")
        new.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
        new.replace(self.path)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["RunningEndpoint"]:
        async with self.endpoint.serve_in_background() as self.url:
            self.host, port = self.url.rpartition("//")[2].rsplit(":", 1)
            self.port = int(port)
            yield self

    async def get(self, path: str = "/healthz", credentials: EndpointCredentials | None = None, **more: Any) -> int:
        """Send a GET request, and return the status of the response."""
        async with (
            (credentials or EndpointCredentials()).open_aiohttp_session() as session,
            session.get(self.url + path, **more) as response,
        ):
            await response.read()
            return response.status

    @contextlib.asynccontextmanager
    async def raw_connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Open a TCP connection."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def wait_for_status(self, status: int, **more: Any) -> None:
        """Send requests until the response has this status."""

        async def has_status() -> bool:
            return await self.get(**more) == status

        await until(has_status, TIMEOUT_SECONDS)
