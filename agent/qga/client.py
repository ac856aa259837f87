"""A guest agent client on asyncio: the protocol on a transport, with a deadline on every step.

The client reads everything that the guest sends, and discards everything except the expected reply. If the guest sends too much, the
client disconnects.
"""

import asyncio
import getpass
import random
from collections.abc import Awaitable, Callable
from typing import Any, cast

from agent.common.unix_peer import peer_pid
from agent.qga.commands import GuestRequest
from agent.qga.errors import (
    GuestAgentError,
    GuestChannelAccessDeniedError,
    GuestChannelBusyError,
    GuestChannelError,
    GuestFloodError,
    GuestTimeoutError,
    UnreadableGuestReplyError,
)
from agent.qga.protocol import GuestAgentProtocol, GuestReply, Synchronized, SyncState

ConnectChannel = Callable[[Callable[[], asyncio.Protocol]], Awaitable[asyncio.BaseTransport]]
"""Opens a transport to a channel for the asyncio protocol that the factory returns. Raises OSError if the channel cannot be opened."""

PeerCheck = Callable[[int | None], str]
"""Checks the process that listens at the channel, given its pid. Returns why the agent must not connect; empty if the agent may connect."""


class GuestAgentClient(asyncio.Protocol):
    """A connection to one guest agent. Create a connection with `GuestAgentClient.open`."""

    def __init__(self) -> None:
        self.ended_future: asyncio.Future[GuestAgentError] = asyncio.get_running_loop().create_future()
        """A future that completes with the cause when the connection ends."""
        self._qga = GuestAgentProtocol(random.randrange(1 << 30))  # noqa: S311 - to distinguish clients, not a secret
        self._transport: asyncio.Transport | None = None
        self._pending: asyncio.Future[Any] | None = None

    @classmethod
    async def open(
        cls, connect: ConnectChannel, *, deadline: float, check_peer: PeerCheck = lambda _pid: ""
    ) -> "GuestAgentClient":
        """Connect, and send nothing. The first `execute` synchronizes, and shows whether a guest agent responds.

        Args:
            connect: opens the transport.
            deadline: maximum time to connect, in seconds.
            check_peer: checks the process that listens, before any byte is sent.

        Raises:
            GuestChannelError: the channel cannot be reached.
            GuestChannelAccessDeniedError: the agent's user has no permission, or `check_peer` returned a reason.
            GuestChannelBusyError: other clients occupy the channel, so QEMU did not accept the connection in time.
        """
        client = cls()
        try:
            async with asyncio.timeout(deadline):
                await connect(lambda: client)
        except (TimeoutError, BlockingIOError):
            client.close()
            raise GuestChannelBusyError("other clients occupy the channel") from None
        except PermissionError as error:
            client.close()
            raise GuestChannelAccessDeniedError(
                f"permission denied for user {getpass.getuser()}: `sudo qmp-agent doctor` prints the commands that permit it"
            ) from error
        except OSError as error:
            client.close()
            raise GuestChannelError(error.strerror or str(error)) from error
        except BaseException:
            client.close()
            raise
        if objection := check_peer(peer_pid(client._transport)):
            client.close()
            raise GuestChannelAccessDeniedError(objection)
        return client

    @property
    def is_synchronized(self) -> bool:
        """True if the next `execute` needs no synchronization."""
        return self._qga.state is SyncState.READY

    async def execute(self, name: str, *, deadline: float) -> Any:
        """Execute one command and return its value. If the connection is not synchronized, synchronize it first.

        Args:
            name: the command.
            deadline: maximum time in seconds, including the synchronization.

        Raises:
            GuestAgentCommandNotAllowedError: the command is not on the allow-list.
            GuestAgentCommandError: the guest agent returned an error.
            GuestTimeoutError: no reply in time.
            UnreadableGuestReplyError: the reply cannot be parsed.
            GuestChannelError: the connection ended.
        """
        assert self._pending is None, "one command at a time"
        try:
            async with asyncio.timeout(deadline):
                if not self.is_synchronized:
                    await self._send_request(self._qga.start_synchronization())
                if not self.is_synchronized:
                    raise UnreadableGuestReplyError("the guest sent unrequested data during the synchronization")
                reply: GuestReply = await self._send_request(self._qga.start_command(name))
        except TimeoutError:
            self._qga.abandon_reply()
            raise GuestTimeoutError(f"no reply to {name} within {deadline:g} s") from None
        except asyncio.CancelledError:
            self._qga.abandon_reply()
            raise
        if reply.error is not None:
            raise reply.error
        return reply.value

    async def _send_request(self, data: GuestRequest) -> Any:
        """Send a request and return its reply, or `Synchronized` after a synchronization."""
        if self.ended_future.done():
            raise self.ended_future.result()
        self._pending = asyncio.get_running_loop().create_future()
        try:
            self._write(data)
            return await self._pending
        finally:
            self._pending = None

    def _write(self, data: GuestRequest) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        """End the connection now."""
        self._end_connection(GuestChannelError("closed by the agent"))

    # Callbacks of asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102 - defined by asyncio
        self._transport = cast("asyncio.Transport", transport)
        if self.ended_future.done():  # `open` failed before asyncio called this method
            self._transport.abort()

    def data_received(self, data: bytes) -> None:  # noqa: D102 - defined by asyncio
        try:
            for message in self._qga.receive(data):
                self._complete_pending_request(message)
        except GuestFloodError as error:
            self._end_connection(error)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102 - defined by asyncio
        self._end_connection(GuestChannelError(str(exc) if exc else "QEMU closed the channel"))

    def _complete_pending_request(self, message: Synchronized | GuestReply) -> None:
        if self._pending is not None and not self._pending.done():
            self._pending.set_result(message)

    def _end_connection(self, cause: GuestAgentError) -> None:
        if self.ended_future.done():
            return
        self.ended_future.set_result(cause)
        if self._transport is not None:
            self._transport.abort()
        if self._pending is not None and not self._pending.done():
            self._pending.set_exception(cause)
            self._pending.exception()  # retrieve the exception, because asyncio logs exceptions that are never retrieved
