"""A real Alertmanager, which sends what it notifies to a receiver in this process."""

import asyncio
import contextlib
import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from aiohttp import web

from agent.demo.guest import until
from tests.lab.machine import free_port, require

_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 5.0

Found = list[dict[str, Any]]


class AlertmanagerError(Exception):
    """Alertmanager did not start; the message has its own words."""


class Alertmanager:
    """An Alertmanager that groups by VM; as an async context manager it runs from entering to leaving.

    It can be stopped and started again at the same address; it keeps nothing over that.

    Attributes:
        url: its web address, without a slash at the end.
        notified: the notifications that it has sent, oldest first: `{"status", "groupLabels", "alerts": [...]}` each.
    """

    def __init__(self, folder: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.notified: Found = []
        self._folder = folder
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._receiver: web.AppRunner | None = None

    async def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            AlertmanagerError: if it does not come to that.
            LabMissing: if the machine has none.
        """
        require("prometheus-alertmanager", "prometheus-alertmanager")
        self._folder.mkdir(parents=True, exist_ok=True)
        settings = self._folder / "alertmanager.json"
        settings.write_text(json.dumps(self._settings(await self._listen())))  # JSON is YAML
        with self._log.open("ab") as log:
            # Not asyncio's process: as in tests/lab/prometheus.py.
            self._process = process = subprocess.Popen(  # noqa: ASYNC220 - the fork takes no time
                [
                    *("setpriv", "--pdeathsig", "KILL", "prometheus-alertmanager", f"--config.file={settings}"),
                    *(f"--storage.path={self._folder / 'data'}", "--cluster.listen-address=", "--log.level=warn"),
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=log,
            )

        async def settled() -> bool:
            return process.poll() is not None or await self._ready()

        try:
            await until(settled, _START_SECONDS)
        except BaseException:
            await self.stop()
            raise
        if process.poll() is not None:
            raise AlertmanagerError(f"Alertmanager did not start: {self._log.read_text()[-2000:]}")

    async def stop(self) -> None:
        """End it, killing it if it takes its time."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                await until(lambda: process.poll() is not None, _STOP_SECONDS)
            except TimeoutError:
                process.kill()
                process.wait(_STOP_SECONDS)

    async def alerts(self) -> Found:
        """Return the alerts that are active: `{"labels", "annotations", "fingerprint", "startsAt", "endsAt", ...}` each."""
        return await self._get("alerts")

    async def groups(self) -> Found:
        """Return the groups of active alerts: `{"labels", "alerts", ...}` each."""
        return await self._get("alerts/groups")

    def statuses(self) -> list[str]:
        """Return whether each notification told of something firing, or of its end."""
        return [one["status"] for one in self.notified]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        if self._receiver is not None:
            await self._receiver.cleanup()

    def _settings(self, receiver: str) -> dict[str, Any]:
        waits = {"group_wait": "100ms", "group_interval": "200ms", "repeat_interval": "1h"}
        return {
            "route": {"receiver": "test", "group_by": ["vm"], **waits},
            "receivers": [{"name": "test", "webhook_configs": [{"url": receiver, "send_resolved": True}]}],
        }

    async def _listen(self) -> str:
        if self._receiver is None:
            app = web.Application()
            app.router.add_post("/", self._receive)
            self._receiver = web.AppRunner(app, access_log=None)
            await self._receiver.setup()
            await web.TCPSite(self._receiver, "127.0.0.1", 0).start()
        _, port = self._receiver.addresses[0]
        return f"http://127.0.0.1:{port}/"

    async def _receive(self, request: web.Request) -> web.Response:
        self.notified.append(await request.json())
        return web.Response()

    async def _get(self, name: str) -> Found:
        url = f"{self.url}/api/v2/{name}"
        async with asyncio.timeout(5), aiohttp.ClientSession() as session, session.get(url) as response:
            assert response.status == 200, await response.text()
            found: Found = await response.json()
        return found

    async def _ready(self) -> bool:
        with contextlib.suppress(aiohttp.ClientConnectionError):
            async with aiohttp.ClientSession() as session, session.get(f"{self.url}/-/ready") as response:
                return response.status == 200
        return False
