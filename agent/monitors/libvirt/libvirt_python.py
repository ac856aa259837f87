"""libvirt's Python library: loading, single connections and conversion of errors."""

import contextlib
import errno
import importlib
import threading
from collections.abc import Iterable
from typing import Any

from agent.qmp.errors import CommandError, ConnectPermissionError, NotConnectedError, QmpError, TransportLostError

KEEPALIVE = (5, 3)
"""Seconds between two keepalive messages, and the number of messages that may stay unanswered. With these values, a connection to a hung
libvirtd ends after 20 s."""

_EVENT_THREAD_NAME = "libvirt events"
_loading_lock = threading.Lock()


class LibraryMissingError(Exception):
    """libvirt's Python library cannot be loaded. The error's text contains the command that installs the library."""


def load_library() -> tuple[Any, Any]:
    """Return the modules libvirt and libvirt_qemu. The first call starts libvirt's event loop in a thread.

    Raises:
        LibraryMissingError: the modules are not installed.
    """
    try:
        api, qemu = importlib.import_module("libvirt"), importlib.import_module("libvirt_qemu")
    except ImportError as error:
        raise LibraryMissingError(
            f"libvirt's library for Python cannot be loaded ({error}): with the Debian package, apt install "
            "python3-libvirt; in a virtual environment, pip install libvirt-python, which needs libvirt's headers "
            "(libvirt-dev), pkg-config and a C compiler"
        ) from None
    with _loading_lock:
        if not any(thread.name == _EVENT_THREAD_NAME for thread in threading.enumerate()):
            # Without this handler, libvirt also prints each error that it raises.
            api.registerErrorHandler(lambda *_: None, None)
            api.virEventRegisterDefaultImpl()
            threading.Thread(target=_run_events, args=(api,), name=_EVENT_THREAD_NAME, daemon=True).start()
    return api, qemu


def _run_events(api: Any) -> None:
    while True:
        with contextlib.suppress(Exception):  # a bug in a callback must not end the loop
            api.virEventRunDefaultImpl()


class LibvirtConnection:
    """A connection to libvirtd. The first call opens the connection. Only one thread at a time may use the connection."""

    def __init__(self, api: Any, uri: str, *, read_only: bool, keepalive: tuple[int, int] = KEEPALIVE) -> None:
        self.retired = False
        """True if no further call may use the connection."""
        self._api = api
        self._uri = uri
        self._read_only = read_only
        self._keepalive = keepalive
        self._handle: Any = None

    def vir_connect(self) -> Any:
        """Return libvirt's connection object (virConnect), and connect first if necessary. The call blocks."""
        if self._handle is None:
            self._handle = open_connection(self._api, self._uri, read_only=self._read_only, keepalive=self._keepalive)
        return self._handle

    def look_up_domain(self, uuid: str) -> Any:
        """Return libvirt's object of a domain (virDomain). The call blocks."""
        return self.vir_connect().lookupByUUIDString(uuid)

    def look_up_domains(self, uuids: Iterable[str]) -> list[Any]:
        """Return libvirt's objects of these domains, without domains that no longer exist. The call blocks."""
        domains = []
        for uuid in uuids:
            try:
                domains.append(self.look_up_domain(uuid))
            except self._api.libvirtError as error:
                if error.get_error_code() != self._api.VIR_ERR_NO_DOMAIN:
                    raise
        return domains

    @property
    def was_opened(self) -> bool:
        """True if the connection was ever established."""
        return self._handle is not None

    def is_lost(self) -> bool:
        """Return whether the connection was established and has ended."""
        return self._handle is not None and not is_connection_alive(self._handle)

    def close(self) -> None:
        """Close the connection. The call blocks."""
        handle, self._handle = self._handle, None
        with contextlib.suppress(self._api.libvirtError):
            if handle is not None:
                handle.close()


def open_connection(api: Any, uri: str, *, read_only: bool, keepalive: tuple[int, int] = KEEPALIVE) -> Any:
    """Open a connection and return libvirt's connection object. The call blocks."""
    handle = (api.openReadOnly if read_only else api.open)(uri)
    handle.setKeepAlive(*keepalive)
    return handle


def is_connection_alive(handle: Any) -> bool:
    """Return whether a connection is up; `handle` is libvirt's connection object."""
    try:
        return bool(handle.isAlive())
    except Exception:  # noqa: BLE001 - a connection whose call fails is not up
        return False


def is_denied(api: Any, error: Any) -> bool:
    """Return whether a libvirtError means that libvirtd or the permissions of its socket denied access."""
    codes = {api.VIR_ERR_AUTH_FAILED, api.VIR_ERR_AUTH_CANCELLED, api.VIR_ERR_AUTH_UNAVAILABLE}
    codes |= {api.VIR_ERR_OPERATION_DENIED, api.VIR_ERR_ACCESS_DENIED}
    system = error.get_error_code() == api.VIR_ERR_SYSTEM_ERROR
    return error.get_error_code() in codes or (system and error.get_int1() in (errno.EACCES, errno.EPERM))


def to_qmp_error(api: Any, error: Any, connection: LibvirtConnection | None = None) -> QmpError:
    """Convert a libvirtError to a QmpError.

    Args:
        api: the module libvirt.
        error: the libvirtError.
        connection: the connection of the failed call; None if the connection could not be opened.
    """
    text = error.get_error_message() or str(error)
    if connection is None or connection.is_lost():
        return (
            ConnectPermissionError(text)
            if is_denied(api, error)
            else TransportLostError(f"the connection to libvirtd failed: {text}")
        )
    if error.get_error_code() == api.VIR_ERR_NO_DOMAIN:
        return NotConnectedError("libvirt no longer has the domain")
    return CommandError("GenericError", text)
