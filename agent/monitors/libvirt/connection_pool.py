"""libvirt's blocking library, kept off the event loop: a thread for each call, a bound on how many, and what it says unasked handed over.

A call for a QEMU that hangs returns when that QEMU does, and libvirt knows no way to take it back. So a call that takes long gives its
turn to others, and the connection that it was made on to its fate. How many calls may hang is bounded too, for each holds one of the
workers (max_workers, 20 by default) that libvirtd has for everybody.

No two calls are ever under way on one connection: when keepalive ends those of several threads, libvirt's virNetClientIOEventLoop (9.0;
CVE-2024-4418) leaves an event source that points into the stack of a thread that is gone, and the next one to wait there dies of it.
"""

import asyncio
import contextlib
import errno
import importlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent.qmp.errors import CommandError, DeniedError, NotConnectedError, QmpError, TransportLostError

HUNG_SECONDS = 1.5
"""A call that takes longer than this hangs: it gives its turn to others, and its connection is left."""

MAX_CALLS = 4
MAX_HUNG = 8

KEEPALIVE = (5, 3)
"""Seconds between two signs of life that libvirtd is asked for, and how many it may miss: a libvirtd that hangs is left after 20 s."""

T = TypeVar("T")


class MissingError(Exception):
    """libvirt's library is not there; the text says what to do."""


def library() -> tuple[Any, Any]:
    """Return libvirt and libvirt_qemu; the first call starts their event loop, in a thread of its own.

    Raises:
        MissingError: they are not installed.
    """
    try:
        api, qemu = importlib.import_module("libvirt"), importlib.import_module("libvirt_qemu")
    except ImportError as error:
        raise MissingError(
            f"libvirt's library for Python cannot be loaded ({error}): pip install 'qmp-agent[libvirt]', which takes "
            "libvirt's headers (libvirt-dev), pkg-config and a C compiler"
        ) from None
    with _starting:
        if not any(thread.name == _THREAD for thread in threading.enumerate()):
            api.registerErrorHandler(lambda *_: None, None)  # it would write to standard error what it raises as well
            api.virEventRegisterDefaultImpl()
            threading.Thread(target=_run, args=(api,), name=_THREAD, daemon=True).start()
    return api, qemu


_THREAD = "libvirt events"
_starting = threading.Lock()


def _run(api: Any) -> None:
    while True:
        with contextlib.suppress(Exception):  # a callback's bug must not end the loop
            api.virEventRunDefaultImpl()


class LibvirtConnection:
    """A connection to libvirtd, opened by the first call that takes it. One thread uses it at a time, and keeps its libvirt objects."""

    def __init__(self, api: Any, uri: str, *, read_only: bool) -> None:
        self.left = False
        """Whether no new calls are to be made."""
        self._api = api
        self._uri = uri
        self._read_only = read_only
        self._connection: Any = None

    def connection(self) -> Any:
        """Return it as libvirt's object. Blocks."""
        if self._connection is None:
            self._connection = dial(self._api, self._uri, read_only=self._read_only)
        return self._connection

    def domain(self, uuid: str) -> Any:
        """Return a domain as libvirt's object. Blocks."""
        return self.connection().lookupByUUIDString(uuid)

    def domains(self, uuids: Iterable[str]) -> list[Any]:
        """Return those of these domains that there are. Blocks."""
        found = []
        for uuid in uuids:
            try:
                found.append(self.domain(uuid))
            except self._api.libvirtError as error:
                if error.get_error_code() != self._api.VIR_ERR_NO_DOMAIN:
                    raise
        return found

    @property
    def opened(self) -> bool:
        """Whether it came to be."""
        return self._connection is not None

    def lost(self) -> bool:
        """Return whether there was a connection and it has ended."""
        return self._connection is not None and not alive(self._connection)

    def close(self) -> None:
        """Close it. Blocks."""
        connection, self._connection = self._connection, None
        with contextlib.suppress(self._api.libvirtError):
            if connection is not None:
                connection.close()


def dial(api: Any, uri: str, *, read_only: bool) -> Any:
    """Open a connection. Blocks."""
    connection = (api.openReadOnly if read_only else api.open)(uri)
    connection.setKeepAlive(*KEEPALIVE)
    return connection


def alive(connection: Any) -> bool:
    """Return whether a connection is up."""
    try:
        return bool(connection.isAlive())
    except Exception:  # noqa: BLE001 - one that cannot even say that
        return False


def denied(api: Any, error: Any) -> bool:
    """Return whether libvirt's error says that this user may not."""
    codes = {api.VIR_ERR_AUTH_FAILED, api.VIR_ERR_AUTH_CANCELLED, api.VIR_ERR_AUTH_UNAVAILABLE}
    codes |= {api.VIR_ERR_OPERATION_DENIED, api.VIR_ERR_ACCESS_DENIED}
    system = error.get_error_code() == api.VIR_ERR_SYSTEM_ERROR
    return error.get_error_code() in codes or (system and error.get_int1() in (errno.EACCES, errno.EPERM))


def meaning(api: Any, error: Any, line: LibvirtConnection | None = None) -> QmpError:
    """Return what one of libvirt's errors means here."""
    text = error.get_error_message() or str(error)
    if line is None or line.lost():
        return DeniedError(text) if denied(api, error) else TransportLostError(f"libvirtd is lost: {text}")
    if error.get_error_code() == api.VIR_ERR_NO_DOMAIN:
        return NotConnectedError("libvirt knows the domain no more")
    return CommandError("GenericError", text)


@dataclass(eq=False, slots=True)
class _PooledCall:
    """One call under way."""

    line: LibvirtConnection
    outcome: asyncio.Future[Any]
    hung: bool = False
    watch: asyncio.TimerHandle | None = field(default=None)


class ConnectionPool:
    """Makes calls to one libvirtd, however often that is lost. Use it on the event loop that it was made on."""

    def __init__(self, api: Any, uri: str, *, read_only: bool = False) -> None:
        self.hung = 0
        """How many calls hang."""
        self.read_only = read_only
        """Whether connections are made to read only."""
        self._api = api
        self._uri = uri
        self._loop = asyncio.get_running_loop()
        self._turns = asyncio.Semaphore(MAX_CALLS)
        self._idle: list[LibvirtConnection] = []
        self._busy: set[LibvirtConnection] = set()

    async def __call__(self, what: Callable[[LibvirtConnection], T]) -> T:
        """Make a call in a thread and return what it returns, which must hold nothing of libvirt's.

        The caller sets the deadline; a call that nobody waits for any more goes on until it returns.

        Raises:
            CommandError: libvirt refused, or passed on that QEMU did.
            NotConnectedError: there is no such domain.
            WayLostError: libvirtd cannot be reached.
            DeniedError: we may not connect to it.
        """
        await self._turns.acquire()
        line = self._free()
        self._busy.add(line)
        call = _PooledCall(line, self._loop.create_future())
        call.watch = self._loop.call_later(HUNG_SECONDS, self._hangs, call)
        in_thread(self._loop, lambda: self._made(what, line), lambda made: self._returned(call, made))
        result: T = await call.outcome
        return result

    def leave(self) -> None:
        """Make the next calls on other connections."""
        for line in self._busy:
            line.left = True
        for line in self._idle:
            self._close(line)
        self._idle.clear()

    def _free(self) -> LibvirtConnection:
        """Return a connection on which no call is under way."""
        while self._idle:
            line = self._idle.pop()
            if not line.lost():
                return line
            self._close(line)
        return LibvirtConnection(self._api, self._uri, read_only=self.read_only)

    def _close(self, line: LibvirtConnection) -> None:
        in_thread(self._loop, line.close, lambda _: None)

    def _made(self, what: Callable[[LibvirtConnection], T], line: LibvirtConnection) -> T | QmpError:
        try:
            return what(line)
        except self._api.libvirtError as error:
            return meaning(self._api, error, line if line.opened else None)

    def _hangs(self, call: _PooledCall) -> None:
        if self.hung < MAX_HUNG:
            call.hung = call.line.left = True
            self.hung += 1
            self._turns.release()

    def _returned(self, call: _PooledCall, made: Any) -> None:
        assert call.watch is not None
        call.watch.cancel()
        if call.hung:
            self.hung -= 1
        else:
            self._turns.release()
        self._busy.remove(call.line)
        if call.line.left:
            self._close(call.line)
        else:
            self._idle.append(call.line)
        settle(call.outcome, made)


def settle(future: asyncio.Future[Any], made: Any) -> None:
    """Give what a thread made, or the error that it met, to whoever waits for it, if somebody still does."""
    if future.done():
        return
    if isinstance(made, BaseException):
        future.set_exception(made)
    else:
        future.set_result(made)


def in_thread(loop: asyncio.AbstractEventLoop, work: Callable[[], T], done: Callable[[Any], None]) -> None:
    """Do work in a thread of its own, which need not end before the process does, and have `done` told of the result on the loop."""

    def run() -> None:
        result: Any
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - it is told on the loop
            result = error
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody cares any more
            loop.call_soon_threadsafe(done, result)

    threading.Thread(target=run, name="libvirt call", daemon=True).start()
