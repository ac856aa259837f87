"""The agent as a process of its own, and what it tells: its records, its series, its log."""

import asyncio
import contextlib
import json
import os
import signal
import sys
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
"""`qmp-agent`, run by the interpreter that runs the tests, and what it says to monitors written down."""

_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 15.0

Record = dict[str, Any]
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class FinishedCommand:
    """How a command ended.

    Attributes:
        status: its exit status.
        out: what it wrote to standard output.
        log: what it wrote to standard error.
    """

    status: int
    out: str
    log: str


async def run_command(*arguments: str | Path, timeout: float = 20.0) -> FinishedCommand:  # noqa: ASYNC109 - the deadline is the point
    """Run `qmp-agent` with these arguments to its end.

    Raises:
        TimeoutError: it did not end in time.
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
    """A scrape, read by another program than the one that wrote it.

    Attributes:
        text: the whole of it.
        values: by name and labels.
    """

    text: str
    values: Mapping[tuple[str, Labels], float]

    @classmethod
    def read(cls, text: str) -> Self:
        """Read a scrape; a family or a series that is there twice is an error, as it is to Prometheus."""
        values: dict[tuple[str, Labels], float] = {}
        families = set()
        for family in text_string_to_metric_families(text):
            assert family.name not in families, f"{family.name} is there twice"
            families.add(family.name)
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in values, f"{sample.name}{sample.labels} is there twice"
                values[key] = float(sample.value)
        return cls(text, values)

    def matching(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """Return the labels and values of all series of that name that have these labels among theirs."""
        wanted = labels.items()
        return [(dict(has), value) for (its, has), value in self.values.items() if its == name and wanted <= has]

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of the only such series; None where there is none."""
        found = self.matching(name, **labels)
        assert len(found) < 2, found
        return found[0][1] if found else None

    def names_of(self, uuid: str) -> list[str]:
        """Return the names of the series that a VM has."""
        return sorted(name for name, labels in self.values if ("vm_uuid", uuid) in labels)


def record_time(record: Record) -> float:
    """Return a record's time, in seconds since 1970."""
    return datetime.fromisoformat(record["time"]).timestamp()


class AgentProcess:
    """`qmp-agent run` with a config; as an async context manager it runs from entering to leaving.

    Attributes:
        config: the config's file.
        port: where its endpoint listens.
        url: its endpoint.
        sink: the file its records go to, unless the config says something else.
        process: its process, None before start and after stop.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], *, name: str = "agent") -> None:
        """Write the config, with an endpoint, a journal of its own and, where it names no way out, a file for the records."""
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
        """Start it and return when its endpoint answers.

        Raises:
            AssertionError: it ended instead; with its log.
        """
        with self._out.open("ab") as out, self._log.open("ab") as log:
            self.process = process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", *COMMAND, "run", "--config", str(self.config)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=log,
            )

        async def settled() -> bool:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                return process.returncode is not None or (await self.get("/healthz"))[0] in (200, 401)
            return False

        await until(settled, _START_SECONDS)
        assert process.returncode is None, f"the agent ended with {process.returncode}: {self.log}"

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> FinishedCommand:
        """Send it a signal and return how it ended.

        Raises:
            TimeoutError: it did not end in time; it is killed then.
        """
        process = self.process
        assert process is not None, "it does not run"
        self.send_signal(number)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                status = await process.wait()
        finally:
            await self.kill()
        return FinishedCommand(status, self._out.read_text(), self.log)

    async def kill(self) -> None:
        """End it as a crash would, if it runs."""
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

    # What it tells.

    @property
    def log(self) -> str:
        """What it has written to standard error."""
        return self._log.read_text() if self._log.exists() else ""

    @property
    def out(self) -> str:
        """What it has written to standard output."""
        return self._out.read_text() if self._out.exists() else ""

    async def get(self, path: str) -> tuple[int, str]:
        """Ask its endpoint; return the status and the text."""
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as session,
            session.get(self.url + path) as response,
        ):
            return response.status, await response.text()

    async def metrics(self) -> Scrape:
        """Scrape it."""
        status, text = await self.get("/metrics")
        assert status == 200, text
        return Scrape.read(text)

    def records(self) -> list[Record]:
        """Return all records in its file so far, in order; of a file that is not rotated."""
        with contextlib.suppress(FileNotFoundError), self.sink.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
            self._read += len(whole + newline)
            self._records += map(json.loads, whole.splitlines())
        return self._records

    def find_records(self, kind: str, *, vm: str = "", since: int = 0, **data: Any) -> Iterator[Record]:
        """Yield the records of a type, without its `qemu.`, of a VM by UUID or name, that have this data; from the `since`th on."""
        for record in self.records()[since:]:
            if (
                record["type"] == f"qemu.{kind}"
                and vm in ("", record.get("vmuuid"), record.get("vmname"))
                and data.items() <= record["data"].items()
            ):
                yield record

    async def wait_for_record(
        self,
        kind: str,
        *,
        vm: str = "",
        since: int = 0,
        timeout: float = 10.0,  # noqa: ASYNC109 - as in `until`
        **data: Any,
    ) -> Record:
        """Wait for such a record and return the first.

        Raises:
            AssertionError: none came in time.
        """
        try:
            await until(lambda: any(self.find_records(kind, vm=vm, since=since, **data)), timeout)
        except TimeoutError:
            types = [record["type"] for record in self.records()[since:]]
            raise AssertionError(f"no {kind} of {vm} within {timeout:g} s, but {types}; {self.log}") from None
        return next(self.find_records(kind, vm=vm, since=since, **data))

    def mark(self) -> int:
        """Return how many records there are, for `since`."""
        return len(self.records())
