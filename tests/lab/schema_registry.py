"""Runs a real schema registry, Apicurio, which has Confluent's API. It keeps its schemas in memory."""

import contextlib
import subprocess
import tarfile
from pathlib import Path
from typing import Any, Final, Self

import aiohttp

from agent.cli.demo.images import MissingDependencyError, build_directory_once, cache_directory
from tests.lab.machine import free_port, require
from tests.lab.waiting import until

VERSION: Final = "2.6.13.Final"
_START_SECONDS: Final = 300.0


class SchemaRegistry:
    """A registry process. As an async context manager, it runs while the block runs.

    Attributes:
        url: the URL of Confluent's API.
    """

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        self._log = folder / "registry.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}/apis/ccompat/v7"

    async def get(self, path: str) -> Any:
        """Return the response to a GET request, without its status."""
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
            return await response.json(content_type=None)

    async def __aenter__(self) -> Self:
        require("java", "a Java runtime, 17 or newer,")
        home = _registry_home()
        options = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dquarkus.http.host=127.0.0.1"]
        jar = home / f"apicurio-registry-app-{VERSION}-runner.jar"
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "java",
            *options,
            f"-Dquarkus.http.port={self._port}",
            "-jar",
            str(jar),
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._log.parent)  # noqa: ASYNC220 - the fork takes no time

        async def answers() -> bool:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                return bool(await self.get("/subjects") == [])
            return False

        try:
            await until(answers, _START_SECONDS)
        except BaseException:
            self._kill()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._kill()

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


def _registry_home() -> Path:
    """Return the directory of the registry. The first call downloads 140 MB from Maven Central. Blocks."""
    return build_directory_once(cache_directory() / f"apicurio-{VERSION}", _fetch)


def _fetch(scratch: Path) -> None:
    require("mvn", "Maven")
    artifact = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
    goal = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
    command = ["mvn", "-q", "-B", goal, f"-Dartifact={artifact}", f"-DoutputDirectory={scratch}"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=scratch)
    except subprocess.CalledProcessError as error:
        raise MissingDependencyError(f"mvn cannot fetch Apicurio: {error.stdout[-500:]}") from error
    with tarfile.open(scratch / f"apicurio-registry-app-{VERSION}-all.tar.gz") as archive:
        archive.extractall(scratch / "built", filter="data")
