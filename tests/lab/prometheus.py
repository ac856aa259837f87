"""Runs a real Prometheus that scrapes one target every second, and checks metrics with promtool."""

import json
import subprocess
from pathlib import Path
from typing import Any

import aiohttp

from agent.cli.demo.images import MissingDependencyError
from tests.lab.machine import INSTALL_HINT
from tests.lab.server import Server, ServerError


class Prometheus(Server):
    """A Prometheus process with one target. The first scrape is about six seconds after the start."""

    program = "prometheus"

    def __init__(
        self,
        folder: Path,
        target: str,
        *,
        path: str = "/metrics",
        rules: Path | None = None,
        job: str = "agent",
        alertmanager: str = "",
    ) -> None:
        """Choose a port.

        Args:
            folder: the directory for data, log and config.
            target: the scraped address, `host:port`.
            path: the path of the metrics.
            rules: a file of recording and alerting rules, evaluated every second.
            job: the label `job` of the series.
            alertmanager: the Alertmanager that gets the alerts, `host:port`; empty for none.
        """
        super().__init__(folder)
        self._settings = {  # JSON is YAML
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules.resolve())] if rules else [],
            "alerting": {
                "alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}] if alertmanager else [],
            },
            "scrape_configs": [
                {"job_name": job, "metrics_path": path, "static_configs": [{"targets": [target]}]},
            ],
        }

    async def arguments(self) -> list[str]:
        """Write the config file, and return the command-line arguments without the listen address."""
        settings = self.folder / "prometheus.json"
        settings.write_text(json.dumps(self._settings))
        return [f"--config.file={settings}", f"--storage.tsdb.path={self.folder / 'data'}"]

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Evaluate a PromQL expression now and return the series. Each is `{"metric": labels, "value": [time, "text"]}`.

        Raises:
            ServerError: the expression is invalid.
        """
        result: list[dict[str, Any]] = (await self._get("query", query=expression))["result"]
        return result

    async def alerts(self) -> list[dict[str, Any]]:
        """Return the pending and the firing alerts. Each is `{"labels", "annotations", "state", ...}`."""
        alerts: list[dict[str, Any]] = (await self._get("alerts"))["alerts"]
        return alerts

    async def _get(self, name: str, **parameters: str) -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.url}/api/v1/{name}", params=parameters) as response,
        ):
            answer = await response.json()
        if answer["status"] != "success":
            raise ServerError(answer["error"])
        return answer["data"]


def promtool_check(text: str) -> list[str]:
    """Return the problems that `promtool check metrics` finds in a text of metrics; empty if it finds none.

    Raises:
        MissingDependencyError: promtool is not installed.
    """
    try:
        result = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise MissingDependencyError(f"promtool is not installed: {INSTALL_HINT}") from error
    messages = (result.stdout + result.stderr).splitlines()
    return messages or ([f"promtool exited with {result.returncode}"] if result.returncode else [])
