"""A QMP client on asyncio: runs `QmpProtocol` on an asyncio transport.

QEMU buffers without limit for a client that does not read: the largest buffer that was measured held 57 MB. So the client pauses reading
only in a flood of events, and only for a few turns of the event loop. Other tasks run in these turns. `data_received` passes on every
event at once, and the receiver decides which events to keep.
"""

import asyncio
import contextlib
import getpass
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from agent.common.unix_peer import peer_pid
from agent.qmp.commands import AllowList, Command, Request
from agent.qmp.drain_receive_buffer import drain_receive_buffer
from agent.qmp.errors import (
    ConnectPermissionError,
    MonitorBusyError,
    NotConnectedError,
    PeerNotReadingError,
    PreemptedError,
    ProtocolError,
    QmpError,
    StalledError,
)
from agent.qmp.flood_pause import FLOOD_BYTES, FloodPause
from agent.qmp.protocol import (
    MAX_COMMANDS_IN_FLIGHT,
    Event,
    Greeting,
    NegotiationAccepted,
    OobProbeReply,
    QmpProtocol,
    Reply,
    SkippedQmpMessages,
)

CommandResult = QmpError | Any
"""The result of one command: the value that QEMU returned, a CommandError if QEMU refused the command, or an UnreadableReplyError."""

OnResults = Callable[[list[CommandResult]], None]
"""Called with the results of commands that were sent together, in the order of the commands."""

Connect = Callable[[Callable[[], asyncio.Protocol]], Awaitable[asyncio.BaseTransport]]
"""Opens a transport to a monitor for the asyncio protocol that the factory returns. Raises OSError if the transport cannot be opened."""

GREETING_SECONDS = 3.0
"""Timeout of the greeting in seconds. A free monitor greets within milliseconds (QEMU 7.2 to 11.1). A silent monitor has another client."""

MAX_WRITE_BUFFER_BYTES = 64 * 1024
"""Maximum size of requests that the peer has not read, in bytes. Only a hostile peer replies without reading the requests."""


# 16 public methods: three of asyncio.Protocol, nine of `MonitorConnection`, and four of the client alone. All use the same attributes.
class QmpClient(asyncio.Protocol):
    """A connection to one monitor. Create a client with `QmpClient.open`.

    Attributes:
        greeting: QEMU's greeting; None until it arrives.
        ended_future: completes when the connection ends; the result is the cause.
        bytes_read: total number of bytes read.
        bytes_written: total number of bytes written.
    """

    def __init__(self, allow: AllowList, on_event: Callable[[Event], None]) -> None:
        loop = asyncio.get_running_loop()
        self.greeting: Greeting | None = None
        self.ended_future: asyncio.Future[QmpError] = loop.create_future()
        self.bytes_read = 0
        self.bytes_written = 0
        self._on_event = on_event
        self._qmp = QmpProtocol(allow)
        self._transport: asyncio.Transport | None = None
        self._is_tls = False
        self._pause: FloodPause
        self._ready: asyncio.Future[None] = loop.create_future()
        self._results: list[CommandResult] = []
        self._on_results: OnResults | None = None  # None if no caller waits for the results
        self._has_all_results = False
        self._batch: asyncio.Future[list[CommandResult]] | None = None
        self._idle: asyncio.Future[None] | None = None
        self._in_sync: asyncio.Future[None] | None = None  # completes when replies belong to known commands again
        self._probe: tuple[int, asyncio.Future[None]] | None = None

    @classmethod
    async def open(
        cls,
        connect: Connect,
        allow: AllowList,
        on_event: Callable[[Event], None],
        *,
        deadline: float = GREETING_SECONDS,
    ) -> "QmpClient":
        """Connect, wait for the greeting and negotiate capabilities.

        Args:
            connect: opens the transport.
            allow: the permitted commands.
            on_event: receives every event; must not block.
            deadline: seconds for all steps together.

        Raises:
            NotConnectedError: no process listens at the address.
            ConnectPermissionError: the agent's user has no permission to connect.
            MonitorBusyError: the monitor accepted the connection but sent no greeting.
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
                cause = f"no greeting within {deadline:g} s: another client holds this monitor"
                raise MonitorBusyError(cause) from None
            raise StalledError(f"QEMU greeted but did not reply to the negotiation within {deadline:g} s") from None
        except BlockingIOError:
            client.close()
            raise MonitorBusyError("the monitor's backlog is full: another client holds the monitor") from None
        except PermissionError as error:
            client.close()
            raise ConnectPermissionError(
                f"permission denied for user {getpass.getuser()}: `sudo qmp-agent doctor` prints the commands that permit it"
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
        """True if QEMU accepts out-of-band commands, with which the agent probes a stalled QEMU."""
        return self._qmp.oob

    @property
    def receives_events(self) -> bool:
        """Always True, because a permanent connection receives every event."""
        return True

    @property
    def pending_command_count(self) -> int:
        """Number of in-band commands without a reply."""
        return self._qmp.pending_command_count

    @property
    def skipped_invalid_message_counts(self) -> SkippedQmpMessages:
        """Total numbers of skipped messages, by reason. The object is replaced when a message is skipped."""
        return self._qmp.skipped

    async def execute(self, commands: Sequence[Command], *, deadline: float) -> list[CommandResult]:
        """Send commands and return their results, in order. At most `MAX_COMMANDS_IN_FLIGHT` commands are in QEMU at once.

        Raises:
            StalledError: a reply did not arrive within `deadline` seconds, or an earlier reply is still due. Call `wait_idle` next.
            NotConnectedError: the connection ended.
            ProtocolError: the peer violated the protocol.
            CommandNotAllowedError: no command was sent, because one of the commands is not on the allow-list.
        """
        if self.ended_future.done():
            raise self.ended_future.result()
        if len(commands) <= MAX_COMMANDS_IN_FLIGHT and not self._qmp.out_of_sync:
            return await self._execute_batch(commands, deadline, deadline)
        self._qmp.check_allowed(commands)
        until = asyncio.get_running_loop().time() + deadline
        results: list[CommandResult] = []
        for start in range(0, len(commands), MAX_COMMANDS_IN_FLIGHT):
            await self._wait_until_in_sync(until, deadline)
            batch = commands[start : start + MAX_COMMANDS_IN_FLIGHT]
            left = max(0.0, until - asyncio.get_running_loop().time())
            results += await self._execute_batch(batch, left, deadline)
        return results

    async def _wait_until_in_sync(self, until: float, deadline: float) -> None:
        """Wait until replies can be assigned to commands again, after an unreadable message.

        Args:
            until: when the wait ends, in seconds of the event loop's clock.
            deadline: seconds that the call of `execute` may take. The error's text contains this number.

        Raises:
            StalledError: replies still cannot be assigned when the wait ends.
            QmpError: the connection ended.
        """
        if not self._qmp.out_of_sync:
            return
        if self._in_sync is None:
            self._in_sync = asyncio.get_running_loop().create_future()
            self._send_marker_or_resume()
        try:
            async with asyncio.timeout_at(until):
                await asyncio.shield(self._in_sync)
        except TimeoutError:
            raise StalledError(f"no reply to query-status within {deadline:g} s") from None

    def _send_marker_or_resume(self) -> None:
        """Complete `_in_sync` if replies can be assigned to commands again. If not, send the next marker if a marker is due."""
        waiting = self._in_sync
        if not self._qmp.out_of_sync:
            self._in_sync = None
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        elif (data := self._qmp.next_reply_sync_request()) is not None:
            self._write(data)

    async def _execute_batch(self, commands: Sequence[Command], seconds: float, deadline: float) -> list[CommandResult]:
        """Send commands in one write and return their results, in order.

        Args:
            commands: the commands.
            seconds: seconds to wait for the results.
            deadline: seconds that the call of `execute` may take. The error's text contains this number.

        Raises:
            QmpError: the errors of `execute`.
        """
        loop = asyncio.get_running_loop()
        self._batch = batch = loop.create_future()
        timer = loop.call_later(seconds, self._fail_overdue_batch, deadline)
        try:
            self._send(commands, lambda results: None if batch.done() else batch.set_result(results))
            return cast("list[CommandResult]", await batch)
        finally:
            timer.cancel()
            self._batch = None

    def send_if_idle(self, commands: Sequence[Command], on_results: OnResults) -> bool:
        """Send commands in one write, without a deadline. Return False if the commands cannot be sent now; then use `execute`.

        Args:
            commands: the commands.
            on_results: called when all replies have arrived; not called after `abandon_replies`, or after the connection has ended.

        Raises:
            CommandNotAllowedError: one of the commands is not on the allow-list.
        """
        qmp = self._qmp
        busy = qmp.out_of_sync or qmp.pending_command_count
        if self.ended_future.done() or busy or len(commands) > MAX_COMMANDS_IN_FLIGHT:
            return False
        self._send(commands, on_results)
        return True

    def abandon_replies(self, seconds: float) -> StalledError:
        """Stop waiting for the outstanding replies, which did not arrive within `seconds`. Return the error to report."""
        self._on_results = None
        return StalledError(f"no reply to {self._qmp.oldest_pending_command} within {seconds:g} s")

    def _send(self, commands: Sequence[Command], on_results: OnResults) -> None:
        data = self._qmp.send(commands)
        self._on_results = on_results
        self._write(data)

    def _fail_overdue_batch(self, deadline: float) -> None:
        """Fail the pending batch. The replies are still due, because QEMU still executes the commands."""
        if self._batch is not None and not self._batch.done():
            self._batch.set_exception(self.abandon_replies(deadline))

    async def wait_idle(self) -> None:
        """Wait until all replies have arrived. There is no deadline.

        Raises:
            QmpError: the connection ended first.
        """
        if self.pending_command_count:
            if self._idle is None:
                self._idle = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)
        if self._in_sync is not None:
            await asyncio.shield(self._in_sync)

    async def probe_out_of_band(self, *, deadline: float) -> bool:
        """Send an out-of-band command; return whether QEMU's monitor thread replies within `deadline` seconds.

        A reply shows that only QEMU's main loop hangs, if in-band replies are overdue. Probes accumulate in a stopped QEMU. So the call
        sends no probe while an earlier probe is pending, and waits for the reply to the earlier probe.
        """
        if self.ended_future.done() or not self._qmp.oob:
            return False
        if self._probe is None or self._probe[1].done():  # done: an earlier probe's reply came too late
            number, data = self._qmp.next_oob_probe()
            self._probe = number, asyncio.get_running_loop().create_future()
            self._write(data)
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
        # Drop the traceback, which makes a reference cycle: the traceback refers to the waiting calls, and the calls refer to this object.
        self.ended_future.result().__traceback__ = None

    def close_for_preferred_monitor(self) -> None:
        """End the connection now, because a monitor of better priority leads to the same VM."""
        self._end_connection(PreemptedError("a preferred monitor of this VM is available"))

    def _write(self, data: Request) -> None:
        assert self._transport is not None
        self.bytes_written += len(data)
        if self._is_tls:
            # Send one TLS record per byte. QEMU reads a monitor byte by byte. QEMU before 8.0 loses the rest of a longer TLS record
            # (observed with 7.2).
            for number in data:
                self._transport.write(bytes((number,)))
        else:
            self._transport.write(data)
        if self._transport.get_write_buffer_size() > MAX_WRITE_BUFFER_BYTES:
            reason = f"the peer does not read its requests: more than {MAX_WRITE_BUFFER_BYTES} bytes wait"
            self._end_connection(PeerNotReadingError(reason))

    # Callbacks of asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102 - defined by asyncio
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transport is no instance of that class
        self._is_tls = transport.get_extra_info("ssl_object") is not None
        self._pause = FloodPause(self._transport)
        if self.ended_future.done():  # the deadline of `open` has passed in the same turn of the event loop
            self._transport.abort()

    def data_received(self, data: bytes) -> None:  # noqa: D102 - defined by asyncio
        self.bytes_read += len(data)
        try:
            for message in self._qmp.receive(data):
                if type(message) is Event:  # tested first, because a flood consists of events
                    self._on_event(message)
                else:
                    self._dispatch_message(message)
            if self._in_sync is not None:
                self._send_marker_or_resume()
        except ProtocolError as error:
            self._end_connection(error)
        if self._has_all_results:
            self._report_results()
        if len(data) >= FLOOD_BYTES:
            self._pause.begin()

    def _report_results(self) -> None:
        """Report the results of the batch to the caller, unless the caller no longer waits."""
        on_results, results = self._on_results, self._results
        # Drop the results until the next poll, which frees 10 KiB per VM.
        self._on_results, self._results, self._has_all_results = None, [], False
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        self._idle = None
        if on_results is not None and not self.ended_future.done():
            on_results(results)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102 - defined by asyncio
        assert self._transport is not None
        unread = b"" if self.ended_future.done() else drain_receive_buffer(self._transport)
        self._end_connection(NotConnectedError(str(exc) if exc else "QEMU closed the connection"))
        self.bytes_read += len(unread)
        with contextlib.suppress(ProtocolError):
            for message in self._qmp.receive(unread):
                if isinstance(message, Event):
                    self._on_event(message)

    def _dispatch_message(self, message: object) -> None:
        match message:
            case Reply():
                self._results.append(message.error if message.error is not None else message.value)
                self._has_all_results = not self._qmp.pending_command_count
            case OobProbeReply():
                if self._probe is not None and self._probe[0] == message.number and not self._probe[1].done():
                    self._probe[1].set_result(None)
            case Greeting():
                self.greeting = message
                self._write(self._qmp.negotiate())
            case NegotiationAccepted():
                if not self._ready.done():
                    self._ready.set_result(None)

    def _end_connection(self, cause: QmpError) -> None:
        if self.ended_future.done():
            return
        self.ended_future.set_result(cause)
        self._on_results = None
        if self._transport is not None:
            self._transport.abort()
            self._pause.disable()
        for waiter in (self._ready, self._batch, self._idle, self._in_sync, self._probe and self._probe[1]):
            if waiter is not None and not waiter.done():
                waiter.set_exception(cause)
                waiter.exception()  # retrieve the exception, because asyncio logs exceptions that are never retrieved
