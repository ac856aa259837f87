"""Interface of an open connection to a guest agent, over a Unix socket or through a VM's manager."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from agent.qga.errors import GuestAgentError


class GuestChannel(Protocol):
    """An open connection to one guest agent. `GuestAgentClient` is the implementation over a socket."""

    @property
    def ended_future(self) -> asyncio.Future[GuestAgentError]:
        """A future that completes with the cause when the connection ends."""

    async def execute(self, name: str, *, deadline: float) -> Any:
        """Execute one command within `deadline` seconds, and return its value. The exceptions are those of `GuestAgentClient.execute`."""

    def close(self) -> None:
        """End the connection now."""


OpenGuestChannel = Callable[[], Awaitable[GuestChannel]]
"""Opens a connection through a VM's manager. The exceptions are those of `GuestAgentClient.open`."""
