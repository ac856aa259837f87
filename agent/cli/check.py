"""`qmp-agent check`: tries what a config names and says what it found, without watching or delivering anything."""

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from agent.app.builders import build_discoverers, build_sink, session_settings
from agent.cli.journal import quarantined_files
from agent.collectors import ALL_FEATURES, Collector
from agent.common.config_types import expand
from agent.config.model import Config
from agent.delivery.sinks.base import SinkError
from agent.http.server import is_loopback
from agent.http.web_config import EndpointError, LoadedWebConfig
from agent.model.record import sanitize
from agent.monitors import DialDiscoverer, Discoverer, ListenDiscoverer, Monitor
from agent.qmp.errors import BusyError, DeniedError, QmpError
from agent.session import host_process, identity
from agent.session.api import SessionContext

MAX_AT_ONCE = 50

WAY_SECONDS = 10.0
"""How long a way that has to be connected to may take to say how it stands."""


async def check(config: Config) -> AsyncIterator[tuple[bool, str]]:
    """Yield findings as they are made: whether each is good, and what it is in words."""
    context = SessionContext(session_settings(config))
    for way in build_discoverers(config).values():
        async with _looking(way) as (found, of_itself):
            for finding in of_itself:
                yield finding
            gate = asyncio.Semaphore(MAX_AT_ONCE)
            for checked in asyncio.as_completed([_monitor(monitor, context, gate) for monitor in found]):
                yield await checked
    for build, commands in context.build_commands.items():
        if lacks := list(_lacks(commands, context.collectors.by_name.values())):
            yield True, f"QEMU {build.version}: {'; '.join(lacks)}"
    for said in _journal(config):
        yield said
    yield await _endpoint(config)
    yield await _sink(config)


class _Seen:
    """What a way finds until it has said how it stands."""

    def __init__(self) -> None:
        self.monitors: dict[tuple[object, ...], Monitor] = {}
        self.stood: asyncio.Future[tuple[bool, str]] = asyncio.get_running_loop().create_future()

    def on_monitor_added(self, monitor: Monitor) -> None:
        self.monitors[monitor.key] = monitor

    def on_monitor_removed(self, monitor: Monitor) -> None:
        self.monitors.pop(monitor.key, None)

    def on_status(self, way: Monitor, trouble: QmpError | None, note: str = "") -> None:
        text = str(trouble) if trouble is not None else f"{len(self.monitors)} running" + (f"; {note}" if note else "")
        if not self.stood.done():
            self.stood.set_result((trouble is None and not note, f"{sanitize(way.name)}: {text}"))

    def on_connection_refused(self, address: str, reason: str) -> None:
        """Nobody is asked here to be let in."""


@contextlib.asynccontextmanager
async def _looking(way: Discoverer) -> AsyncIterator[tuple[list[Monitor], list[tuple[bool, str]]]]:
    """Yield the monitors that a way finds now, and what is to be said of the way itself; it works for as long as the block runs."""
    if isinstance(way, DialDiscoverer):
        monitors = list(way.scan().values())
        yield monitors, [] if monitors else [_nothing(way.pattern)]
        return
    if isinstance(way, ListenDiscoverer):
        yield [], [_listens(way)]
        return
    seen = _Seen()
    watching = asyncio.create_task(way.run(seen))
    try:
        async with asyncio.timeout(WAY_SECONDS):
            said = await seen.stood
        yield list(seen.monitors.values()), [said]
    except TimeoutError:
        yield [], [(False, f"{way}: nothing was heard of it for {WAY_SECONDS:g} s")]
    finally:
        watching.cancel()
        await asyncio.wait({watching})


def _journal(config: Config) -> Iterator[tuple[bool, str]]:
    if not config.sink.journaled:
        return
    folder = config.journal.directory
    there = folder if folder.exists() else next(parent for parent in folder.parents if parent.exists())
    if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
        yield False, f"{folder}: events cannot be journaled: {there} cannot be written by this user"
        return
    yield True, f"events are journaled in {folder}"
    for aside in quarantined_files(folder):
        yield (
            False,
            f"{aside}: a damaged journal that was set aside; see `qmp-agent journal`, and remove it when it is not needed",
        )


def _nothing(pattern: str) -> tuple[bool, str]:
    folder = Path(pattern).parent
    if not any(c in str(folder) for c in "*?[") and not folder.is_dir():
        return False, f"{pattern}: there is no folder {folder}"
    return True, f"{pattern}: no socket there now; it is looked for as long as the agent runs"


def _listens(way: ListenDiscoverer) -> tuple[bool, str]:
    try:
        way.bind().close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return True, f"{way.address}: something listens there already, the agent it is to be hoped"
        return False, f"{way.address}: cannot be listened on: {error.strerror or error}"
    if not way.address.startswith("tcp:"):
        Path(way.address).unlink(missing_ok=True)
    return True, f"{way.address}: can be listened on"


async def _monitor(monitor: Monitor, context: SessionContext, gate: asyncio.Semaphore) -> tuple[bool, str]:
    name = sanitize(monitor.name)
    async with gate:
        try:
            client = await monitor.open(context.allow, lambda _: None, deadline=context.settings.greeting_seconds)
        except (BusyError, DeniedError) as error:
            return False, f"{name}: {error}; `sudo qmp-agent doctor` says more"
        except QmpError as error:
            return False, f"{name}: {error}"
        try:
            answers = await client.execute(
                (*identity.IDENTITY, identity.LIST_COMMANDS), deadline=context.settings.response_seconds
            )
        except QmpError as error:
            return False, f"{name}: {error}"
        finally:
            client.close()
        vm = identity.identify(context.settings.host, monitor.name, answers[:-1])
        assert client.greeting is not None
        build = identity.build_of(client.greeting)
        if commands := identity.command_names(answers[-1]):
            context.build_commands[build] = commands
        return True, f"{name}: {vm.name} ({vm.uuid}), QEMU {build.version}"


def _lacks(commands: frozenset[str], collectors: Iterable[Collector]) -> Iterator[str]:
    """Yield which collectors are off for a QEMU that understands no more than these, or tell less, and why."""
    facts = replace(ALL_FEATURES, commands=commands)
    for collector in collectors:
        asks = (
            *(ask.name for ask in collector.commands(ALL_FEATURES)),
            *filter(None, [host_process.REQUIRED_COMMANDS.get(collector.name)]),
        )
        if missing := sorted({command for command in asks if command not in commands}):
            off = collector.missing_command(facts) or not collector.commands(facts)
            yield f"{collector.name} {'is off' if off else 'tells less'}, for there is no {' and no '.join(missing)}"


async def _endpoint(config: Config) -> tuple[bool, str]:
    listen, path = config.web.listen_address, config.web.config_file
    try:
        web_config = await asyncio.to_thread(LoadedWebConfig.read, expand(path) if path is not None else None)
    except EndpointError as error:
        return False, str(error)
    except OSError as error:
        return False, error.strerror or str(error)
    if web_config.config.authenticates:
        return True, f"{listen} asks who reads, as {path} says"
    if is_loopback(listen):
        return True, f"{listen} can be read by all on this host"
    return True, f"{listen} can be read by all who reach it: web.config_file can ask them who they are"


async def _sink(config: Config) -> tuple[bool, str]:
    to = build_sink(config)
    if config.sink is config.jsonl and config.jsonl.path is None:
        return True, "records go to standard output, since there is neither kafka nor jsonl.path"
    try:
        await to.open()
    except SinkError as error:
        return False, f"{to.name}: {error}"
    await to.close()
    return True, f"records go to {to.name}"
