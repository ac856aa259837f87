"""Interface of an open connection to a guest agent, over a Unix socket or through a VM's manager."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from agent.qga.errors import GuestAgentError


class GuestChannel(Protocol):
    """An open connection to one guest agent. `GuestAgentClient` is the implementation over a socket."""

    @property
    def ended(self) -> asyncio.Future[GuestAgentError]:
        """A future that completes when the connection ends. Its result is the cause."""

    async def execute(self, name: str, *, deadline: float) -> Any:
        """Execute one command within `deadline` seconds. It raises the exceptions of `GuestAgentClient.execute`."""

    def close(self) -> None:
        """End the connection now."""


OpenGuestChannel = Callable[[], Awaitable[GuestChannel]]
"""Opens a connection through a VM's manager. It raises the exceptions of `GuestAgentClient.open`."""
