"""Runs the agent in a separate process, and reads the agent's records, metrics and log."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import yaml
from prometheus_client.parser import text_string_to_metric_families

from agent.cli.demo.guest import until
from tests.lab.machine import free_port

COMMAND: Final = (sys.executable, "-m", "tests.lab.command_audit")
"""The command line that runs `qmp-agent` with the tests' Python. The command audit records what this agent sends to QEMU."""

_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 120.0
_RESPONSE_SECONDS: Final = 120.0

Record = dict[str, Any]
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class FinishedCommand:
    """The result of a `qmp-agent` process that has ended.

    Attributes:
        status: The exit status.
        out: The text on standard output.
        log: The text on standard error.
    """

    status: int
    out: str
    log: str


async def run_command(*arguments: str | Path, timeout: float = 300.0) -> FinishedCommand:  # noqa: ASYNC109 - the deadline is the point
    """Run `qmp-agent` with these arguments and wait until it ends.

    Raises:
        TimeoutError: The process did not end in time.
    """
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *map(str, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(timeout):
            out, log = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return FinishedCommand(process.returncode, out.decode(), log.decode())


@dataclass(frozen=True, slots=True)
class Scrape:
    """A scrape of /metrics, parsed by prometheus_client.

    Attributes:
        text: The whole response.
        values: The value of each series, by the series' name and labels.
    """

    text: str
    values: Mapping[tuple[str, Labels], float]

    @classmethod
    def read(cls, text: str) -> Self:
        """Parse a scrape. A duplicate family or series fails, as it does in Prometheus."""
        values: dict[tuple[str, Labels], float] = {}
        families = set()
        for family in text_string_to_metric_families(text):
            assert family.name not in families, f"{family.name} is a duplicate"
            families.add(family.name)
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in values, f"{sample.name}{sample.labels} is a duplicate"
                values[key] = float(sample.value)
        return cls(text, values)

    def matching(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """Return the labels and values of all series of this name that have at least these labels."""
        required = labels.items()
        return [
            (dict(series_labels), value)
            for (series_name, series_labels), value in self.values.items()
            if series_name == name and required <= series_labels
        ]

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of the only series of this name that has at least these labels; None if there is no such series."""
        series = self.matching(name, **labels)
        assert len(series) < 2, series
        return series[0][1] if series else None

    def names_of(self, uuid: str) -> list[str]:
        """Return the names of a VM's series."""
        return sorted(name for name, labels in self.values if ("vm_uuid", uuid) in labels)


def record_time(record: Record) -> float:
    """Return a record's time, in seconds since 1970."""
    return datetime.fromisoformat(record["time"]).timestamp()


class Mark(int):
    """A moment in the output of an agent: the number of records until then.

    Attributes:
        time: The moment, in seconds since 1970.
    """

    def __new__(cls, number: int) -> Self:
        """Return a mark of the present moment."""
        mark = super().__new__(cls, number)
        mark.time = time.time()
        return mark

    time: float


class AgentProcess:
    """A process `qmp-agent run`. As an async context manager, it runs while the `with` block runs.

    Attributes:
        config: The config file.
        port: The port of the agent's endpoint.
        url: The URL of the agent's endpoint.
        sink: The file that the agent writes records to, unless the config names another sink.
        process: The process; None before `start` and after `stop`.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], *, name: str = "agent") -> None:
        """Write the config file. Add the endpoint, a journal if there is a Kafka sink, and a file sink if there is no sink."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = folder / f"{name}.yaml"
        self.sink = folder / f"{name}.jsonl"
        self.process: asyncio.subprocess.Process | None = None
        self._out = folder / f"{name}.out"
        self._log = folder / f"{name}.log"
        self._read = 0
        self._records: list[Record] = []
        whole = {"host": "hv7", "web": {"listen_address": f"127.0.0.1:{self.port}"}, **config}
        if "kafka" in whole:
            whole["journal"] = {"directory": str(folder / f"{name}.journal")}
        elif "jsonl" not in whole:
            whole["jsonl"] = {"path": str(self.sink)}
        self.config.write_text(yaml.safe_dump({key: value for key, value in whole.items() if value is not None}))

    async def start(self) -> None:
        """Start the agent, and return when its endpoint responds.

        Raises:
            AssertionError: The agent ended. The message has its log.
        """
        with self._out.open("ab") as out, self._log.open("ab") as log:
            self.process = process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", *COMMAND, "run", "--config", str(self.config)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=log,
            )

        async def ended_or_healthy() -> bool:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                return process.returncode is not None or (await self.get("/healthz"))[0] in (200, 401)
            return False

        await until(ended_or_healthy, _START_SECONDS)
        assert process.returncode is None, f"the agent ended with {process.returncode}: {self.log}"

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the agent if it is running."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> FinishedCommand:
        """Send a signal to the agent, wait for its end and return its result.

        Raises:
            TimeoutError: The agent did not end in time and was killed.
        """
        process = self.process
        assert process is not None, "the agent does not run"
        self.send_signal(number)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                status = await process.wait()
        finally:
            await self.kill()
        return FinishedCommand(status, self._out.read_text(), self.log)

    async def kill(self) -> None:
        """Kill the agent with SIGKILL if it is running."""
        process, self.process = self.process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    # --- Output ---

    @property
    def log(self) -> str:
        """The text on standard error so far."""
        return self._log.read_text() if self._log.exists() else ""

    @property
    def out(self) -> str:
        """The text on standard output so far."""
        return self._out.read_text() if self._out.exists() else ""

    async def get(self, path: str) -> tuple[int, str]:
        """Send a GET request for a path to the endpoint. Return the response's status and text."""
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_RESPONSE_SECONDS)) as session,
            session.get(self.url + path) as response,
        ):
            return response.status, await response.text()

    async def metrics(self) -> Scrape:
        """Scrape the agent's /metrics."""
        status, text = await self.get("/metrics")
        assert status == 200, text
        return Scrape.read(text)

    def records(self) -> list[Record]:
        """Return all records that the agent has written so far, in order. The file must not be rotated."""
        with contextlib.suppress(FileNotFoundError), self.sink.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
            self._read += len(whole + newline)
            self._records += map(json.loads, whole.splitlines())
        return self._records

    def find_records(self, kind: str, *, vm: str = "", since: int = 0, **data: Any) -> Iterator[Record]:
        """Yield the records that match.

        Args:
            kind: The type without the prefix `qemu.`.
            vm: UUID or name of the VM; empty for any.
            since: The number of records to skip, as `mark` returned it. Samples of a poll that was in flight then are skipped, too.
            data: Fields that the record's data must have.
        """
        earliest = since.time if isinstance(since, Mark) and kind.startswith("sample.") else 0.0
        for record in self.records()[since:]:
            if (
                record["type"] == f"qemu.{kind}"
                and vm in ("", record.get("vmuuid"), record.get("vmname"))
                and data.items() <= record["data"].items()
                and (not earliest or record_time(record) >= earliest)
            ):
                yield record

    async def wait_for_record(
        self,
        kind: str,
        *,
        vm: str = "",
        since: int = 0,
        timeout: float = 300.0,  # noqa: ASYNC109 - as in `until`
        **data: Any,
    ) -> Record:
        """Wait until `find_records` yields a record for these arguments, and return the first record.

        Raises:
            AssertionError: No record matched in time. The message has the types of the new records, and the log.
        """
        try:
            await until(lambda: any(self.find_records(kind, vm=vm, since=since, **data)), timeout)
        except TimeoutError:
            types = [record["type"] for record in self.records()[since:]]
            raise AssertionError(f"no {kind} of {vm} within {timeout:g} s, but {types}; {self.log}") from None
        return next(self.find_records(kind, vm=vm, since=since, **data))

    def mark(self) -> int:
        """Return this moment, to pass as `since`."""
        return Mark(len(self.records()))

    def mark_after(self, record: Record) -> int:
        """Return the number of records up to this one, to pass as `since`."""
        return self.records().index(record) + 1
