"""Reloads the config in a running agent at SIGHUP. A config with problems changes nothing."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from agent.config.errors import ConfigError
from agent.config.model import Config

_log = logging.getLogger("agent")

LIVE_SECTIONS = frozenset(
    {"monitors", "guest_agent", "intervals", "timeouts", "alerts", "allow", "labels", "limits", "log"}
)
"""Sections whose changes a running agent uses at once.

Changes of the other sections need a restart, because queued records and open sockets depend on the other sections.
"""


def merge_live_sections(running: Config, loaded: Config) -> tuple[Config, list[str]]:
    """Return the running config with the live sections of a newly loaded config. A change of a live section needs no restart.

    Returns:
        The config to apply, and the names of the changed sections that need a restart.
    """
    changed = [name for name in type(loaded).model_fields if getattr(running, name) != getattr(loaded, name)]
    needs_restart = [name for name in changed if name not in LIVE_SECTIONS]
    return loaded.model_copy(update={name: getattr(running, name) for name in needs_restart}), needs_restart


class ReloadableAgent(Protocol):
    """An agent whose config can change while the agent runs."""

    config: Config

    def apply_config(self, config: Config) -> None:
        """Use this config from now on."""


class ConfigReloader:
    """Reloads the config on request, and stores the outcome of the last reload.

    Attributes:
        reload_requested: set this event to request a reload.
        error: why the last reload failed; None if the last reload succeeded, or before the first reload.
        needs_restart: names of the changed sections that need a restart.
        loaded_at: when a config was last loaded, in seconds since the epoch.
    """

    def __init__(self) -> None:
        self.error: str | None = None
        self.needs_restart: list[str] = []
        self.loaded_at = time.time()
        self.reload_requested = asyncio.Event()

    def warnings(self) -> list[str]:
        """Return warnings for the operator: why the last reload failed, and which changed sections need a restart."""
        failure = [f"config: reload failed: {self.error}; the previous config stays in use"] if self.error else []
        return failure + [_restart_text(name) for name in self.needs_restart]

    async def run(self, agent: ReloadableAgent, read: Callable[[], Config]) -> None:
        """Reload the config of the agent at each request, until cancelled; `read` reads the config file."""
        while True:
            await self.reload_requested.wait()
            self.reload_requested.clear()
            await self._reload(agent, read)

    async def _reload(self, agent: ReloadableAgent, read: Callable[[], Config]) -> None:
        try:
            loaded = await asyncio.to_thread(read)  # read the file in a thread, because its storage may hang
        except ConfigError as error:
            self.error = "; ".join(map(str, error.problems))
            _log.error("config: reload failed: %s; the previous config stays in use", self.error)
            return
        config, self.needs_restart = merge_live_sections(agent.config, loaded)
        agent.apply_config(config)
        self.error, self.loaded_at = None, time.time()
        _log.info("config: reloaded")
        for name in self.needs_restart:
            _log.warning("%s", _restart_text(name))


def _restart_text(section: str) -> str:
    return f"config section {section} has changed: restart the agent to apply it"
