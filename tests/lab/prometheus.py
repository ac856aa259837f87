"""A real Prometheus that scrapes one target every second, and its tool that judges an exposition."""

import json
import subprocess
from pathlib import Path
from typing import Any

import aiohttp

from agent.cli.demo.images import LabMissing
from tests.lab.machine import INSTALL_HINT
from tests.lab.server import Server, ServerError


class Prometheus(Server):
    """A Prometheus of one target; it has scraped for the first time some six seconds after it has started."""

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
        """Choose its port.

        Args:
            folder: where its data, log and settings go.
            target: what it scrapes, `host:port`.
            path: the path of the metrics there.
            rules: a file of recording and alerting rules, evaluated every second too.
            job: what its series are labelled with.
            alertmanager: whom it tells what fires, `host:port`.
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
        """Write its settings and return its arguments, but for its address."""
        settings = self.folder / "prometheus.json"
        settings.write_text(json.dumps(self._settings))
        return [f"--config.file={settings}", f"--storage.tsdb.path={self.folder / 'data'}"]

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Evaluate an expression now and return its series: `{"metric": labels, "value": [time, "text"]}` each.

        Raises:
            ServerError: if the expression is wrong.
        """
        result: list[dict[str, Any]] = (await self._get("query", query=expression))["result"]
        return result

    async def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that are pending or firing: `{"labels", "annotations", "state", ...}` each."""
        found: list[dict[str, Any]] = (await self._get("alerts"))["alerts"]
        return found

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
    """Return what `promtool check metrics` has to say against an exposition in the text format; nothing is good.

    Raises:
        LabMissing: if the machine has no promtool.
    """
    try:
        found = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise LabMissing(f"there is no promtool: {INSTALL_HINT}") from error
    said = (found.stdout + found.stderr).splitlines()
    return said or ([f"promtool ended with {found.returncode}"] if found.returncode else [])
