"""`qmp-agent demo`: runs two small guests and an agent that watches them, provokes events and prints the records."""

import asyncio
import contextlib
import itertools
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Coroutine
from pathlib import Path

import orjson

from agent.alerts.alertmanager_config import AlertmanagerConfig
from agent.app.agent import Agent
from agent.app.builders import StartError
from agent.cli.demo.guest import FAST_PAUSE_SECONDS, Guest, GuestKind, GuestOptions, wait_until
from agent.cli.demo.guest_qmp_client import GuestError
from agent.cli.demo.images import MissingDependencyError, cache_directory, linux_image
from agent.cli.record_text import format_record
from agent.common.errors import SubcommandError
from agent.config.model import AlertsConfig, AllowedQemuChangesConfig, Config, IntervalsConfig
from agent.config.web import WebSectionConfig
from agent.delivery.sinks.jsonl import JsonLinesConfig
from agent.guest.config import GuestAgentConfig, GuestIntervalsConfig
from agent.http.record_stream import Subscriber
from agent.monitors import DialConfig
from agent.runtime.logging import configure_logging
from agent.session.shared_types import MonitorState

LISTEN_ADDRESSES = ("127.0.0.1:9179", "127.0.0.1:0")
"""Addresses of the endpoint to try in order: the default address, and then any free port."""

MEMORY_MIB = 128

GUEST_INTERVALS = GuestIntervalsConfig(filesystems=2.0, cpu=5.0, disks=5.0, network=5.0, freeze=5.0)

PRINTED_SAMPLES = frozenset(
    f"qemu.sample.{name}" for name in ("block", "balloon", "guest_memory", "runstate", "migration", "job")
)
"""Record types of the samples to print. The other samples are too many to read."""

BOOT_SECONDS = 120.0
"""Timeout for the boot of a guest. The demo continues after the timeout."""

EVENT_SECONDS = 30.0
"""Timeout for an event that a guest causes. The demo continues after the timeout."""


class DemoError(SubcommandError):
    """The demo cannot run on this machine."""


async def run_demo(seconds: float | None, out: Path | None, alertmanager: AlertmanagerConfig | None = None) -> None:
    """Run the demo until interrupted.

    Args:
        seconds: maximum duration from the start of the guests; None for no maximum.
        out: the file for all records, one per line. An existing file is replaced. None for a temporary file.
        alertmanager: the Alertmanager to send alerts to, or None.

    Raises:
        DemoError: QEMU or another program is missing.
    """
    configure_logging("error", "auto")  # the records report everything else
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with tempfile.TemporaryDirectory(prefix="qmp-agent-demo-") as name:
        folder = Path(name)
        records = out if out is not None else folder / "records.jsonl"
        alerts = AlertsConfig(alertmanager=alertmanager)
        try:
            records.unlink(missing_ok=True)
            await _prepare_linux_image()
            async with asyncio.timeout(None) as deadline, _run_guests(folder, records, alerts) as (subscriber, guests):
                if seconds is not None:
                    deadline.reschedule(asyncio.get_running_loop().time() + seconds)
                await _run_until(stop, _print_records(subscriber), _provoke_events(*guests))
        except TimeoutError:
            pass
        except (GuestError, MissingDependencyError, StartError, OSError) as error:
            raise DemoError(str(error)) from error
        if out is not None:
            _print(f"{sum(1 for _ in records.open('rb'))} records written to {out}")


def _print(text: str) -> None:
    sys.stdout.write(f"\n  {text}\n\n")
    sys.stdout.flush()


async def _prepare_linux_image() -> None:
    if not any(cache_directory().glob("linux-guest-*")):
        _print("downloading Debian's cloud kernel for the Linux guest, about 30 MB (only once)")
    await asyncio.to_thread(linux_image)


@contextlib.asynccontextmanager
async def _run_guests(
    folder: Path, records: Path, alerts: AlertsConfig
) -> AsyncIterator[tuple[Subscriber, tuple[Guest, Guest]]]:
    """Run two guests and the agent during the `with` block. Yield a subscriber to the agent's records, and the guests."""
    linux = GuestOptions(kind=GuestKind.LINUX, memory_mib=MEMORY_MIB, disk_mib=256, guest_agent=True, fill_seconds=0.3)
    web = Guest(folder, "web-1", linux)
    writer = GuestOptions(kind=GuestKind.WRITER, disk_mib=1024, pause_seconds=FAST_PAUSE_SECONDS)
    db = Guest(folder, "db-1", writer)
    async with _run_agent(folder, records, alerts) as (agent, url):
        # Subscribe before the guests start, to get every record.
        with agent.publisher.broadcaster.subscribe(Subscriber()) as subscriber:
            async with _wait_for_end_reports(agent), web, db:
                _print(
                    f"booting two guests: {web.name} runs Linux with a balloon and a guest agent, and fills a file system; "
                    f"{db.name} only writes to a thin disk"
                )
                _print(f"page     {url}/\n  metrics  {url}/metrics\n  records  {_agent_command()} tail --url {url}")
                yield subscriber, (web, db)


@contextlib.asynccontextmanager
async def _wait_for_end_reports(agent: Agent) -> AsyncIterator[None]:
    """At the end of the `with` block, wait until the agent has reported the end of each guest.

    An agent that stops earlier only reports that the agent detached from the guests.
    """
    try:
        yield
    finally:
        states = agent.snapshot.monitors.values()
        await _wait_ignoring_timeout(
            wait_until(lambda: all(status.state is not MonitorState.UP for status in states), EVENT_SECONDS)
        )


def _agent_command() -> str:
    """Return the shell command that runs this `qmp-agent`."""
    if shutil.which("qmp-agent"):
        return "qmp-agent"
    return f"{sys.executable} -m agent" if Path(sys.argv[0]).name == "__main__.py" else sys.argv[0]


@contextlib.asynccontextmanager
async def _run_agent(folder: Path, records: Path, alerts: AlertsConfig) -> AsyncIterator[tuple[Agent, str]]:
    for listen in LISTEN_ADDRESSES:
        agent = Agent(
            Config(
                monitors=[DialConfig(dial=f"{folder}/*.qmp")],
                jsonl=JsonLinesConfig(path=records, max_size=1 << 40),
                web=WebSectionConfig(listen_address=listen),
                intervals=IntervalsConfig(poll=2.0, guest_memory=5.0),
                allow=AllowedQemuChangesConfig(guest_stats_interval=2.0),
                alerts=alerts,
                guest_agent=GuestAgentConfig(enabled=True, intervals=GUEST_INTERVALS),
            )
        )
        try:
            async with agent.run_in_background() as url:
                yield agent, url
                return
        except StartError:
            if listen == LISTEN_ADDRESSES[-1]:
                raise


async def _run_until(stop: asyncio.Event, *coroutines: Coroutine[None, None, None]) -> None:
    """Run coroutines until `stop` is set or one of them returns or fails. Then cancel the others."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
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
        if kind.startswith("qemu.sample.") and kind not in PRINTED_SAMPLES:
            continue
        width = shutil.get_terminal_size().columns if colour else 0
        sys.stdout.write(format_record(orjson.loads(record.body), width=width, colour=colour) + "\n")
        sys.stdout.flush()


async def _wait_ignoring_timeout(guest: Awaitable[object]) -> None:
    """Wait for a guest, and ignore a timeout, because a guest boots and writes slowly on a busy machine."""
    with contextlib.suppress(TimeoutError):
        await guest


async def _provoke_events(web: Guest, db: Guest) -> None:
    """Provoke events until cancelled: cross a write threshold, pause and resume a guest, inflate and deflate a balloon."""
    await _wait_ignoring_timeout(db.wait_until_booted(BOOT_SECONDS))
    for round_number in itertools.count():
        offset = await db.highest_written_offset()
        _print(f"setting a write threshold 1 MiB above the last write of {db.name}, which will cross it soon")
        await db.command("block-set-write-threshold", node_name="disk0-storage", write_threshold=offset + (1 << 20))
        await _wait_ignoring_timeout(db.wait_for_event("BLOCK_WRITE_THRESHOLD", EVENT_SECONDS))
        _print(f"pausing and resuming {db.name}")
        await db.command("stop")
        await asyncio.sleep(1.0)
        await db.command("cont")
        if round_number == 0:
            await _wait_ignoring_timeout(web.wait_until_booted(BOOT_SECONDS))
        _print(f"inflating the balloon of {web.name}: it takes 32 of {MEMORY_MIB} MiB")
        await web.command("balloon", value=(MEMORY_MIB - 32) << 20)
        await _wait_ignoring_timeout(web.wait_for_event("BALLOON_CHANGE", EVENT_SECONDS))
        await asyncio.sleep(3.0)
        _print(f"deflating the balloon of {web.name}")
        await web.command("balloon", value=MEMORY_MIB << 20)
        await asyncio.sleep(10.0)
