"""A real Prometheus that scrapes one target every second, and its tool that judges an exposition."""

import contextlib
import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from agent.demo.guest import until
from agent.demo.images import LabMissing
from tests.lab.machine import CURE, free_port, require

_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 5.0


class PrometheusError(Exception):
    """Prometheus did not start, or refused a query; the message has its own words."""


class Prometheus:
    """A Prometheus of one target; as an async context manager it runs from entering to leaving.

    Attributes:
        url: its web address, without a slash at the end.
    """

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
            folder: where its data, log and settings go; need not be there yet.
            target: what it scrapes, `host:port`.
            path: the path of the metrics there.
            rules: a file of recording and alerting rules, evaluated every second too.
            job: what its series are labelled with.
            alertmanager: whom it tells what fires, `host:port`.
        """
        self.url = f"http://127.0.0.1:{free_port()}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "log"
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

    async def start(self) -> None:
        """Start it and wait until it is ready, which is some six seconds before it has scraped for the first time.

        Raises:
            PrometheusError: if it does not come to that.
            LabMissing: if the machine has none.
        """
        require("prometheus", "prometheus")
        self._folder.mkdir(parents=True, exist_ok=True)
        settings = self._folder / "prometheus.json"
        settings.write_text(json.dumps(self._settings))
        with self._log.open("wb") as log:
            # Not asyncio's process: a Prometheus may outlive the event loop of one test.
            self._process = process = subprocess.Popen(  # noqa: ASYNC220 - the fork takes no time
                [
                    *("setpriv", "--pdeathsig", "KILL", "prometheus", f"--config.file={settings}"),
                    *(f"--storage.tsdb.path={self._folder / 'data'}", "--log.level=warn"),
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
            await self.stop()
            raise PrometheusError(f"Prometheus did not start: {self._log.read_text()[-2000:]}")

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

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Evaluate an expression now and return its series: `{"metric": labels, "value": [time, "text"]}` each.

        Raises:
            PrometheusError: if the expression is wrong.
        """
        result: list[dict[str, Any]] = (await self._get("query", query=expression))["result"]
        return result

    async def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that are pending or firing: `{"labels", "annotations", "state", ...}` each."""
        found: list[dict[str, Any]] = (await self._get("alerts"))["alerts"]
        return found

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _get(self, name: str, **parameters: str) -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.url}/api/v1/{name}", params=parameters) as response,
        ):
            answer = await response.json()
        if answer["status"] != "success":
            raise PrometheusError(answer["error"])
        return answer["data"]

    async def _ready(self) -> bool:
        with contextlib.suppress(aiohttp.ClientConnectionError):
            async with aiohttp.ClientSession() as session, session.get(f"{self.url}/-/ready") as response:
                return response.status == 200
        return False


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
        raise LabMissing(f"there is no promtool: {CURE}") from error
    said = (found.stdout + found.stderr).splitlines()
    return said or ([f"promtool ended with {found.returncode}"] if found.returncode else [])
