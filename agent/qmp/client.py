"""A QMP client on asyncio: the protocol on a transport, with a deadline on every step.

The client always reads, because QEMU's buffer for a client that does not read has no limit (measured: 57 MB). `data_received` passes every
message on at once, and the receiver of the events decides which events to keep. In a flood, reading pauses for a few turns of the event
loop, because the loop would otherwise have no time for anything else.
"""

import asyncio
import getpass
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from agent.common.unix_peer import peer_pid
from agent.qmp.commands import AllowList, Command, Request
from agent.qmp.errors import (
    BusyError,
    DeniedError,
    NotConnectedError,
    PreemptedError,
    ProtocolError,
    QmpError,
    StalledError,
    UnreadRequestsError,
)
from agent.qmp.protocol import (
    MAX_COMMANDS_IN_FLIGHT,
    Connection,
    Event,
    Greeting,
    ProbeReply,
    Ready,
    Reply,
    SkippedMessages,
)

CommandResult = QmpError | Any
"""The result of one command: the value that QEMU returned, a CommandError if QEMU refused it, or an UnreadableReplyError."""

Connect = Callable[[Callable[[], asyncio.Protocol]], Awaitable[asyncio.BaseTransport]]
"""Opens a transport to a monitor for the asyncio protocol that the factory returns. Raises OSError if this fails."""

GREETING_SECONDS = 3.0
"""Timeout of the greeting. A free monitor greets within milliseconds (QEMU 7.2 to 11.1). A silent monitor has another client."""

FLOOD_BYTES = 64 * 1024
"""A chunk of at least this size counts as a flood of events. A long reply can be such a chunk, too."""
PAUSE_TURNS = 16
"""Number of turns of the event loop without reading after a flood. Each takes a few milliseconds, in which other tasks run."""
READ_TURNS = 2
"""Number of turns of the event loop that are needed to read all data that has arrived."""
MAX_UNREAD_BYTES = 64 * 1024
"""Maximum number of bytes of requests that wait in the agent because the peer does not read. The agent sends the next command after a
reply only, so only a hostile peer that replies without reading exceeds this limit."""


class Client(asyncio.Protocol):
    """A connection to one monitor. Create it with `Client.open`.

    Attributes:
        greeting: QEMU's greeting; None until it arrives.
        ended: completes when the connection ends; the result is the cause.
        bytes_read: total number of bytes read.
        bytes_written: total number of bytes written.
    """

    def __init__(self, allow: AllowList, on_event: Callable[[Event], None]) -> None:
        loop = asyncio.get_running_loop()
        self.greeting: Greeting | None = None
        self.ended: asyncio.Future[QmpError] = loop.create_future()
        self.bytes_read = 0
        self.bytes_written = 0
        self._on_event = on_event
        self._qmp = Connection(allow)
        self._transport: asyncio.Transport | None = None
        self._ready: asyncio.Future[None] = loop.create_future()
        self._results: list[CommandResult] = []
        self._batch: asyncio.Future[list[CommandResult]] | None = None
        self._in_step: asyncio.Future[None] | None = None
        """A future that completes when replies can be assigned to commands again; None while replies can be assigned."""
        self._probe: tuple[int, asyncio.Future[None]] | None = None
        self._pause_turns = (
            0  # turns of the event loop until the held requests are written; reading resumes READ_TURNS earlier
        )
        self._held_requests: list[Request] = []

    @classmethod
    async def open(
        cls,
        connect: Connect,
        allow: AllowList,
        on_event: Callable[[Event], None],
        *,
        deadline: float = GREETING_SECONDS,
    ) -> "Client":
        """Connect, wait for the greeting and negotiate capabilities.

        Args:
            connect: opens the transport.
            allow: the permitted commands.
            on_event: receives every event; must not block.
            deadline: seconds for all steps together.

        Raises:
            NotConnectedError: no process listens at the address.
            DeniedError: the agent's user has no permission to connect.
            BusyError: the monitor accepted the connection but sent no greeting.
            ProtocolError: the peer does not speak QMP.
            StalledError: QEMU greeted but did not finish the negotiation, because its main loop hangs.
        """
        client = cls(allow, on_event)
        try:
            async with asyncio.timeout(deadline):
                await connect(lambda: client)
                await client._ready
        except TimeoutError:
            client.close()
            if client.greeting is None:
                raise BusyError(f"no greeting within {deadline:g} s: another client holds this monitor") from None
            raise StalledError(f"no reply to the negotiation within {deadline:g} s of the greeting") from None
        except BlockingIOError:
            client.close()
            raise BusyError("the monitor's backlog is full: another client holds it, and others wait") from None
        except PermissionError as error:
            client.close()
            raise DeniedError(
                f"permission denied for user {getpass.getuser()}: add it to the group that owns the socket"
            ) from error
        except OSError as error:
            client.close()
            raise NotConnectedError(error.strerror or str(error)) from error
        except BaseException:
            client.close()
            raise
        return client

    @property
    def peer_pid(self) -> int | None:
        """Process ID of the QEMU at a Unix socket; None over TCP, or if the process is in another pid namespace."""
        return peer_pid(self._transport)

    @property
    def can_probe(self) -> bool:
        """True if QEMU accepts out-of-band commands, by which the agent probes a stalled QEMU."""
        return self._qmp.oob

    @property
    def receives_events(self) -> bool:
        """True: a permanent connection receives every event."""
        return True

    @property
    def replies_due(self) -> int:
        """Number of in-band commands without a reply."""
        return self._qmp.replies_due

    @property
    def skipped_messages(self) -> SkippedMessages:
        """Total number of skipped messages by reason. The object changes only when a message is skipped."""
        return self._qmp.skipped

    async def execute(self, commands: Sequence[Command], *, deadline: float) -> list[CommandResult]:
        """Send commands and return their results, in order. At most `MAX_COMMANDS_IN_FLIGHT` commands are in QEMU at once.

        Raises:
            StalledError: a reply did not arrive within `deadline` seconds, or an earlier reply is still due; see `wait_idle`.
            NotConnectedError: the connection ended.
            ProtocolError: the peer violated the protocol.
            CommandRefusedError: one of the commands is not on the allow-list; none is sent.
        """
        if self.ended.done():
            raise self.ended.result()
        if len(commands) <= MAX_COMMANDS_IN_FLIGHT and not self._qmp.out_of_step:
            return await self._execute_batch(commands, deadline, deadline)
        self._qmp.check_allowed(commands)
        until = asyncio.get_running_loop().time() + deadline
        results: list[CommandResult] = []
        for start in range(0, len(commands), MAX_COMMANDS_IN_FLIGHT):
            await self._wait_until_in_step(until, deadline)
            batch = commands[start : start + MAX_COMMANDS_IN_FLIGHT]
            left = max(0.0, until - asyncio.get_running_loop().time())
            results += await self._execute_batch(batch, left, deadline)
        return results

    async def _wait_until_in_step(self, until: float, deadline: float) -> None:
        """After an unreadable message, wait until replies can be assigned to commands again.

        Args:
            until: when the wait ends, on the event loop's clock.
            deadline: seconds that the whole call may take, for the error's text.

        Raises:
            StalledError: replies cannot be assigned when the wait ends.
            QmpError: the connection ended.
        """
        if not self._qmp.out_of_step:
            return
        if self._in_step is None:
            self._in_step = asyncio.get_running_loop().create_future()
            self._send_marker_or_resume()
        try:
            async with asyncio.timeout_at(until):
                await asyncio.shield(self._in_step)
        except TimeoutError:
            raise StalledError(f"no reply to query-status within {deadline:g} s") from None

    def _send_marker_or_resume(self) -> None:
        """Send the next marker if one is due. If replies can be assigned again, complete `_in_step`."""
        waiting = self._in_step
        if not self._qmp.out_of_step:
            self._in_step = None
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        elif (data := self._qmp.next_marker()) is not None:
            self._write_or_hold(data)

    async def _execute_batch(self, commands: Sequence[Command], seconds: float, deadline: float) -> list[CommandResult]:
        """Send commands in one write and return their results, in order.

        Args:
            commands: the commands.
            seconds: how long to wait for the results.
            deadline: seconds that the whole call may take, for the error's text.

        Raises:
            QmpError: the errors of `execute`.
        """
        data = self._qmp.send(commands)
        loop = asyncio.get_running_loop()
        self._batch = loop.create_future()
        self._results = []
        self._write_or_hold(data)
        # The cheapest wait, because every poll takes it: one future and one timer.
        timer = loop.call_later(seconds, self._fail_overdue_batch, deadline)
        try:
            results = await self._batch
        finally:
            timer.cancel()
        self._batch, self._results = None, []  # frees 10 KiB per VM until the next poll
        if self.ended.done() and isinstance(error := self.ended.result(), ProtocolError):
            raise error  # more replies than commands arrived: any of these may be another command's
        return results

    def _fail_overdue_batch(self, deadline: float) -> None:
        """Fail the pending batch. Its replies stay due, because QEMU still executes the commands."""
        if self._batch is not None and not self._batch.done():
            failed, self._batch = self._batch, asyncio.get_running_loop().create_future()
            failed.set_exception(StalledError(f"no reply to {self._qmp.oldest_pending} within {deadline:g} s"))

    async def wait_idle(self) -> None:
        """Wait until all replies have arrived. There is no deadline.

        Raises:
            QmpError: the connection ended first.
        """
        if self.replies_due and self._batch is not None:
            await asyncio.shield(self._batch)
        if self._in_step is not None:
            await asyncio.shield(self._in_step)

    async def probe(self, *, deadline: float) -> bool:
        """Return whether QEMU's monitor thread replies out of band within `deadline` seconds.

        If the monitor thread replies while in-band replies are overdue, QEMU's main loop hangs. If an earlier probe is still pending,
        wait for its reply and send no other probe, because probes would accumulate in a stopped QEMU.
        """
        if self.ended.done() or not self._qmp.oob:
            return False
        if (
            self._probe is None or self._probe[1].done()
        ):  # the reply to an earlier probe arrived after that probe's deadline
            number, data = self._qmp.probe()
            self._probe = number, asyncio.get_running_loop().create_future()
            self._write_or_hold(data)
        try:
            async with asyncio.timeout(deadline):
                await asyncio.shield(self._probe[1])
        except TimeoutError:
            return False
        self._probe = None
        return True

    def close(self) -> None:
        """End the connection now. Every waiting call raises NotConnectedError."""
        self._end_connection(NotConnectedError("closed by the agent"))
        # The traceback refers to the waiting calls and so to this object. Only the garbage collector would free this cycle.
        self.ended.result().__traceback__ = None

    def preempt(self) -> None:
        """End the connection now because a monitor with a better priority leads to the same VM."""
        self._end_connection(PreemptedError("a preferred monitor of this VM is available"))

    def _write_or_hold(self, data: Request) -> None:
        """Write a request, or hold it while reading pauses after a flood."""
        self.bytes_written += len(data)
        if self._pause_turns:
            self._held_requests.append(data)
        else:
            self._write_request(data)

    def _write_request(self, data: Request) -> None:
        assert self._transport is not None
        if self._transport.get_extra_info("ssl_object") is None:
            self._transport.write(data)
        else:
            # Send one TLS record per byte: QEMU reads a monitor byte by byte, and before 8.0 it loses the rest of a TLS record (seen on
            # 7.2).
            for number in data:
                self._transport.write(bytes((number,)))
        if self._transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self._end_connection(
                UnreadRequestsError(f"the peer does not read its requests: more than {MAX_UNREAD_BYTES} bytes wait")
            )

    # Callbacks of asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102 - defined by asyncio
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transport is one by behaviour, not by class
        if self.ended.done():  # the deadline of `open` passed in the same turn of the event loop
            self._transport.abort()

    def data_received(self, data: bytes) -> None:  # noqa: D102 - defined by asyncio
        self.bytes_read += len(data)
        try:
            for message in self._qmp.receive(data):
                self._dispatch_message(message)
            if self._in_step is not None:
                self._send_marker_or_resume()
        except ProtocolError as error:
            self._end_connection(error)
        if self._held_requests:
            self._write_held_requests()
        if len(data) >= FLOOD_BYTES and self._transport is not None and not self.ended.done():
            self._transport.pause_reading()
            if not self._pause_turns:
                asyncio.get_running_loop().call_soon(self._count_turn)
            self._pause_turns = PAUSE_TURNS + READ_TURNS

    def _count_turn(self) -> None:
        """Count the turns of a pause. Resume reading READ_TURNS before its end, and write the held requests at its end.

        Requests wait until all arrived data has been read. If the peer has closed the connection, a write makes the kernel discard
        unread data.
        """
        if self.ended.done() or self._transport is None:
            return
        self._pause_turns -= 1
        if self._pause_turns == READ_TURNS:
            self._transport.resume_reading()
        if self._pause_turns:
            asyncio.get_running_loop().call_soon(self._count_turn)
        elif self._held_requests:
            self._write_held_requests()

    def _write_held_requests(self) -> None:
        held, self._held_requests = self._held_requests, []
        for data in held if not self.ended.done() else ():
            self._write_request(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102 - defined by asyncio
        self._end_connection(NotConnectedError(str(exc) if exc else "QEMU closed the connection"))

    def _dispatch_message(self, message: object) -> None:
        match message:
            case Event():
                self._on_event(message)
            case Reply():
                self._results.append(message.error if message.error is not None else message.value)
                if not self._qmp.replies_due and self._batch is not None and not self._batch.done():
                    self._batch.set_result(self._results)
            case ProbeReply():
                if self._probe is not None and self._probe[0] == message.number and not self._probe[1].done():
                    self._probe[1].set_result(None)
            case Greeting():
                self.greeting = message
                self._write_or_hold(self._qmp.negotiate())
            case Ready():
                if not self._ready.done():
                    self._ready.set_result(None)

    def _end_connection(self, cause: QmpError) -> None:
        if self.ended.done():
            return
        self.ended.set_result(cause)
        if self._transport is not None:
            self._transport.abort()
        for waiter in (self._ready, self._batch, self._in_step, self._probe and self._probe[1]):
            if waiter is not None and not waiter.done():
                waiter.set_exception(cause)
                waiter.exception()  # marks the exception as retrieved; asyncio would otherwise log it if no call waits
