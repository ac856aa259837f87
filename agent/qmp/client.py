"""A QMP client on asyncio: the protocol core on a transport, with a deadline on every step.

It always reads: QEMU buffers without bound for a client that does not (seen: 57 MB), so `data_received` hands every message on at
once, and whoever gets the events decides what to keep. Nothing waits here for anybody; only of a flood is the next part read some turns
of the loop later, whatever becomes of the last: or the loop would do nothing but read.
"""

import asyncio
import getpass
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from agent.qmp.commands import AllowList, Command, Request
from agent.qmp.errors import (
    BusyError,
    CommandError,
    DeniedError,
    NotConnectedError,
    PreemptedError,
    ProtocolError,
    QmpError,
    StalledError,
)
from agent.qmp.protocol import Connection, Event, Greeting, ProbeReply, Ready, Reply

CommandResult = CommandError | Any
"""What became of one question: QEMU's value, or the error it gave."""

Connect = Callable[[Callable[[], asyncio.Protocol]], Awaitable[asyncio.BaseTransport]]
"""Makes a transport for the protocol that the factory returns; raises OSError where it cannot."""

GREETING_SECONDS = 3.0
"""A free monitor greets within milliseconds of connecting (QEMU 7.2 to 11.1); one that is silent this long is somebody else's."""


FLOOD_BYTES = 64 * 1024
"""So much at once is a flood, if it is not one long answer."""
REST_TURNS = 16
"""Turns of the loop, some milliseconds each at most, before more of a flood is read: acknowledging what was read takes about so many."""
READ_TURNS = 2
"""Turns in which what there is to read is read."""


class Client(asyncio.Protocol):
    """One connection to one monitor. Made by `Client.open`."""

    def __init__(self, allow: AllowList, on_event: Callable[[Event], None]) -> None:
        self.greeting: Greeting | None = None
        self.ended: asyncio.Future[QmpError] = asyncio.get_running_loop().create_future()
        """Done when the connection has ended; its result says why."""
        self.bytes_read = 0
        self.bytes_written = 0
        self.strays = 0
        self._on_event = on_event
        self._qmp = Connection(allow)
        self._transport: asyncio.Transport | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answers: list[CommandResult] = []
        self._round: asyncio.Future[list[CommandResult]] | None = None
        self._probe: tuple[int, asyncio.Future[None]] | None = None
        self._turns = 0  # until a flood is read on and what is held is written
        self._held: list[Request] = []

    @classmethod
    async def open(
        cls,
        connect: Connect,
        allow: AllowList,
        on_event: Callable[[Event], None],
        *,
        deadline: float = GREETING_SECONDS,
    ) -> "Client":
        """Connect, wait for the greeting, negotiate.

        Raises:
            NotConnectedError: nothing listens there.
            DeniedError: we may not connect.
            BusyError: it accepted but did not greet within `deadline` seconds.
            ProtocolError: what greets is not QMP.
            StalledError: it greeted but did not finish negotiation in time: its main loop is stuck.
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
            raise StalledError(f"greeted, but no answer to negotiation within {deadline:g} s") from None
        except BlockingIOError:
            client.close()
            raise BusyError("the monitor's backlog is full: other clients hold it and wait for it") from None
        except PermissionError as error:
            client.close()
            raise DeniedError(
                f"user {getpass.getuser()} may not connect: give it the group that the socket belongs to"
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
        """The process at the other end of a Unix socket: who connected, or who listened. None where it cannot be told."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        if sock is None or sock.family != socket.AF_UNIX:
            return None
        pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid or None  # 0 is a process of another namespace

    @property
    def can_probe(self) -> bool:
        """Whether out-of-band questions are understood here."""
        return self._qmp.oob

    @property
    def receives_events(self) -> bool:
        """Whether every event is heard as long as this is up: a connection that stays hears them all."""
        return True

    @property
    def replies_due(self) -> int:
        """How many in-band questions QEMU still owes an answer to."""
        return self._qmp.replies_due

    async def execute(self, asks: Sequence[Command], *, deadline: float) -> list[CommandResult]:
        """Send questions in one write and return their answers, in order.

        Raises:
            StalledError: not all answers came within `deadline` seconds, or earlier ones are still due. `wait_idle` tells when they have.
            NotConnectedError: the connection ended.
            ProtocolError: the peer broke the protocol.
            CommandRefusedError: one of the questions is not on the allow-list.
        """
        if self.ended.done():
            raise self.ended.result()
        data = self._qmp.ask(asks)
        loop = asyncio.get_running_loop()
        self._round = loop.create_future()
        self._answers = []
        self._say(data)
        # As cheap as a wait gets, on every poll's way: one future and one timer.
        late = loop.call_later(deadline, self._late, asks[0], deadline)
        try:
            answers = await self._round
        finally:
            late.cancel()
        self._round, self._answers = None, []  # not to keep 10 KiB of each VM until it is asked again
        return answers

    def _late(self, ask: Command, deadline: float) -> None:
        """Let go of who waits for the answers; they are due all the same."""
        why = f"no reply to {ask.name} within {deadline:g} s"
        if self._round is not None and not self._round.done():
            waiting, self._round = self._round, asyncio.get_running_loop().create_future()
            waiting.set_exception(StalledError(why))

    async def wait_idle(self) -> None:
        """Wait, without a deadline, until no reply is due any more. The owner bounds it, and `ended` breaks it.

        Raises:
            QmpError: the connection ended first.
        """
        if self.replies_due and self._round is not None:
            await asyncio.shield(self._round)

    async def probe(self, *, deadline: float) -> bool:
        """Return whether QEMU's monitor thread answers out of band; true with no in-band reply means a stuck main loop.

        One that is still unanswered is waited for again, so that a QEMU that is stopped does not find a heap of them.
        """
        if self.ended.done() or not self._qmp.oob:
            return False
        if self._probe is None or self._probe[1].done():  # a late answer told of then, not of now
            number, data = self._qmp.probe()
            self._probe = number, asyncio.get_running_loop().create_future()
            self._say(data)
        try:
            async with asyncio.timeout(deadline):
                await asyncio.shield(self._probe[1])
        except TimeoutError:
            return False
        self._probe = None
        return True

    def close(self) -> None:
        """End the connection now; `ended` and everything that waits learns it."""
        self._end(NotConnectedError("closed by us"))
        # It leads to whoever was told, and so back to us: memory till garbage is looked for.
        self.ended.result().__traceback__ = None

    def preempt(self) -> None:
        """End the connection now, because the VM is watched in a better way; `ended` says so."""
        self._end(PreemptedError("a better way to this VM was found"))

    def _say(self, data: Request) -> None:
        """Write a request, or hold it while a flood is not read to its end."""
        self.bytes_written += len(data)
        if self._turns:
            self._held.append(data)
        else:
            self._write(data)

    def _write(self, data: Request) -> None:
        assert self._transport is not None
        if self._transport.get_extra_info("ssl_object") is None:
            self._transport.write(data)
            return
        # QEMU reads a monitor a byte at a time and before 8.0 forgets what is left of a TLS record (seen: 7.2): a record for each byte.
        for number in data:
            self._transport.write(bytes((number,)))

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102 - asyncio's own contract
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by behaviour, not by class
        if self.ended.done():  # the deadline passed in the same turn
            self._transport.abort()

    def data_received(self, data: bytes) -> None:  # noqa: D102 - asyncio's own contract
        self.bytes_read += len(data)
        try:
            for message in self._qmp.receive(data):
                self._take(message)
        except ProtocolError as error:
            self._end(error)
        self.strays = self._qmp.strays
        if self._held:
            self._write_held()
        if len(data) >= FLOOD_BYTES and self._transport is not None and not self.ended.done():
            self._transport.pause_reading()
            if not self._turns:
                asyncio.get_running_loop().call_soon(self._rest)
            self._turns = REST_TURNS + READ_TURNS

    def _rest(self) -> None:
        """Read on after some turns of the loop; write what was held in that time when something was read, or there was nothing to read.

        Not before: what one who has ended leaves unread is thrown away by the kernel's no to a write.
        """
        if self.ended.done() or self._transport is None:
            return
        self._turns -= 1
        if self._turns == READ_TURNS:
            self._transport.resume_reading()
        if self._turns:
            asyncio.get_running_loop().call_soon(self._rest)
        elif self._held:
            self._write_held()

    def _write_held(self) -> None:
        held, self._held = self._held, []
        for data in held if not self.ended.done() else ():
            self._write(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102 - asyncio's own contract
        self._end(NotConnectedError(str(exc) if exc else "QEMU closed the connection"))

    def _take(self, message: object) -> None:
        match message:
            case Event():
                self._on_event(message)
            case Reply():
                self._answers.append(message.error if message.error is not None else message.value)
                if not self._qmp.replies_due and self._round is not None and not self._round.done():
                    self._round.set_result(self._answers)
            case ProbeReply():
                if self._probe is not None and self._probe[0] == message.number and not self._probe[1].done():
                    self._probe[1].set_result(None)
            case Greeting():
                self.greeting = message
                self._say(self._qmp.negotiate())
            case Ready():
                if not self._ready.done():
                    self._ready.set_result(None)

    def _end(self, why: QmpError) -> None:
        if self.ended.done():
            return
        self.ended.set_result(why)
        if self._transport is not None:
            self._transport.abort()
        for waiter in (self._ready, self._round, self._probe and self._probe[1]):
            if waiter is not None and not waiter.done():
                waiter.set_exception(why)
                waiter.exception()  # looked at: nobody may be waiting any more, and asyncio need not complain of that
