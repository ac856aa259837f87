"""Interface of an open connection to a guest agent, whatever the way to it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from agent.qga.errors import GuestAgentError


class GuestChannel(Protocol):
    """An open connection to one guest agent. `GuestAgentClient` is the implementation over a socket."""

    @property
    def ended(self) -> asyncio.Future[GuestAgentError]:
        """Done when the connection has ended; its result is the cause."""

    async def execute(self, name: str, *, deadline: float) -> Any:
        """Execute one command within `deadline` seconds; raises what `GuestAgentClient.execute` raises."""

    def close(self) -> None:
        """End the connection now."""


OpenGuestChannel = Callable[[], Awaitable[GuestChannel]]
"""Opens a connection over a VM's manager; raises what `GuestAgentClient.open` raises."""
