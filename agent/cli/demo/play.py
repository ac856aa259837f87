"""`qmp-agent demo`: runs two real guests and an agent that watches them, provokes events and prints the records."""

import asyncio
import contextlib
import itertools
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path

import orjson

from agent.app.agent import Agent
from agent.app.builders import StartError
from agent.cli.demo.control import GuestError
from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from agent.cli.demo.images import LabMissing, cache_folder, linux_image
from agent.cli.format import line
from agent.common.errors import CommandFailedError
from agent.config.model import AlertmanagerConfig, AlertsConfig, AllowConfig, Config, IntervalsConfig, WebConfig
from agent.delivery.sinks.jsonl import JsonLinesConfig
from agent.http.record_stream import Subscriber
from agent.monitors import DialConfig
from agent.runtime.logging import configure_logging

PORTS = ("127.0.0.1:9179", "127.0.0.1:0")
"""The endpoint's default address, or any free port if an agent uses that already."""

MEMORY_MIB = 128

SHOWN = frozenset(
    f"qemu.sample.{name}" for name in ("block", "balloon", "guest_memory", "runstate", "migration", "job")
)
"""Samples to print. The others are too many to read; the page shows them."""


class DemoError(CommandFailedError):
    """The demo cannot run on this machine."""


async def play(seconds: float | None, out: Path | None, alertmanager: AlertmanagerConfig | None = None) -> None:
    """Run the demo until interrupted.

    Args:
        seconds: maximum duration in seconds, from the start of the guests; None for no limit.
        out: the file for the records, one per line, which is replaced; None for a temporary file.
        alertmanager: the Alertmanager to send alerts to, or None.

    Raises:
        DemoError: QEMU or another program is missing.
    """
    configure_logging("error", "auto")  # the records show the rest
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with tempfile.TemporaryDirectory(prefix="qmp-agent-demo-") as name:
        folder = Path(name)
        records = out if out is not None else folder / "records.jsonl"
        alerts = AlertsConfig(alertmanager=alertmanager)
        try:
            records.unlink(missing_ok=True)
            await _prepare()
            async with asyncio.timeout(None) as deadline, _stage(folder, records, alerts) as (subscriber, guests):
                if seconds is not None:
                    deadline.reschedule(asyncio.get_running_loop().time() + seconds)
                await _until(stop, _print_records(subscriber), _story(*guests))
        except TimeoutError:
            pass
        except (GuestError, LabMissing, StartError, OSError) as error:
            raise DemoError(str(error)) from error
        if out is not None:
            _print(f"{sum(1 for _ in records.open('rb'))} records written to {out}")


def _print(text: str) -> None:
    sys.stdout.write(f"\n  {text}\n\n")
    sys.stdout.flush()


async def _prepare() -> None:
    if not any(cache_folder().glob("linux-guest-*")):
        _print("downloading Debian's cloud kernel for the Linux guest, about 30 MB (only once)")
    await asyncio.to_thread(linux_image)


@contextlib.asynccontextmanager
async def _stage(
    folder: Path, records: Path, alerts: AlertsConfig
) -> AsyncIterator[tuple[Subscriber, tuple[Guest, Guest]]]:
    """Run two guests and the agent while the block runs."""
    web = Guest(folder, "web-1", GuestOptions(kind=GuestKind.LINUX, memory_mib=MEMORY_MIB, disk_mib=256))
    db = Guest(folder, "db-1", GuestOptions(kind=GuestKind.WRITER, disk_mib=1024))
    async with _agent(folder, records, alerts) as (app, url):
        with app.publisher.broadcaster.subscribe(Subscriber()) as subscriber:  # before the guests, to get every record
            async with web, db:
                _print(
                    f"booting two guests: {web.name} runs Linux with a balloon, {db.name} only writes to a thin disk"
                )
                _print(f"page     {url}/\n  metrics  {url}/metrics\n  records  {_command()} tail --url {url}")
                yield subscriber, (web, db)


def _command() -> str:
    """Return how to run `qmp-agent` from here."""
    if shutil.which("qmp-agent"):
        return "qmp-agent"
    return f"{sys.executable} -m agent" if Path(sys.argv[0]).name == "__main__.py" else sys.argv[0]


@contextlib.asynccontextmanager
async def _agent(folder: Path, records: Path, alerts: AlertsConfig) -> AsyncIterator[tuple[Agent, str]]:
    for listen in PORTS:
        app = Agent(
            Config(
                monitors=[DialConfig(dial=f"{folder}/*.qmp")],
                jsonl=JsonLinesConfig(path=records, max_size=1 << 40),
                web=WebConfig(listen_address=listen),
                intervals=IntervalsConfig(poll=2.0, guest_memory=5.0),
                allow=AllowConfig(guest_stats_interval=2.0),
                alerts=alerts,
            )
        )
        try:
            async with app.running() as url:
                yield app, url
                return
        except StartError:
            if listen == PORTS[-1]:
                raise


async def _until(stop: asyncio.Event, *acts: Coroutine[None, None, None]) -> None:
    """Run the acts until `stop` is set or one of them ends or fails."""
    tasks = [asyncio.create_task(act) for act in acts]
    stopped = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (stopped, *tasks):
            task.cancel()
        await asyncio.gather(stopped, *tasks, return_exceptions=True)


async def _print_records(subscriber: Subscriber) -> None:
    """Print records until cancelled."""
    colour = sys.stdout.isatty()
    while True:
        record = await subscriber.get()
        kind = record.type
        if kind.startswith("qemu.sample.") and kind not in SHOWN:
            continue
        width = shutil.get_terminal_size().columns if colour else 0
        sys.stdout.write(line(orjson.loads(record.body), width=width, colour=colour) + "\n")
        sys.stdout.flush()


async def _story(web: Guest, db: Guest) -> None:
    """Provoke events in turn: cross a write threshold, pause and resume a guest, inflate and deflate a balloon."""
    await db.booted()
    for turn in itertools.count():
        offset = await db.highest_write()
        _print(f"setting a write threshold 1 MiB above the last write of {db.name}, which will cross it soon")
        await db.command("block-set-write-threshold", node_name="disk0-storage", write_threshold=offset + (1 << 20))
        await db.event("BLOCK_WRITE_THRESHOLD", 30.0)
        _print(f"pausing and resuming {db.name}")
        await db.command("stop")
        await asyncio.sleep(1.0)
        await db.command("cont")
        if turn == 0:
            await web.booted()
        _print(f"inflating the balloon of {web.name}: it takes 32 of {MEMORY_MIB} MiB")
        await web.command("balloon", value=(MEMORY_MIB - 32) << 20)
        await web.event("BALLOON_CHANGE", 30.0)
        await asyncio.sleep(3.0)
        _print(f"deflating the balloon of {web.name}")
        await web.command("balloon", value=MEMORY_MIB << 20)
        await asyncio.sleep(10.0)
