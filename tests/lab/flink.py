"""Runs Flink SQL jobs in a single process.

`python -m tests.lab.flink` downloads Flink in advance.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Self

from agent.cli.demo.images import MissingDependencyError, build_directory_once, cache_directory
from tests.lab.machine import require
from tests.lab.maven import fetch_jars

POM: Final = Path(__file__).parent / "flink" / "pom.xml"
JOBS: Final = Path(__file__).parents[2] / "deploy" / "flink"
"""The directory of the jobs that the project ships."""
_BOOTSTRAP: Final = "kafka-1:9092"
_STOP_SECONDS: Final = 180.0
_JARS: Final = re.compile(r"pyflink/(lib/.*|opt/flink-(sql-client|python)-[^/]*)\.jar")
_CONFIG: Final = """\
execution: {target: local}
parallelism: {default: 1}
taskmanager.memory.managed.size: 64m
"""


def flink_home() -> Path:
    """Return the directory of Flink's jars. The first call downloads 330 MB from PyPI and Maven Central.

    Blocks.

    Raises:
        MissingDependencyError: Java or Maven is missing, or the jars cannot be fetched.
    """
    require("java", "a Java runtime, 17 or newer,")
    jars = hashlib.sha256(POM.read_bytes()).hexdigest()[:8]
    return build_directory_once(cache_directory() / f"flink-{_version()}-{jars}", _fetch)


def _version() -> str:
    version = re.search(r"<artifactId>flink-sql-gateway</artifactId>\s*<version>([^<]+)", POM.read_text())
    assert version is not None, f"{POM} names no version of Flink"
    return version[1]


def _fetch(scratch: Path) -> None:
    """Fetch Flink. Most jars come from its Python package, the others from Maven Central."""
    built, downloaded = scratch / "built", scratch / "downloaded"
    package = f"apache-flink-libraries=={_version()}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(downloaded), package]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise MissingDependencyError(f"pip cannot fetch {package}: {result.stderr.strip().splitlines()[-1:]}")
    (wheel,) = downloaded.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if _JARS.fullmatch(name):
                built.mkdir(exist_ok=True)
                (built / Path(name).name).write_bytes(archive.read(name))
    wheel.unlink()
    fetch_jars(POM, built, "Flink")


class FlinkJobs:
    """A process that runs jobs of `deploy/flink`. As an async context manager, it runs while the block runs.

    Attributes:
        script: The statements that Flink runs.
        process: The process; None before `start` and after `stop`.
    """

    def __init__(
        self, folder: Path, jobs: Iterable[str], bootstrap: str, replacements: Mapping[str, str] | None = None
    ) -> None:
        """Write the script.

        Args:
            folder: A directory for the script, the config and the log.
            jobs: The names of the jobs' files, without `.sql`.
            bootstrap: The address of a broker.
            replacements: Texts to replace in the files, such as the names of topics.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(_CONFIG)
        self._folder = folder
        self._log = folder / "log"
        self.process: asyncio.subprocess.Process | None = None
        *first, last = [(JOBS / f"{name}.sql").read_text() for name in jobs]
        # Flink ends when its client ends, and the client returns after it has submitted a job. So the last statement waits for its job.
        text = "\n".join([(JOBS / "tables.sql").read_text(), *first, "SET 'table.dml-sync' = 'true';", last])
        for before, after in {_BOOTSTRAP: bootstrap, **(replacements or {})}.items():
            assert before in text, before
            text = text.replace(before, after)
        self.script = folder / "jobs.sql"
        self.script.write_text(text)

    async def start(self) -> None:
        """Start the process. The jobs run a few seconds later."""
        jars = await asyncio.to_thread(flink_home)
        # The arguments are those of sql-client.sh.
        command = [
            *("setpriv", "--pdeathsig", "KILL", "java", "-Xmx768m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
            *("-cp", f"{jars}/*", "org.apache.flink.table.client.SqlClient"),
            *("--history", str(self._folder / "history"), "--file", str(self.script)),
        ]
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "FLINK_CONF_DIR": str(self._folder)},
            )

    @property
    def log(self) -> str:
        """The output so far."""
        return self._log.read_text() if self._log.exists() else ""

    def check(self) -> None:
        """Check that the jobs run.

        Raises:
            AssertionError: The process has ended, or a statement failed. The message has the log.
        """
        assert self.process is not None
        assert self.process.returncode is None, self.log
        assert "[ERROR]" not in self.log, self.log

    async def stop(self) -> None:
        """Kill the process."""
        process, self.process = self.process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


if __name__ == "__main__":
    try:
        flink_home()
    except MissingDependencyError as missing:
        sys.exit(str(missing))
