"""`qmp-agent check`: tries what a config names and says what it found, without watching or delivering anything."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from agent.app import sink, terms
from agent.config import Config
from agent.delivery.jsonl import JsonLines
from agent.delivery.kafka_access import expand
from agent.delivery.sink import SinkError
from agent.journal_tool import set_aside
from agent.monitors import Dial, Monitor
from agent.qmp.errors import QmpError
from agent.record import clean
from agent.vm import identity
from agent.vm.status import Terms
from agent.web.endpoint import Door, EndpointError, is_loopback

MAX_AT_ONCE = 50


async def check(config: Config) -> AsyncIterator[tuple[bool, str]]:
    """Yield findings as they are made: whether each is good, and what it is in words."""
    settled = terms(config)
    for entry in config.monitors:
        found = list(Dial(entry.dial).scan().values())
        if not found:
            yield _nothing(entry.dial)
        gate = asyncio.Semaphore(MAX_AT_ONCE)
        for finding in asyncio.as_completed([_monitor(monitor, settled, gate) for monitor in found]):
            yield await finding
    for said in _journal(config):
        yield said
    yield await _endpoint(config)
    yield await _sink(config)


def _journal(config: Config) -> Iterator[tuple[bool, str]]:
    if config.kafka is None:
        return
    folder = config.journal.folder
    there = folder if folder.exists() else next(parent for parent in folder.parents if parent.exists())
    if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
        yield False, f"{folder}: events cannot be journaled: {there} cannot be written by this user"
        return
    yield True, f"events are journaled in {folder}"
    for aside in set_aside(folder):
        yield (
            False,
            f"{aside}: a damaged journal that was set aside; see `qmp-agent journal`, and remove it when it is not needed",
        )


def _nothing(pattern: str) -> tuple[bool, str]:
    folder = Path(pattern).parent
    if not any(c in str(folder) for c in "*?[") and not folder.is_dir():
        return False, f"{pattern}: there is no folder {folder}"
    return True, f"{pattern}: no socket there now; it is looked for as long as the agent runs"


async def _monitor(monitor: Monitor, settled: Terms, gate: asyncio.Semaphore) -> tuple[bool, str]:
    name = clean(monitor.name)
    async with gate:
        try:
            client = await monitor.open(settled.allow, lambda _: None, deadline=settled.greeting_seconds)
        except QmpError as error:
            return False, f"{name}: {error}"
        try:
            answers = await client.ask(identity.WHO, deadline=settled.reply_seconds)
        except QmpError as error:
            return False, f"{name}: {error}"
        finally:
            client.close()
        vm = identity.who(settled.host, monitor.name, answers)
        assert client.greeting is not None
        return True, f"{name}: {vm.name} ({vm.uuid}), QEMU {identity.build(client.greeting).version}"


async def _endpoint(config: Config) -> tuple[bool, str]:
    listen, path = config.prometheus.listen, config.prometheus.web_config
    try:
        door = await asyncio.to_thread(Door.read, expand(path) if path is not None else None)
    except (EndpointError, ValueError) as error:
        return False, str(error)
    if door.config.asks_who:
        return True, f"{listen} asks who reads, as {path} says"
    if is_loopback(listen):
        return True, f"{listen} can be read by all on this host"
    return True, f"{listen} can be read by all who reach it: prometheus.web_config can ask them who they are"


async def _sink(config: Config) -> tuple[bool, str]:
    to = sink(config)
    if isinstance(to, JsonLines) and config.jsonl.file is None:
        return True, "records go to standard output, since there is neither kafka nor jsonl.file"
    try:
        await to.open()
    except SinkError as error:
        return False, f"{to.name}: {error}"
    await to.close()
    return True, f"records go to {to.name}"
