"""Runs the agent in a separate process, and reads the agent's records, metrics and log."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import aiohttp
import yaml
from prometheus_client.parser import text_string_to_metric_families

from agent.model.metrics import FAMILIES
from agent.model.metrics.guest import GUEST_AGENT_SESSION
from tests.lab.agent_forks import ForkedAgent
from tests.lab.machine import free_port
from tests.lab.waiting import DEADLINE_SECONDS, until

COMMAND: Final = (sys.executable, "-m", "tests.lab.command_audit")
"""The command line that runs `qmp-agent` with the tests' Python. The command audit records what this agent sends to QEMU."""

_REQUEST_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 300.0
_PATIENT: Final = {"response": "120s", "greeting": "120s"}
"""Timeouts of an agent whose test is not about them: no QEMU counts as stalled or busy because the machine is loaded."""

_ON_CHANGE: Final = frozenset(family.type for family in FAMILIES if family.on_change) - {GUEST_AGENT_SESSION.type}
"""Types of the samples that are records only after a change. Such a record may have the time of a poll that began before the change.

A record of the session with a guest agent has the time of the change itself, because that family is not polled.
"""

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


async def run_command(*arguments: str | Path, timeout: float = DEADLINE_SECONDS) -> FinishedCommand:  # noqa: ASYNC109 - the deadline is the point
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

    def __init__(self, folder: Path, config: Mapping[str, Any], *, name: str = "agent", is_forked: bool = True) -> None:
        """Write the config file.

        Added are the endpoint, timeouts that a loaded machine does not exceed unless the config has its own, a journal if there is a
        Kafka sink, and a file sink if there is no sink.

        Args:
            folder: The directory of the agent's files. Their names begin with `name`.
            config: The content of the config file.
            name: The name of the config file without its ending.
            is_forked: Whether the process is a fork that has imported the agent, which starts faster. A fork has the command line and
                the memory of the process that it was forked from.
        """
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = folder / f"{name}.yaml"
        self.sink = folder / f"{name}.jsonl"
        self.process: asyncio.subprocess.Process | ForkedAgent | None = None
        self._is_forked = is_forked
        self._out = folder / f"{name}.out"
        self._log = folder / f"{name}.log"
        self._read = 0
        self._records: list[Record] = []
        whole = {"host": "hv7", "web": {"listen_address": f"127.0.0.1:{self.port}"}, **config}
        whole["timeouts"] = _PATIENT | config.get("timeouts", {})
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
            self.process = process = await self._start_process(("run", "--config", str(self.config)), out, log)

        async def ended_or_healthy() -> bool:
            with contextlib.suppress(aiohttp.ClientConnectionError, TimeoutError):
                return process.returncode is not None or (await self.get("/healthz"))[0] in (200, 401)
            return False

        await until(ended_or_healthy)
        assert process.returncode is None, f"the agent ended with {process.returncode}: {self.log}"

    async def _start_process(
        self, arguments: Sequence[str], out: BinaryIO, log: BinaryIO
    ) -> asyncio.subprocess.Process | ForkedAgent:
        if self._is_forked:
            return ForkedAgent(arguments, out, log)
        return await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", *COMMAND, *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=log,
        )

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
        """The whole lines on standard error so far."""
        return self._read_lines(self._log)

    @property
    def out(self) -> str:
        """The whole lines on standard output so far."""
        return self._read_lines(self._out)

    @staticmethod
    def _read_lines(path: Path) -> str:
        """Return the lines of a file without an incomplete last line, which its writer has not finished."""
        text, line_end, _ = (path.read_bytes() if path.exists() else b"").rpartition(b"\n")
        return (text + line_end).decode()

    async def get(self, path: str) -> tuple[int, str]:
        """Send a GET request for a path to the endpoint. Return the response's status and text."""
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_REQUEST_SECONDS)) as session,
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

    def find_records(
        self, kind: str, /, *, vm: str = "", subject: str | None = None, since: int = 0, **data: Any
    ) -> Iterator[Record]:
        """Yield the records that match.

        Args:
            kind: The type without the prefix `qemu.`.
            vm: UUID or name of the VM; empty for any.
            subject: The record's subject; None for any.
            since: A moment, as `mark` returned it. Older records are skipped, and so are samples of a poll that had begun before.
            data: Fields that the record's data must have.
        """
        begin = since.time if isinstance(since, Mark) and f"qemu.{kind}" not in _ON_CHANGE else 0.0
        for record in self.records()[since:]:
            if (
                record["type"] == f"qemu.{kind}"
                and vm in ("", record.get("vmuuid"), record.get("vmname"))
                and subject in (None, record.get("subject"))
                and data.items() <= record["data"].items()
                and not (kind.startswith("sample.") and record_time(record) < begin)
            ):
                yield record

    async def wait_for_record(
        self,
        kind: str,
        /,
        *,
        vm: str = "",
        subject: str | None = None,
        since: int = 0,
        timeout: float = DEADLINE_SECONDS,  # noqa: ASYNC109 - as in `until`
        **data: Any,
    ) -> Record:
        """Wait until `find_records` yields a record for these arguments, and return the first record.

        Raises:
            AssertionError: No record matched in time. The message has the types of the new records, and the log.
        """
        try:
            await until(lambda: any(self.find_records(kind, vm=vm, subject=subject, since=since, **data)), timeout)
        except TimeoutError:
            types = [record["type"] for record in self.records()[since:]]
            raise AssertionError(f"no {kind} of {vm} within {timeout:g} s, but {types}; {self.log}") from None
        return next(self.find_records(kind, vm=vm, subject=subject, since=since, **data))

    async def fresh_metrics(self, kind: str, /, **labels: Any) -> Scrape:
        """Scrape the agent's /metrics after a poll that began after this call.

        Args:
            kind: The kind of a sample of this poll, such as `sample.block`. It must not be of a family that reports only changes.
            labels: Arguments of `find_records`, such as `vm`.
        """
        assert f"qemu.{kind}" not in _ON_CHANGE, kind
        await self.wait_for_record(kind, since=self.mark(), **labels)
        return await self.metrics()

    def mark(self) -> Mark:
        """Return this moment, to pass as `since`. Call it before the action whose effects the test waits for."""
        return Mark(len(self.records()))

    def mark_after(self, record: Record) -> int:
        """Return the number of records up to this one, to pass as `since`."""
        return self.records().index(record) + 1
