"""libvirt's Python library: loading it, single connections, its errors, and threads for its blocking calls."""

import asyncio
import contextlib
import errno
import importlib
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from agent.qmp.errors import CommandError, DeniedError, NotConnectedError, QmpError, TransportLostError

KEEPALIVE = (5, 3)
"""Seconds between two keepalive messages, and how many may stay unanswered. So a connection to a hung libvirtd ends after 20 s."""

T = TypeVar("T")

_THREAD = "libvirt events"
_loading = threading.Lock()


class LibraryMissingError(Exception):
    """libvirt's library cannot be loaded; the text says what to do."""


def load_library() -> tuple[Any, Any]:
    """Return the modules libvirt and libvirt_qemu. The first call starts their event loop in a thread of its own.

    Raises:
        LibraryMissingError: they are not installed.
    """
    try:
        api, qemu = importlib.import_module("libvirt"), importlib.import_module("libvirt_qemu")
    except ImportError as error:
        raise LibraryMissingError(
            f"libvirt's library for Python cannot be loaded ({error}): pip install 'qmp-agent[libvirt]', which needs "
            "libvirt's headers (libvirt-dev), pkg-config and a C compiler"
        ) from None
    with _loading:
        if not any(thread.name == _THREAD for thread in threading.enumerate()):
            api.registerErrorHandler(lambda *_: None, None)  # by default libvirt also prints each error that it raises
            api.virEventRegisterDefaultImpl()
            threading.Thread(target=_run_events, args=(api,), name=_THREAD, daemon=True).start()
    return api, qemu


def _run_events(api: Any) -> None:
    while True:
        with contextlib.suppress(Exception):  # a bug in a callback must not end the loop
            api.virEventRunDefaultImpl()


class LibvirtConnection:
    """A connection to libvirtd, opened at its first use. Only one thread may use it at a time."""

    def __init__(self, api: Any, uri: str, *, read_only: bool, keepalive: tuple[int, int] = KEEPALIVE) -> None:
        self.retired = False
        """True if the connection must not be used for further calls."""
        self._api = api
        self._uri = uri
        self._read_only = read_only
        self._keepalive = keepalive
        self._handle: Any = None

    def handle(self) -> Any:
        """Return libvirt's connection object. Blocks."""
        if self._handle is None:
            self._handle = open_connection(self._api, self._uri, read_only=self._read_only, keepalive=self._keepalive)
        return self._handle

    def domain(self, uuid: str) -> Any:
        """Return libvirt's object of a domain. Blocks."""
        return self.handle().lookupByUUIDString(uuid)

    def domains(self, uuids: Iterable[str]) -> list[Any]:
        """Return libvirt's objects of the domains, without those that no longer exist. Blocks."""
        domains = []
        for uuid in uuids:
            try:
                domains.append(self.domain(uuid))
            except self._api.libvirtError as error:
                if error.get_error_code() != self._api.VIR_ERR_NO_DOMAIN:
                    raise
        return domains

    @property
    def opened(self) -> bool:
        """True once the connection was established."""
        return self._handle is not None

    def lost(self) -> bool:
        """Return whether the connection was established and has ended."""
        return self._handle is not None and not is_alive(self._handle)

    def close(self) -> None:
        """Close the connection. Blocks."""
        handle, self._handle = self._handle, None
        with contextlib.suppress(self._api.libvirtError):
            if handle is not None:
                handle.close()


def open_connection(api: Any, uri: str, *, read_only: bool, keepalive: tuple[int, int] = KEEPALIVE) -> Any:
    """Open a connection and return libvirt's object. Blocks."""
    handle = (api.openReadOnly if read_only else api.open)(uri)
    handle.setKeepAlive(*keepalive)
    return handle


def is_alive(handle: Any) -> bool:
    """Return whether a connection is up, given libvirt's object of it."""
    try:
        return bool(handle.isAlive())
    except Exception:  # noqa: BLE001 - a connection that cannot answer this is not up
        return False


def is_denied(api: Any, error: Any) -> bool:
    """Return whether libvirt's error is a lack of permission."""
    codes = {api.VIR_ERR_AUTH_FAILED, api.VIR_ERR_AUTH_CANCELLED, api.VIR_ERR_AUTH_UNAVAILABLE}
    codes |= {api.VIR_ERR_OPERATION_DENIED, api.VIR_ERR_ACCESS_DENIED}
    system = error.get_error_code() == api.VIR_ERR_SYSTEM_ERROR
    return error.get_error_code() in codes or (system and error.get_int1() in (errno.EACCES, errno.EPERM))


def to_qmp_error(api: Any, error: Any, connection: LibvirtConnection | None = None) -> QmpError:
    """Return the QmpError for one of libvirt's errors.

    Args:
        api: the module libvirt.
        error: the libvirtError.
        connection: the connection that the failed call was made on; None if it could not be opened.
    """
    text = error.get_error_message() or str(error)
    if connection is None or connection.lost():
        return DeniedError(text) if is_denied(api, error) else TransportLostError(f"libvirtd is lost: {text}")
    if error.get_error_code() == api.VIR_ERR_NO_DOMAIN:
        return NotConnectedError("libvirt no longer has the domain")
    return CommandError("GenericError", text)


def run_in_thread(loop: asyncio.AbstractEventLoop, work: Callable[[], T], done: Callable[[Any], None]) -> None:
    """Run `work` in a thread of its own, then call `done` on the loop with its result or its exception.

    The thread is a daemon, so that the process can end while a call hangs.
    """

    def run() -> None:
        result: Any
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - `done` gets it
            result = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            loop.call_soon_threadsafe(done, result)

    threading.Thread(target=run, name="libvirt call", daemon=True).start()


def set_outcome(future: asyncio.Future[Any], outcome: Any) -> None:
    """Complete a future with a result or an exception, unless it is done already."""
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
