"""Runs a real Alertmanager that sends its notifications to a webhook receiver in this process."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from tests.lab.server import Server

AlertList = list[dict[str, Any]]


class Alertmanager(Server):
    """An Alertmanager process that groups alerts by VM.

    Attributes:
        notifications: The notifications that the receiver got, oldest first. Each is `{"status", "groupLabels", "alerts": [...]}`.
    """

    program = "prometheus-alertmanager"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.notifications: AlertList = []
        self._receiver: web.AppRunner | None = None

    async def arguments(self) -> list[str]:
        """Write the config file, and return the command-line arguments without the listen address."""
        config_file = self.folder / "alertmanager.json"
        config_file.write_text(json.dumps(self._config(await self._listen())))  # JSON is YAML
        return [f"--config.file={config_file}", f"--storage.path={self.folder / 'data'}", "--cluster.listen-address="]

    async def alerts(self) -> AlertList:
        """Return the active alerts. Each is `{"labels", "annotations", "fingerprint", "startsAt", "endsAt", ...}`."""
        return await self._get("alerts")

    async def groups(self) -> AlertList:
        """Return the groups of active alerts. Each is `{"labels", "alerts", ...}`."""
        return await self._get("alerts/groups")

    def statuses(self) -> list[str]:
        """Return the status of each notification, `firing` or `resolved`, oldest first."""
        return [notification["status"] for notification in self.notifications]

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__()
        if self._receiver is not None:
            await self._receiver.cleanup()

    def _config(self, receiver: str) -> dict[str, Any]:
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
        self.notifications.append(await request.json())
        return web.Response()

    async def _get(self, name: str) -> AlertList:
        url = f"{self.url}/api/v2/{name}"
        async with asyncio.timeout(5), aiohttp.ClientSession() as session, session.get(url) as response:
            assert response.status == 200, await response.text()
            alerts: AlertList = await response.json()
        return alerts
