"""The config read again while the agent runs, at SIGHUP. A bad one changes nothing; a good one, all that needs no restart."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from agent.config.loader import ConfigError
from agent.config.model import Config

_log = logging.getLogger("agent")

LIVE = frozenset({"monitors", "intervals", "timeouts", "alerts", "allow", "labels", "limits", "log"})
"""Sections that are applied to a running agent. Any other takes a restart: records that wait, and open sockets, hang on them."""


def merge(running: Config, wanted: Config) -> tuple[Config, list[str]]:
    """Return the config to run by from here on, and the names of the sections that wait for a restart."""
    waiting = [name for name in type(wanted).model_fields if getattr(running, name) != getattr(wanted, name)]
    waiting = [name for name in waiting if name not in LIVE]
    return wanted.model_copy(update={name: getattr(running, name) for name in waiting}), waiting


class Reloadable(Protocol):
    """What takes a new config."""

    config: Config

    def apply(self, config: Config) -> None:
        """Run by this config from here on."""


class Reload:
    """Reads the config each time it is asked to, and remembers how that went.

    Attributes:
        trouble: why the last config was not taken, or None.
        waiting: sections of the config that wait for a restart.
        taken_at: when a config was taken last, seconds since the epoch.
    """

    def __init__(self) -> None:
        self.trouble: str | None = None
        self.waiting: list[str] = []
        self.taken_at = time.time()
        self.asked = asyncio.Event()

    def notes(self) -> list[str]:
        """Return what a person should know of it."""
        notes = [f"the config was not taken, the one before it stays: {self.trouble}"] if self.trouble else []
        return notes + [f"{name}: its change in the config takes a restart" for name in self.waiting]

    async def run(self, to: Reloadable, read: Callable[[], Config]) -> None:
        """Have every config applied that is asked for, until cancelled."""
        while True:
            await self.asked.wait()
            self.asked.clear()
            await self.once(to, read)

    async def once(self, to: Reloadable, read: Callable[[], Config]) -> None:
        """Read the config and have it applied."""
        try:
            wanted = await asyncio.to_thread(read)  # its file may lie on storage that hangs
        except ConfigError as error:
            self.trouble = "; ".join(map(str, error.problems))
            _log.error("the config was not taken, the one before it stays: %s", self.trouble)
            return
        config, self.waiting = merge(to.config, wanted)
        to.apply(config)
        self.trouble, self.taken_at = None, time.time()
        _log.info("the config was taken anew")
        for name in self.waiting:
            _log.warning("%s: its change in the config takes a restart", name)
