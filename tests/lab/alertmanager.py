"""Runs a real Alertmanager that sends its notifications to a webhook receiver in this process."""

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from tests.lab.machine import free_port
from tests.lab.server import Server

AlertList = list[dict[str, Any]]


class Alertmanager(Server):
    """An Alertmanager process that groups alerts by VM.

    Attributes:
        client: aiohttp's keyword arguments for the requests of the tests, such as `headers` and `ssl`.
        cluster_address: The address at which other members of its set reach it; empty without a set.
        notifications: The notifications that the receiver got, oldest first. Each is `{"status", "groupLabels", "alerts": [...]}`.
    """

    program = "prometheus-alertmanager"

    def __init__(
        self,
        folder: Path,
        *,
        web_config: Mapping[str, Any] | None = None,
        inhibit_rules: Sequence[Mapping[str, Any]] = (),
        peer: str | None = None,
    ) -> None:
        """Choose the port.

        Args:
            folder: The directory for data, log and config.
            web_config: TLS and users, in the format of exporter-toolkit; with `tls_server_config` the URL begins with https.
            inhibit_rules: The inhibition rules of the config.
            peer: The cluster address of another member of the same high-availability set; empty for the first member, None for no set.
        """
        super().__init__(folder)
        self._web_config = web_config
        self._inhibit_rules = inhibit_rules
        self._peer = peer
        self.cluster_address = f"127.0.0.1:{free_port()}" if peer is not None else ""
        if web_config is not None and "tls_server_config" in web_config:
            self.url = self.url.replace("http:", "https:")
        self.client: dict[str, Any] = {}
        self.notifications: AlertList = []
        self._receiver: web.AppRunner | None = None

    async def arguments(self) -> list[str]:
        """Write the config file, and return the command-line arguments without the listen address."""
        config_file = self.folder / "alertmanager.json"
        config_file.write_text(json.dumps(self._config(await self._listen())))  # JSON is YAML
        arguments = [
            f"--config.file={config_file}",
            f"--storage.path={self.folder / 'data'}",
            f"--cluster.listen-address={self.cluster_address}",
        ]
        if self._peer is not None:
            # A member waits for this time, so that the member before it can notify and report that.
            arguments += ["--cluster.peer-timeout=10s", "--cluster.settle-timeout=1s"]
        if self._peer:
            arguments.append(f"--cluster.peer={self._peer}")
        if self._web_config is not None:
            web_config = self.folder / "web.json"
            web_config.write_text(json.dumps(self._web_config))
            arguments.append(f"--web.config.file={web_config}")
        return arguments

    async def alerts(self) -> AlertList:
        """Return the active alerts. Each is `{"labels", "annotations", "fingerprint", "startsAt", "endsAt", ...}`."""
        return await self._get("alerts")

    async def groups(self) -> AlertList:
        """Return the groups of active alerts. Each is `{"labels", "alerts", ...}`."""
        return await self._get("alerts/groups")

    async def peers(self) -> AlertList:
        """Return the members of the set that this member knows, including itself. Each is `{"name", "address"}`."""
        url = f"{self.url}/api/v2/status"
        async with asyncio.timeout(60), aiohttp.ClientSession() as session, session.get(url, **self.client) as response:
            peers: AlertList = (await response.json())["cluster"]["peers"]
        return peers

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
            "inhibit_rules": list(self._inhibit_rules),
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

    async def _ready(self) -> bool:
        with contextlib.suppress(aiohttp.ClientConnectionError):
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{self.url}/-/ready", **self.client) as response,
            ):
                return response.status == 200
        return False

    async def _get(self, name: str) -> AlertList:
        url = f"{self.url}/api/v2/{name}"
        async with asyncio.timeout(60), aiohttp.ClientSession() as session, session.get(url, **self.client) as response:
            assert response.status == 200, await response.text()
            alerts: AlertList = await response.json()
        return alerts
