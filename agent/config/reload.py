"""Live config reload at SIGHUP. A bad config changes nothing; a good one changes every section that needs no restart."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from agent.config.loader import ConfigError
from agent.config.model import Config

_log = logging.getLogger("agent")

LIVE = frozenset({"monitors", "intervals", "timeouts", "alerts", "allow", "labels", "limits", "log"})
"""Sections that a running agent applies. The others need a restart, because waiting records and open sockets depend on them."""


def merge(running: Config, wanted: Config) -> tuple[Config, list[str]]:
    """Merge the live sections of a new config into the running one.

    Returns:
        The config to apply, and the names of the changed sections that need a restart.
    """
    changed = [name for name in type(wanted).model_fields if getattr(running, name) != getattr(wanted, name)]
    waiting = [name for name in changed if name not in LIVE]
    return wanted.model_copy(update={name: getattr(running, name) for name in waiting}), waiting


class Reloadable(Protocol):
    """An agent whose config can change while it runs."""

    config: Config

    def apply(self, config: Config) -> None:
        """Use this config from now on."""


class Reload:
    """Reloads the config on request and keeps the outcome.

    Attributes:
        requested: set to request a reload.
        error: why the last reload failed, or None.
        waiting: names of the changed sections that need a restart.
        loaded_at: when a config was last loaded, in seconds since the epoch.
    """

    def __init__(self) -> None:
        self.error: str | None = None
        self.waiting: list[str] = []
        self.loaded_at = time.time()
        self.requested = asyncio.Event()

    def warnings(self) -> list[str]:
        """Return what an operator should know about the last reload."""
        failure = [f"config: reload failed: {self.error}; the previous config stays in use"] if self.error else []
        return failure + [_needs_restart(name) for name in self.waiting]

    async def run(self, agent: Reloadable, read: Callable[[], Config]) -> None:
        """Serve reload requests until cancelled."""
        while True:
            await self.requested.wait()
            self.requested.clear()
            await self._reload(agent, read)

    async def _reload(self, agent: Reloadable, read: Callable[[], Config]) -> None:
        try:
            wanted = await asyncio.to_thread(read)  # in a thread, because the file's storage may hang
        except ConfigError as error:
            self.error = "; ".join(map(str, error.problems))
            _log.error("config: reload failed: %s; the previous config stays in use", self.error)
            return
        config, self.waiting = merge(agent.config, wanted)
        agent.apply(config)
        self.error, self.loaded_at = None, time.time()
        _log.info("config: reloaded")
        for name in self.waiting:
            _log.warning("%s", _needs_restart(name))


def _needs_restart(section: str) -> str:
    return f"config section {section} has changed: restart the agent to apply it"
