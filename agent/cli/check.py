"""`qmp-agent check`: tests whether the agent can use the monitors, sink, Alertmanagers and files in a config. Delivers no record."""

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from agent.alerts.alertmanager import AlertmanagerClient
from agent.alerts.alertmanager_request import AlertmanagerRequests
from agent.app.builders import build_discoverers, build_sink, session_settings
from agent.cli.journal import quarantined_files
from agent.collectors import FACTS_WITH_ALL_FEATURES, Collector
from agent.common.config_types import expand_credentials_directory
from agent.config.model import Config
from agent.delivery.sinks.base import SinkError
from agent.http.server import bind_sockets, is_loopback
from agent.http.web_config import EndpointSetupError, LoadedWebConfig
from agent.model.record import sanitize
from agent.monitors import DialDiscoverer, Discoverer, ListenDiscoverer, Monitor
from agent.qmp.errors import ConnectPermissionError, MonitorBusyError, QmpError
from agent.session import host_process, identity_and_features
from agent.session.shared_types import SessionContext

MAX_CONCURRENT_CHECKS = 50
"""Maximum number of monitors that are checked at once."""

DISCOVERY_SECONDS = 10.0
"""Timeout in seconds for the connection of a discoverer, such as the connection to libvirtd."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The outcome of one check.

    Attributes:
        ok: whether the check passed.
        text: a line for the user: what was checked, and the outcome.
    """

    ok: bool
    text: str


def _passed(text: str) -> CheckResult:
    return CheckResult(ok=True, text=text)


def _failed(text: str) -> CheckResult:
    return CheckResult(ok=False, text=text)


async def run_all_checks(config: Config, watched: Collection[str] = ()) -> AsyncIterator[CheckResult]:
    """Run all checks of a config, and yield each result as soon as the check ends.

    Args:
        config: the config.
        watched: names of the monitors to which the running agent is connected. A connected monitor serves no other client.
    """
    context = SessionContext(session_settings(config))
    for discoverer in build_discoverers(config).values():
        async with _search_monitors(discoverer) as (monitors, results):
            for result in results:
                yield result
            slots = asyncio.Semaphore(MAX_CONCURRENT_CHECKS)
            for checked in asyncio.as_completed(
                [_check_monitor(monitor, context, watched, slots) for monitor in monitors]
            ):
                yield await checked
    for build, commands in context.build_commands.items():
        if limitations := list(_describe_missing_commands(commands, context.collectors.by_name.values())):
            yield _passed(f"QEMU {build.version}: {'; '.join(limitations)}")
    for result in _check_journal(config):
        yield result
    yield await _check_endpoint(config)
    for result in await _check_alertmanagers(config):
        yield result
    yield await _check_sink(config)


class _DiscoveryRecorder:
    """A DiscoveryListener that records the monitors and the first status that a discoverer reports."""

    def __init__(self) -> None:
        self.monitors: dict[tuple[object, ...], Monitor] = {}
        self.status: asyncio.Future[CheckResult] = asyncio.get_running_loop().create_future()

    def on_monitor_added(self, monitor: Monitor) -> None:
        self.monitors[monitor.key] = monitor

    def on_monitor_removed(self, monitor: Monitor) -> None:
        self.monitors.pop(monitor.key, None)

    def on_discovery_status(self, source: Monitor, error: QmpError | None, limitation: str = "") -> None:
        text = (
            str(error)
            if error is not None
            else f"{len(self.monitors)} running" + (f"; {limitation}" if limitation else "")
        )
        if not self.status.done():
            self.status.set_result(
                CheckResult(ok=error is None and not limitation, text=f"{sanitize(source.name)}: {text}")
            )

    def on_agent_refused_incoming_connection(self, address: str, reason: str) -> None:
        """Do nothing: `check` runs no `listen` discoverer, and other discoverers refuse no connection."""


@contextlib.asynccontextmanager
async def _search_monitors(discoverer: Discoverer) -> AsyncIterator[tuple[list[Monitor], list[CheckResult]]]:
    """Yield the monitors that a discoverer finds, and the results about the discoverer itself.

    A discoverer that needs a connection, such as libvirt's, stays connected while the `with` block runs.
    """
    if isinstance(discoverer, DialDiscoverer):
        monitors = list(discoverer.scan().values())
        yield monitors, [] if monitors else [_explain_missing_sockets(discoverer)]
        return
    if isinstance(discoverer, ListenDiscoverer):
        yield [], [_check_listen_address(discoverer)]
        return
    recorder = _DiscoveryRecorder()
    running = asyncio.create_task(discoverer.run(recorder))
    try:
        async with asyncio.timeout(DISCOVERY_SECONDS):
            status = await recorder.status
        yield list(recorder.monitors.values()), [status]
    except TimeoutError:
        yield [], [_failed(f"{discoverer}: no connection within {DISCOVERY_SECONDS:g} s")]
    finally:
        running.cancel()
        await asyncio.wait({running})


def _check_journal(config: Config) -> Iterator[CheckResult]:
    if not config.configured_sink_section.journaled:
        return
    directory = config.journal.directory
    existing = directory if directory.exists() else next(parent for parent in directory.parents if parent.exists())
    if not os.access(existing, os.W_OK | os.X_OK) or not existing.is_dir():
        yield _failed(f"journal: {directory} cannot be created or written: this user cannot write {existing}")
        return
    yield _passed(f"journal: {directory}")
    for path in quarantined_files(directory):
        text = f"journal: {path} is damaged and quarantined; see `qmp-agent journal`, and remove the file when you no longer need it"
        yield _failed(text)


def _explain_missing_sockets(discoverer: DialDiscoverer) -> CheckResult:
    if problem := discoverer.path_problem():
        return _failed(f"{discoverer.pattern}: {problem}")
    return _passed(f"{discoverer.pattern}: no socket exists now; the agent watches for new ones")


def _check_listen_address(discoverer: ListenDiscoverer) -> CheckResult:
    address = discoverer.address
    try:
        discoverer.bind().close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return _passed(f"{address}: address in use (probably by the running agent)")
        return _failed(f"{address}: cannot listen: {error.strerror or error}")
    if not address.startswith("tcp:"):
        Path(address).unlink(missing_ok=True)
    return _passed(f"{address}: the agent can listen")


async def _check_monitor(
    monitor: Monitor, context: SessionContext, watched: Collection[str], slots: asyncio.Semaphore
) -> CheckResult:
    name = sanitize(monitor.name)
    async with slots:
        try:
            client = await monitor.open(context.allow, lambda _: None, deadline=context.settings.greeting_seconds)
        except MonitorBusyError as error:
            if name in watched:
                return _passed(f"{name}: the running agent watches it")
            return _failed(f"{name}: {error}; run `sudo qmp-agent doctor` for details")
        except ConnectPermissionError as error:
            return _failed(f"{name}: {error}; run `sudo qmp-agent doctor` for details")
        except QmpError as error:
            return _failed(f"{name}: {error}")
        try:
            replies = await client.execute(
                (*identity_and_features.IDENTITY_COMMANDS, identity_and_features.QUERY_COMMANDS),
                deadline=context.settings.response_seconds,
            )
        except QmpError as error:
            return _failed(f"{name}: {error}")
        finally:
            client.close()
        vm = identity_and_features.identify(context.settings.host, monitor.name, replies[:-1])
        assert client.greeting is not None
        build = identity_and_features.qemu_build_of(client.greeting)
        if build.version and (commands := identity_and_features.parse_command_names(replies[-1])):
            context.build_commands[build] = commands
        return _passed(f"{name}: {vm.name} ({vm.uuid}), QEMU {build.version or 'of an unknown version'}")


def _describe_missing_commands(available: frozenset[str], collectors: Iterable[Collector]) -> Iterator[str]:
    """Yield a text for each collector that a missing command of QEMU turns off or limits."""
    features = replace(FACTS_WITH_ALL_FEATURES, commands=available)
    for collector in collectors:
        needed = {command.name for command in collector.commands(FACTS_WITH_ALL_FEATURES)}
        needed |= {*filter(None, [host_process.THREAD_LIST_COMMANDS.get(collector.name)])}
        if missing := sorted(needed - available):
            is_off = collector.missing_command(features) or not collector.commands(features)
            yield f"{collector.name} is {'off' if is_off else 'limited'} without {' and '.join(missing)}"


async def _check_endpoint(config: Config) -> CheckResult:
    address, path = config.web.listen_address, config.web.config_file
    try:
        web_config = await asyncio.to_thread(
            LoadedWebConfig.read, expand_credentials_directory(path) if path is not None else None
        )
        is_free = await asyncio.to_thread(_can_bind, address)
    except EndpointSetupError as error:
        return _failed(f"endpoint: {error}")
    except OSError as error:
        return _failed(f"endpoint: {error.strerror or error}")
    if not is_free:
        return _passed(f"endpoint: {address} is in use, by the running agent or by another program")
    if web_config.config.requires_authentication:
        return _passed(f"endpoint: {address} requires authentication ({path})")
    if is_loopback(address):
        return _passed(f"endpoint: {address} is readable by every user of this host")
    text = (
        f"endpoint: {address} is readable by every client that reaches it; web.config_file can require authentication"
    )
    return _passed(text)


def _can_bind(address: str) -> bool:
    """Return whether the agent can listen on the endpoint's address; False if the port is in use, probably by the running agent.

    Raises:
        EndpointSetupError: the agent cannot listen on the address.
    """
    try:
        for bound in bind_sockets(address):
            bound.close()
    except EndpointSetupError as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EADDRINUSE:
            raise
        return False
    return True


async def _check_alertmanagers(config: Config) -> list[CheckResult]:
    """Send a request without alerts to each Alertmanager."""
    if config.alerts.alertmanager is None:
        return []
    client = AlertmanagerClient(config.alerts.alertmanager, AlertmanagerRequests(config.host, time.time()))
    await client.probe()
    return [
        CheckResult(member.error is None, f"Alertmanager: {member.name}{f': {member.error}' if member.error else ''}")
        for member in client.members
    ]


async def _check_sink(config: Config) -> CheckResult:
    sink = build_sink(config)
    if config.configured_sink_section is config.jsonl and config.jsonl.path is None:
        return _passed("sink: standard output, because neither kafka nor jsonl.path is set")
    try:
        await sink.open()
    except SinkError as error:
        return _failed(f"sink: {sink.name}: {error}")
    await sink.close()
    return _passed(f"sink: {sink.name}")
